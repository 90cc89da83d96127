"""However a run ends, it ends soon, says why, and goes on from there to the same result."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import TINY, lines_of

from detlab import distributed
from detlab.checkpoint import read

Detlab = Callable[..., int]
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}
RUN = [sys.executable, "-m", "detlab.run"]


def started(folder: Path, *overrides: str, lines: int = 2, **environment: str) -> subprocess.Popen[str]:
    """A run in `folder`/run, which has made its first steps."""
    process = subprocess.Popen(
        [*RUN, *overrides, "hydra.run.dir=run"], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        start_new_session=True, env={**ONE_THREAD, **environment},
    )  # fmt: skip
    metrics, deadline = folder / "run" / "metrics.jsonl", time.monotonic() + 120
    while not (metrics.exists() and metrics.read_text().count("\n") >= lines):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return process


def resume(folder: Path, *overrides: str) -> None:
    done = subprocess.run(
        [*RUN, "resume=run", *overrides], cwd=folder, capture_output=True, text=True, check=False, env=ONE_THREAD
    )
    assert done.returncode == 0, done.stderr


def weights(run: Path) -> list[bytes]:
    return [value.numpy().tobytes() for value in read(run / "checkpoints" / "last.pt")["model"].values()]


@pytest.mark.parametrize(
    ("number", "devices", "whole_group"),
    [
        pytest.param(signal.SIGUSR1, 1, False, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 2, False, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 1, True, marks=pytest.mark.long),
    ],
)
def test_a_schedulers_signal_saves_within_seconds_leaves_with_75_and_is_resumed_exactly(
    tmp_path: Path, number: signal.Signals, devices: int, whole_group: bool
) -> None:
    run = [o for o in TINY if not o.startswith(("dataset.train", "workers"))]
    run += ["dataset.train_size=16", f"devices={devices}", "workers=1", "epochs=1", "model.norm=batch"]
    alone = subprocess.run([*RUN, *run, "hydra.run.dir=alone"], cwd=tmp_path, capture_output=True, env=ONE_THREAD)
    assert alone.returncode == 0, alone.stderr
    process = started(tmp_path, *run)
    told = time.monotonic()
    (os.killpg if whole_group else os.kill)(process.pid, number)
    said = process.communicate(timeout=60)[1]
    assert time.monotonic() - told < 30  # as long as SLURM waits, by default, before it kills
    assert process.returncode == 75, said
    assert said.strip().splitlines()[-1].startswith(f"detlab: {number.name}: the state is saved. Go on with: resume=")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["state"] == "interrupted"
    assert 2 <= read(tmp_path / "run" / "checkpoints" / "last.pt")["position"]["step"] < 8
    resume(tmp_path)
    assert weights(tmp_path / "run") == weights(tmp_path / "alone")
    assert lines_of(tmp_path / "run") == lines_of(tmp_path / "alone")


@pytest.mark.slow
def test_a_signal_before_training_leaves_with_75_too(tmp_path: Path) -> None:
    # The data set waits, for ever.
    (tmp_path / "waiting.py").write_text(
        "import time\nfrom pathlib import Path\ndef wait(**_):\n    Path('here').touch()\n    time.sleep(60)\n"
    )
    command = [*RUN, *TINY, "dataset._target_=waiting.wait", "allow=[waiting]"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (tmp_path / "here").exists():
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=20)[1]
    assert process.returncode == 75
    assert said.strip() == "detlab: SIGTERM: left outside of training; run it again."


# A model that kills its process at a chosen place, once: the file `harmless` says that it was done.
HARM = """
import os, signal, time
from pathlib import Path
import torch.distributed
from detlab import distributed, storage
from detlab.models.detectors import rcnn

place = os.environ["HARM"]


def die():
    if not Path("harmless").exists():
        Path("harmless").touch()
        os.kill(os.getpid(), signal.SIGKILL)


class Harm:
    calls = 0


def at(count, real, rank):
    def counted(*arguments, **keywords):
        if distributed.rank() == rank and Harm.calls >= 3 and Path("run/checkpoints/last.pt").exists():
            die()
        return real(*arguments, **keywords)
    return counted


if place == "all-reduce":
    torch.distributed.all_reduce = at(20, torch.distributed.all_reduce, 1)
if place == "save":
    storage._Sealing.write = at(1, storage._Sealing.write, 0)


def harmful(**settings):
    model = rcnn(**settings)

    def before(module, _):
        if module.training:
            Harm.calls += 1
        if place == "epoch" and Harm.calls == 4 and distributed.rank() == 1:
            die()
        if place == "evaluation" and not module.training and distributed.rank() == 1:
            die()

    model.register_forward_pre_hook(before)
    return model
"""


@pytest.mark.parametrize(
    "place",
    [
        pytest.param(place, marks=pytest.mark.slow if place in ("epoch", "save") else pytest.mark.long)
        for place in ("epoch", "all-reduce", "evaluation", "save")
    ],
)
def test_a_killed_process_ends_all_and_the_run_can_be_resumed(tmp_path: Path, place: str) -> None:
    (tmp_path / "harm.py").write_text(HARM)
    run = (*TINY, "devices=2", "epochs=2", "model._target_=harm.harmful", "checkpoint.every_minutes=0.0001")
    process = started(tmp_path, *run, HARM=place, DETLAB_ALLOW="harm")
    deadline = time.monotonic() + 60
    while not (tmp_path / "harmless").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    killed = time.monotonic()
    said = process.communicate(timeout=60)[1]
    assert time.monotonic() - killed < 30
    assert process.returncode not in (0, 75, 130)
    assert "a process died without a word" in said
    while left := _left_over(process.pid):
        assert time.monotonic() - killed < 30, left
        time.sleep(0.1)
    done = subprocess.run(
        [*RUN, "resume=run"], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**ONE_THREAD, "HARM": place, "DETLAB_ALLOW": "harm"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [line["step"] for line in lines_of(tmp_path / "run") if "train/loss" in line] == list(range(1, 9))


def _left_over(session: int) -> list[str]:
    """The processes of a session that still run; the workers leave its group, but not the session."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(stat.parent.name)
    return found


def score_in_each_size(sizes: tuple[int, ...]) -> dict[int, dict[str, float]]:
    """The metrics of one detector, of random weights, on data sets of several sizes."""
    from detlab.data.loader import evaluation_loader
    from detlab.data.synthetic import Synthetic
    from detlab.engine import Device, evaluate
    from detlab.evaluation.coco import CocoEvaluator
    from detlab.stopping import RunStopping

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, cpu = _small_detector(), Device(torch.device("cpu"), "fp32")
    found = {}
    for size in sizes:
        data = Synthetic(
            part="val", difficulty="easy", seed=0, train_size=1, val_size=size, test_size=0, folds=None, fold=None, fraction=1.0
        )  # fmt: skip
        scored = CocoEvaluator(
            ground_truth=data.ground_truth(), class_map=data.class_map, iou_types=("bbox", "segm"), keypoint_sigmas=None
        )
        never = RunStopping(max_steps=None, max_minutes=None)
        loader = evaluation_loader(data, workers=0, pin_memory=False)
        metrics = evaluate(model, loader, scored, never, device=cpu)
        assert metrics is not None
        found[size] = {name: repr(value) for name, value in metrics.items()}
    return found


def _small_detector() -> torch.nn.Module:
    from torchvision.models.detection import maskrcnn_resnet50_fpn

    model = maskrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=2, min_size=96, max_size=128, box_score_thresh=0.0,
        box_detections_per_img=20, rpn_post_nms_top_n_test=30,
    )  # fmt: skip
    return model.eval()


@pytest.mark.slow
def test_an_evaluation_is_the_same_for_one_two_and_three_processes_and_odd_sizes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    threads = torch.get_num_threads()
    try:
        alone = score_in_each_size((1, 2, 7, 20))
    finally:
        torch.set_num_threads(threads)
    assert len({value for metrics in alone.values() for value in metrics.values()}) > 10
    for processes in (2, 3):
        assert distributed.launch(score_in_each_size, (1, 2, 7, 20), processes=processes, minutes=5) == alone


@pytest.mark.slow
def test_images_without_objects_hang_no_process(detlab: Detlab, tmp_path: Path) -> None:
    (tmp_path / "empty.py").write_text(
        "import torch\nfrom torchvision import tv_tensors\nfrom detlab.data.synthetic import Synthetic\n"
        "class HalfEmpty(Synthetic):\n"
        "    def __getitem__(self, index):\n"
        "        image, target = super().__getitem__(index)\n"
        "        keep = torch.zeros(len(target['labels']), dtype=torch.bool)\n"
        "        if index % 2:\n            return image, target\n"
        "        return image, {k: v[keep] if isinstance(v, torch.Tensor) and v.ndim else v for k, v in target.items()}\n"
    )
    run = (*TINY, "devices=2", "shuffle=false", "dataset._target_=empty.HalfEmpty", "allow=[empty]", "timeout=1")
    assert detlab(*run, "hydra.run.dir=run") == 0
    assert len([line for line in lines_of(tmp_path / "run") if "train/loss" in line]) == 4


@pytest.mark.slow
def test_a_disk_that_fills_within_a_save_ends_in_a_line_and_the_last_state_survives(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1000m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a small tmpfs needs root")
    try:
        run = (*TINY, "model.norm=batch", "optimizer=sgd", "epochs=2", f"hydra.run.dir={disk / 'run'}")
        first = subprocess.run(
            [*RUN, *run, "max_steps=4"], cwd=tmp_path, capture_output=True, text=True, env=ONE_THREAD
        )
        assert first.returncode == 0, first.stderr
        before = weights(disk / "run")
        free = shutil.disk_usage(disk).free
        (disk / "filler").write_bytes(b"x" * (free - (20 << 20)))
        command = [*RUN, f"resume={disk / 'run'}", "max_steps=8", "resume_anyway=true"]
        full = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, env=ONE_THREAD)
        assert full.returncode == 1
        assert full.stderr.strip().splitlines()[-1].startswith("detlab: [Errno 28] No space left on device: ")
        assert "Traceback" not in full.stderr
        assert weights(disk / "run") == before
        (disk / "filler").unlink()
        (disk / "run" / "checkpoints" / "best.pt").unlink()
        again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, env=ONE_THREAD)
        assert again.returncode == 0, again.stderr
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        shut = subprocess.run(
            [*command[:-2], "max_steps=9", "resume_anyway=true"], cwd=tmp_path, capture_output=True, text=True, check=False,
            env=ONE_THREAD,
        )  # fmt: skip
        assert shut.returncode in (1, 2)
        assert "Read-only file system" in shut.stderr
        assert "Traceback" not in shut.stderr
        read(disk / "run" / "checkpoints" / "last.pt")
    finally:
        subprocess.run(["umount", str(disk)], check=False)
