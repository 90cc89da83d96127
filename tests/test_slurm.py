"""A sweep's jobs as jobs of SLURM: one whose node is taken from it saves its state, waits, and ends as if nothing had been."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import slurm
from conftest import TINY, lines_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(slurm.missing()), reason=f"SLURM cannot run here: missing {', '.join(slurm.missing())}"),
]
STEPS = 24
SWEEP = (
    *TINY, "dataset.train_size=48", f"max_steps={STEPS}", "-m", "hydra/launcher=submitit_slurm", "hydra.launcher.partition=low",
    "hydra.launcher.cpus_per_task=2", "hydra.launcher.timeout_min=30", "seed=3", "hydra.sweep.dir=sweep",
)  # fmt: skip


@pytest.mark.parametrize("grace", [0, 30])
def test_a_job_that_is_preempted_goes_on_and_ends_as_one_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, grace: int
) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="no submitit")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with (
        tempfile.TemporaryDirectory(
            prefix="slurm-"
        ) as short,  # the daemons' sockets have names of at most 107 characters
        slurm.cluster(Path(short), grace=grace) as environment,
        Path("said.txt").open("w") as said,
    ):
        train = [sys.executable, "-m", "detlab.run"]
        sweep = subprocess.Popen([*train, *SWEEP], env=environment, stdout=said, stderr=subprocess.STDOUT)
        sweeps = Path("sweep")
        deadline = time.monotonic() + 240
        while sum(path.read_text().count('train/loss"') for path in sweeps.glob("*/metrics.jsonl")) < 3:
            assert sweep.poll() is None, Path("said.txt").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        urgent = subprocess.run(
            ["sbatch", "--parsable", "--partition=high", "--ntasks=2", f"--output={tmp_path / 'urgent'}", "--wrap=squeue --all"],
            env=environment, capture_output=True, text=True, check=True,
        )  # fmt: skip
        # SLURM lets a job that it has put back wait for two minutes.
        while slurm.jobs(environment)["1"] != {"Restarts": "1", "JobState": "PENDING"}:
            assert sweep.poll() is None, Path("said.txt").read_text()
            assert time.monotonic() < deadline, slurm.jobs(environment)
            time.sleep(0.2)
        subprocess.run(["scontrol", "update", "JobId=1", "StartTime=now"], env=environment, check=True)
        assert sweep.wait(240) == 0, Path("said.txt").read_text()
        restarts = {job: state["Restarts"] for job, state in slurm.jobs(environment).items()}
        assert restarts == {"1": "1", urgent.stdout.strip(): "0"}
    (folder,) = sweeps.glob("0-*")
    alone = [argument for argument in SWEEP if argument != "-m" and not argument.startswith("hydra")]
    subprocess.run([*train, *alone, "hydra.run.dir=alone"], check=True, capture_output=True)
    assert len(lines_of(folder)) >= STEPS
    assert lines_of(folder) == lines_of(Path("alone"))
