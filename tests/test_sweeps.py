"""A sweep's jobs, wherever they are done: how they end is told, and what is not done can be done again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY

from detlab import cli
from detlab.config import register
from detlab.errors import UserError
from detlab.launchers import in_grace, jobs_at_a_time, shares, take_gpu
from detlab.preflight import overrides_parser, preflight
from detlab.sweeps import FAILED, brief, jobs_of, note_failure, outcome_of

# `detlab train` and `detlab rerun` with a job that ends at once as its rate says, and leaves the records of one that trained.
TASK = """
import json, os, time
from pathlib import Path
from detlab.errors import UserError
from hydra.core.hydra_config import HydraConfig

def task(cfg):
    folder, rate = Path(HydraConfig.get().runtime.output_dir), cfg.optimizer.lr
    said = {"pid": os.getpid(), "threads": os.environ.get("OMP_NUM_THREADS"), "resume": cfg.resume, "on": cfg.on_nonfinite}
    (folder / "process.json").write_text(json.dumps(said))
    if rate == 0.5 and not Path("mended").exists():
        raise UserError("optimizer.lr: 0.5 is too much")
    if rate == 0.7 and not Path("mended").exists():
        os.kill(os.getpid(), 9)
    if rate == 0.9 and not Path("mended").exists():
        (folder / "run.json").write_text(json.dumps({"state": "running"}))
        (folder / "waits").touch()
        try:
            for _ in range(3000):  # steps: Ray does not wake what sleeps
                time.sleep(0.1)
        except BaseException:
            (folder / "saved").touch()
            raise
    (folder / "config.yaml").write_text("objective: bbox/AP\\n")
    (folder / "run.json").write_text(json.dumps({"state": "done", "position": {"best": rate}, "overrides": []}))
    return rate
"""
APP = """
import sys
import detlab.run
from detlab import cli
from task import task
detlab.run.run = task
if __name__ == "__main__":
    sys.exit(cli.main(sys.argv[1:]))
"""
LAUNCHERS = ("basic", "joblib", "ray", "submitit_local")
# How many jobs of each are at work at a time is said so.
TWO = {"joblib": "hydra.launcher.n_jobs=2", "ray": "+hydra.launcher.ray.init.num_cpus=2"}


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    Path("task.py").write_text(TASK)
    Path("app.py").write_text(APP)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    return [sys.executable, "-W", "error", "app.py"]


def do(app: list[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    return subprocess.run([*app, *arguments], capture_output=True, text=True, check=False, env=environment)


def needs(launcher: str) -> None:
    if launcher == "ray":
        pytest.importorskip("ray", reason="no ray")
    elif launcher != "basic":
        pytest.importorskip(f"hydra_plugins.hydra_{launcher.partition('_')[0]}_launcher", reason=f"no {launcher}")


def processes(sweep: str) -> dict[str, dict[str, Any]]:
    return {path.parent.name: json.loads(path.read_text()) for path in sorted(Path(sweep).glob("*/process.json"))}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_wherever_jobs_are_done_a_failure_is_told_and_repeated_alone(app: list[str], launcher: str) -> None:
    needs(launcher)
    sweep = ["train", "-m", f"hydra/launcher={launcher}", "optimizer.lr=0.1,0.5,0.2", "hydra.sweep.dir=s"]
    done = do(app, *sweep)
    assert done.returncode == 1
    assert done.stdout.split("jobs done:")[1].split() == [
        "0-optimizer.lr=0.1", "bbox/AP", "0.1000", "2-optimizer.lr=0.2", "bbox/AP", "0.2000",
    ]  # fmt: skip
    assert "  1-optimizer.lr=0.5: optimizer.lr: 0.5 is too much\n" in done.stderr
    assert "repeat these alone: detlab rerun s --failed" in done.stderr
    assert "Traceback" not in done.stderr
    assert json.loads(Path("s/1-optimizer.lr=0.5", FAILED).read_text()) == {
        "why": "optimizer.lr: 0.5 is too much", "overrides": ["optimizer.lr=0.5"], "status": 2,
    }  # fmt: skip
    before = processes("s")
    pids = {process["pid"] for process in before.values()}
    assert len(pids) == {"basic": 1, "joblib": 2, "ray": len(pids), "submitit_local": 3}[launcher]
    if launcher in TWO and os.cpu_count() == 2:
        assert [process["threads"] for process in before.values()] == ["1"] * 3
    Path("mended").touch()
    again = do(app, "rerun", "s", "--failed", f"hydra/launcher={launcher}", "on_nonfinite=skip")
    assert again.returncode == 0, again.stderr
    after = processes("s")
    assert after.keys() == before.keys()
    assert [name for name in after if after[name] != before[name]] == ["1-optimizer.lr=0.5"]
    assert after["1-optimizer.lr=0.5"]["on"] == "skip"
    assert not Path("s/1-optimizer.lr=0.5", FAILED).exists()
    none = do(app, "rerun", "s", "--failed")
    assert (none.returncode, none.stdout) == (0, "s: 0 of 3 jobs to repeat\n")


@pytest.mark.slow
@pytest.mark.parametrize("launcher", TWO)
def test_jobs_of_a_pool_load_images_in_processes_of_their_own(tmp_path: Path, launcher: str) -> None:
    needs(launcher)
    # Real ones: joblib 1.6 made its own way of starting processes the one that the data loader took.
    jobs = ["max_steps=1", "workers=1", "seed=0,1", f"hydra/launcher={launcher}", "hydra.sweep.dir=s"]
    command = [sys.executable, "-m", "detlab.run", "-m", *TINY, *jobs]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert [outcome_of(folder).state for folder in sorted((tmp_path / "s").glob("[0-9]*"))] == ["done", "done"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "said"),
    [("joblib", "a process of the pool died without a word"), ("ray", "the processes of 1 job(s) died without a word")],
)
def test_a_pool_one_of_whose_processes_is_killed_says_so_and_the_rest_is_done_later(
    app: list[str], launcher: str, said: str
) -> None:
    needs(launcher)
    done = do(app, "train", "-m", f"hydra/launcher={launcher}", "optimizer.lr=0.7,0.1,0.2", "hydra.sweep.dir=s")
    assert done.returncode == 1
    assert f"detlab: {said}" in done.stderr
    assert "Traceback" not in done.stderr
    # As where a job was killed before Hydra had written what it is.
    for path in Path("s").glob("2-*/.hydra/overrides.yaml"):
        path.write_text("")
    Path("mended").touch()
    again = do(app, "rerun", "s", "--failed")
    assert again.returncode == 0, again.stderr
    assert [outcome_of(folder).best for folder in sorted(Path("s").glob("[0-9]*"))] == [
        "bbox/AP 0.7000", "bbox/AP 0.1000", "bbox/AP 0.2000",
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
@pytest.mark.parametrize("launcher", TWO)
def test_a_signal_to_a_pool_lets_its_jobs_save_and_begins_no_other(
    app: list[str], launcher: str, number: signal.Signals, status: int
) -> None:
    needs(launcher)
    sweep = ["train", "-m", f"hydra/launcher={launcher}", "optimizer.lr=0.9,0.1", "seed=0,1", "hydra.sweep.dir=s"]
    process = subprocess.Popen([*app, *sweep, TWO[launcher]], stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 200
    while len(list(Path("s").glob("*/waits"))) < 2:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, number)  # as a terminal does: to all of them
    said = process.communicate(timeout=120)[1]
    assert process.returncode == status
    assert "the states of the jobs are saved.\nThe sweep's jobs that are not done: detlab rerun s --failed" in said
    assert "Traceback" not in said
    assert len(list(Path("s").glob("*/saved"))) == 2
    Path("mended").touch()
    again = do(app, "rerun", "s", "--failed")
    assert again.returncode == 0, again.stderr
    assert len(list(Path("s").glob("*/run.json"))) == 4


@pytest.mark.slow
def test_a_job_too_large_for_every_machine_of_rays_is_refused(app: list[str]) -> None:
    needs("ray")
    two = [TWO["ray"], "hydra.launcher.ray.remote.num_cpus=3", "hydra.sweep.dir=s"]
    done = do(app, "train", "-m", "hydra/launcher=ray", "optimizer.lr=0.1,0.2", *two)
    assert done.returncode == 2
    assert (
        "detlab: hydra.launcher.ray.remote.num_cpus=3: no machine has more than 2. Ask for fewer, or say auto.\n"
        in done.stderr
    )
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_queue_that_takes_no_job_is_told_in_two_lines(
    app: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    needs("submitit_slurm")
    commands = tmp_path / "bin"
    commands.mkdir()
    for name in ("srun", "sbatch"):
        (commands / name).write_text(
            "#!/bin/sh\necho 'sbatch: error: Unable to contact slurm controller' >&2\nexit 1\n"
        )
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    done = do(app, "train", "-m", "hydra/launcher=submitit_slurm", "optimizer.lr=0.1,0.2", "hydra.sweep.dir=s")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert (
        "detlab: SLURM took no job: sbatch: error: Unable to contact slurm controller\nIs it up (sinfo)" in done.stderr
    )


OPTUNA = (
    "train", "-m", "hydra/sweeper=optuna", "optimizer.lr=tag(log, interval(0.0001, 0.1))",
    "optimizer.weight_decay=choice(0,0.0005)", "hydra.sweeper.n_startup_trials=2",
)  # fmt: skip


def trials(sweep: str) -> list[str]:
    return sorted(path.name for path in Path(sweep).glob("[0-9]*-*"))


@pytest.mark.slow
def test_an_optuna_sweep_that_was_stopped_goes_on_as_it_would_have(app: list[str]) -> None:
    pytest.importorskip("optuna")
    assert do(app, *OPTUNA, "hydra.sweeper.n_trials=5", "hydra.sweep.dir=whole").returncode == 0
    assert do(app, *OPTUNA, "hydra.sweeper.n_trials=2", "hydra.sweep.dir=parts").returncode == 0
    assert len(trials("parts")) == 2
    done = do(app, *OPTUNA, "hydra.sweeper.n_trials=5", "hydra.sweep.dir=parts")
    assert done.returncode == 0
    assert trials("parts") == trials("whole")
    assert len(trials("whole")) == 5
    best = max(json.loads(path.read_text())["position"]["best"] for path in Path("parts").glob("*/run.json"))
    assert f"  {best:.4f}  optimizer.lr={best}" in done.stdout.split("best of 5 trials:")[1]
    other = do(app, *OPTUNA, "seed=1", "hydra.sweeper.n_trials=6", "hydra.sweep.dir=parts")
    assert other.returncode == 2
    assert "'parts' holds a study with other overrides" in other.stderr


@pytest.mark.slow
def test_a_trial_that_was_killed_is_done_again_and_a_failed_one_is_told_as_failed(app: list[str]) -> None:
    optuna = pytest.importorskip("optuna")
    search = ("train", "-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "hydra.sweep.dir=s")
    assert do(app, *search, "optimizer.lr=choice(0.7)").returncode == -signal.SIGKILL
    assert trials("s") == ["0-optimizer.lr=0.7"]
    Path("mended").touch()
    assert do(app, *search, "optimizer.lr=choice(0.7)").returncode == 0
    assert trials("s") == ["0-optimizer.lr=0.7", "1-optimizer.lr=0.7"]
    Path("mended").unlink()
    failed = do(app, *search[:-1], "hydra.sweep.dir=f", "optimizer.lr=choice(0.5)")
    assert failed.returncode == 1
    assert failed.stderr.count("-optimizer.lr=0.5: optimizer.lr: 0.5 is too much") == 2
    journal = optuna.storages.journal
    storage = journal.JournalStorage(journal.JournalFileBackend("f/optuna.journal"))
    states = [trial.state.name for trial in optuna.load_study(study_name="detlab", storage=storage).trials]
    assert states == ["FAIL", "FAIL"]


def test_what_is_not_installed_is_said_in_two_lines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    register()
    monkeypatch.setattr("detlab.preflight.installed", lambda _: False)
    for extra, choice in (
        ("optuna", "sweeper=optuna"),
        ("joblib", "launcher=joblib"),
        ("ray", "launcher=ray"),
        ("submitit", "launcher=submitit_slurm"),
    ):
        with pytest.raises(UserError) as error:
            preflight(["-m", f"hydra/{choice}", "optimizer.lr=0.1,0.2"])
        part = choice.partition("=")[0]
        assert str(error.value) == (
            f"hydra/{part}: needs a package that is not installed.\nInstall it: pip install 'detlab[{extra}]'"
        )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["model=glob(zzz*)"], r"model: glob\(zzz\*\) gives no value; allowed: .*maskrcnn"),
        (["experiment=glob(none*)"], r"experiment: glob\(none\*\) gives no value; allowed: .*pennfudan"),
        (["seed=range(3,0)"], r"seed: range\(3,0\) gives no value\."),
        (
            ["seed=1,2", "hydra/sweeper=optuna", "hydra.sweeper.direction=up"],
            r"hydra\.sweeper\.direction: 'up' is not allowed; allowed: maximize, minimize\.",
        ),
        (
            ["seed=1,2", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=0"],
            r"hydra\.sweeper\.n_trials: 0 is not allowed",
        ),
        (
            ["seed=1,2", "hydra/sweeper=optuna", "hydra.sweeper.n_jobs=true"],
            r"hydra\.sweeper\.n_jobs: True is not allowed",
        ),
        (["seed=1,2", "hydra/sweeper=optuna", "hydra.sweeper.seed=x"], r"hydra\.sweeper\.seed: 'x' is not allowed"),
        (
            ["seed=1,2", "hydra/launcher=joblib", "hydra.launcher.n_jobs=0"],
            r"hydra\.launcher\.n_jobs: 0 is not allowed",
        ),
        (
            ["seed=1,2", "hydra/launcher=joblib", "hydra.launcher.n_jobs=two"],
            r"hydra\.launcher\.n_jobs: 'two' is not allowed; allowed: auto, -1, a whole number from 1\.",
        ),
    ],
)
def test_a_sweep_of_nothing_and_a_plugins_wrong_value_are_told_before_it_begins(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, given: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("detlab.preflight.installed", lambda _: True)
    register()
    with pytest.raises(UserError, match=f"^{said}") as refused:
        preflight(["-m", *given])
    assert len(str(refused.value).splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_long_reason_is_told_in_part() -> None:
    assert brief("x: " + "/long" * 100).startswith("x: /long/long")
    assert brief("short\nenough") == "short enough"
    assert brief("word " * 100).endswith(" ...")
    assert len(brief("word " * 100)) <= 200


def test_an_interval_is_checked_at_its_ends_and_needs_a_sweeper_that_draws(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    register()
    with pytest.raises(
        UserError, match=r"^optimizer.lr: an interval has no end of values; draw from it with hydra/sweeper=optuna"
    ):
        preflight(["-m", "optimizer.lr=interval(0.1,0.2)"])
    monkeypatch.setattr("detlab.preflight.installed", lambda _: True)
    with pytest.raises(UserError) as error:
        preflight(["-m", "hydra/sweeper=optuna", "optimizer.lr=interval(-1,0.2)", "epochs=interval(1,9)"])
    assert str(error.value).splitlines() == [
        "optimizer.lr: -1.0 is not allowed; allowed: a finite number above 0.",
        "epochs: 1.0 is not an integer.",
        "epochs: 9.0 is not an integer.",
    ]
    preflight(
        ["-m", "hydra/sweeper=optuna", "optimizer.lr=tag(log,interval(0.1,0.2))", "epochs=tag(int,interval(1,9))"]
    )


def test_a_failure_is_not_noted_in_the_folder_of_a_finished_run(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"state": "done"}')
    note_failure(tmp_path, UserError("holds a run already"), [], 2)
    assert not (tmp_path / FAILED).exists()
    (tmp_path / "run.json").write_text('{"state": "running"}')
    note_failure(tmp_path, ZeroDivisionError("division by zero"), ["a=1"], 1)
    outcome = outcome_of(tmp_path)
    assert (outcome.state, outcome.why) == ("failed", "ZeroDivisionError: division by zero")
    (tmp_path / FAILED).unlink()
    assert outcome_of(tmp_path).state == "cut off"


MULTIRUN = """
hydra:
  sweeper: {_target_: hydra._internal.core_plugins.basic_sweeper.BasicSweeper, params: {"optimizer.lr": "0.1,0.2"}}
  sweep: {subdir: "${hydra.job.num}-x"}
  overrides: {task: [seed=1, "allow=[os]"]}
  job: {config: {override_dirname: {exclude_keys: [seed, allow]}}}
"""


def test_jobs_that_never_began_are_known_from_the_sweeps_record(tmp_path: Path) -> None:
    register()
    (tmp_path / "multirun.yaml").write_text(MULTIRUN)
    jobs = jobs_of(tmp_path, overrides_parser())
    assert [(job.folder.name, job.outcome.state) for job in jobs] == [
        ("0-optimizer.lr=0.1", "not begun"), ("1-optimizer.lr=0.2", "not begun"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "holds no multirun.yaml; it is no sweep's folder."),
        ("hydra: [", "damaged"),
        ("hydra: {}", "damaged"),
        ("a: &a [1]\nb: *a", "damaged"),
        (
            MULTIRUN.replace("hydra._internal.core_plugins.basic_sweeper.BasicSweeper", "os.system"),
            "made by the sweeper os.system",
        ),
        (MULTIRUN.replace("${hydra.job.num}-x", "../x"), "do not begin with N-"),
        (MULTIRUN.replace("0.1,0.2", "0.1,("), "damaged"),
    ],
)
def test_what_is_no_sweep_is_refused(
    text: str | None, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("s").mkdir()
    if text is not None:
        Path("s/multirun.yaml").write_text(text)
    assert cli.main(["rerun", "s", "--failed"]) == 2
    assert said in capsys.readouterr().err


def test_a_pool_is_as_large_as_there_are_gpus_else_shares_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 16)
    assert [jobs_at_a_time(wanted, 0) for wanted in ("auto", -1, 3)] == [4, 16, 3]
    assert jobs_at_a_time("auto", 8) == 8
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    assert jobs_at_a_time("auto", 0) == 2


@pytest.mark.parametrize(
    ("cores", "gpus", "cpus_each", "gpus_each"),
    [(2, 0, 1, 0), (1, 0, 1, 0), (64, 0, 4, 0), (16, 2, 8, 1), (2, 4, 1, 1)],
)
def test_a_job_of_rays_is_given_a_gpu_and_its_cores_or_what_is_said(
    cores: float, gpus: float, cpus_each: int, gpus_each: int
) -> None:
    given = shares({"num_cpus": "auto", "num_gpus": "auto", "max_retries": 0}, cores, gpus)
    assert given == {"num_cpus": cpus_each, "num_gpus": gpus_each, "max_retries": 0}
    assert shares({"num_cpus": 3, "num_gpus": 0.5}, cores, gpus) == {"num_cpus": 3, "num_gpus": 0.5}


def test_each_process_of_a_pool_has_a_gpu_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Each list of locks stands for a process.
    held = []
    for expected in ("2", "5", None):
        monkeypatch.setattr("detlab.launchers._GPU", own := [])
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        take_gpu(["2", "5"], tmp_path)
        assert os.environ.get("CUDA_VISIBLE_DEVICES") == expected
        held.append(own)
    take_gpu(["2", "5"], tmp_path)
    assert [len(own) for own in held] == [1, 1, 0]


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("JobState=RUNNING Reason=None PreemptEligibleTime=2026-01-01T00:00:00 PreemptTime=2026-01-01T00:01:00", True),
        ("JobState=RUNNING Reason=None PreemptEligibleTime=2026-01-01T00:00:00 PreemptTime=None", False),
        ("JobState=CANCELLED Reason=None PreemptTime=2026-01-01T00:01:00", False),
    ],
)
def test_slurm_is_asked_whether_a_job_has_time_of_grace(
    said: str, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f'#!/bin/sh\n[ "$*" = "show job 7" ] && echo "JobId=7 {said}"\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert not in_grace()
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert in_grace() is expected
