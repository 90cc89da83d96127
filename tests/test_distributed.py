"""Several processes exchange, end together, and leave nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import TINY, lines_of, write_pennfudan
from torch import nn

from detlab import distributed
from detlab.errors import UserError

Detlab = Callable[..., int]
# What the losses of one batch of 4 and of two of 2 need to be equal: norms without batch statistics, images of one size, and as
# many regions in each image, all of them taken: 20 proposals and 2 people, and no anchor between positive and negative.
EQUAL = (
    *(override for override in TINY if not override.startswith("dataset.")),
    "dataset=pennfudan", "dataset.val_size=4", "augmentation=none", "batch_size=4", "optimizer=sgd", "optimizer.lr=0.0001",
    "schedule.warmup_steps=0", "max_steps=10", "objective=bbox/AP", "model.norm=group", "model.rpn_fg_iou_thresh=0.5",
    "model.rpn_bg_iou_thresh=0.5", "model.rpn_batch_size_per_image=100000", "model.box_batch_size_per_image=100000",
    "model.rpn_pre_nms_top_n_train=1000", "model.rpn_post_nms_top_n_train=20",
)  # fmt: skip


def exchange(argument: int) -> dict[str, object]:
    me = distributed.rank()
    first, second = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(2, 2))
    third = nn.Parameter(torch.zeros(1))
    first.grad = torch.full((3,), 1.0 + me)
    if me == 1:
        second.grad = torch.full((2, 2), 6.0)
    distributed.average_gradients([first, second, third])
    assert first.grad is not None
    assert second.grad is not None
    norm = nn.BatchNorm1d(2)
    assert norm.running_mean is not None
    norm.running_mean += me
    distributed.average_statistics(norm)
    failure = ""
    try:
        distributed.from_first(lambda: 1 // 0)
    except ZeroDivisionError:
        failure = "everywhere"
    return {
        "gathered": distributed.gather({"rank": me, "argument": argument}),
        "broadcast": distributed.broadcast(f"from {me}"),
        "largest": distributed.largest(10 * me),
        "mean": distributed.mean(torch.tensor([me, 2.0 + me])).tolist(),
        "gradients": [first.grad.tolist(), second.grad.tolist(), third.grad],
        "statistics": norm.running_mean.tolist(),
        "failure": failure,
        "threads": torch.get_num_threads(),
    }


def fail_in_the_second(kind: str) -> None:
    if distributed.rank() == 1:
        if kind == "mistake":
            raise UserError("image 7: a box outside its image")
        if kind == "bug":
            raise ZeroDivisionError("a bug of ours")
        os._exit(3)
    distributed.largest(1)  # waits for the other


@pytest.mark.slow
def test_processes_exchange_values_gradients_and_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert distributed.launch(exchange, 5, processes=2, minutes=1) == {
        "gathered": [{"rank": 0, "argument": 5}, {"rank": 1, "argument": 5}],
        "broadcast": "from 0",
        "largest": 10,
        "mean": [0.5, 2.5],
        "gradients": [[1.5] * 3, [[3.0, 3.0], [3.0, 3.0]], None],
        "statistics": [0.5, 0.5],
        "failure": "everywhere",
        "threads": 1,
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "error", "said"),
    [
        ("mistake", UserError, "image 7"),
        ("bug", distributed.WorkerFailedError, "ZeroDivisionError: a bug of ours"),
        ("death", distributed.WorkerFailedError, "without a word"),
    ],
)
def test_what_one_process_fails_of_ends_all_and_is_told_once(
    kind: str, error: type[Exception], said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    started = time.monotonic()
    with pytest.raises(error, match=said):
        distributed.launch(fail_in_the_second, kind, processes=2, minutes=5)
    assert time.monotonic() - started < 60
    assert capfd.readouterr().err.count("Traceback") <= 1


def interrupt_the_launcher(_: None) -> None:
    if distributed.rank() == 0:
        os.kill(os.getppid(), signal.SIGINT)
    time.sleep(60)


def test_ctrl_c_before_the_work_can_take_it_is_an_interrupt_and_no_failure() -> None:
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        distributed.launch(interrupt_the_launcher, None, processes=2, minutes=5)
    assert time.monotonic() - started < 50


def test_without_a_group_one_process_is_all() -> None:
    assert (distributed.rank(), distributed.size(), distributed.first()) == (0, 1, True)
    assert distributed.gather("x") == ["x"]
    assert distributed.broadcast("x") == "x"
    assert distributed.largest(3) == 3


@pytest.mark.slow
def test_two_processes_give_the_losses_and_the_evaluation_of_one(
    detlab: Detlab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        run = (*EQUAL, f"dataset.root={write_pennfudan(tmp_path / 'PennFudanPed', 44, people=2)}")
        assert detlab(*run, "hydra.run.dir=one") == 0
        assert detlab(*run, "devices=2", "hydra.run.dir=two") == 0
        torchrun = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node=2",
            "-m",
            "detlab.run",
        ]
        under = subprocess.run([*torchrun, *run, "hydra.run.dir=torchrun"], capture_output=True, text=True, check=False)
        assert under.returncode == 0, under.stderr
        weights = "model.weights=one/checkpoints/best.pt"
        for devices in (1, 2):
            score = (
                *run,
                weights,
                "optimizer.lr=1e-30",
                "max_steps=1",
                f"devices={devices}",
                f"hydra.run.dir=score{devices}",
            )
            assert detlab(*score) == 0
    finally:
        torch.set_num_threads(threads)
    one, two, other = (lines_of(tmp_path / name) for name in ("one", "two", "torchrun"))
    assert two == other
    assert len([line for line in one if "train/loss" in line]) == 10
    for a, b in zip(one, two, strict=True):
        for tag in (key for key in a if key.startswith("train/loss_") and key != "train/loss_mask"):
            assert a[tag] == pytest.approx(b[tag], rel=1e-4), (a["step"], tag)
    scored = [lines_of(tmp_path / f"score{devices}")[-1] for devices in (1, 2)]
    assert scored[0] == scored[1]
    same = [(tmp_path / f"score{devices}" / "predictions.json").read_bytes() for devices in (1, 2)]
    assert same[0] == same[1]
    assert len(json.loads(same[0])) > 0


@pytest.mark.parametrize("times", [pytest.param(3, marks=pytest.mark.slow), pytest.param(10, marks=pytest.mark.long)])
def test_a_sweep_in_two_processes_ends_each_time(detlab: Detlab, tmp_path: Path, times: int) -> None:
    seeds = ",".join(map(str, range(times)))
    run = (*TINY, "devices=2", "max_steps=1", "dataset.val_size=2")
    assert detlab("-m", *run, f"seed={seeds}", "hydra.sweep.dir=sweep") == 0
    jobs = [json.loads((job / "run.json").read_text()) for job in (tmp_path / "sweep").iterdir() if job.is_dir()]
    assert sorted(job["seed"] for job in jobs) == list(range(times))
    assert {job["state"] for job in jobs} == {"done"}
    assert {job["hardware"]["processes"] for job in jobs} == {2}


@pytest.mark.slow
def test_ctrl_c_reaches_every_process_and_the_run_goes_on_from_there(tmp_path: Path) -> None:
    run = [sys.executable, "-m", "detlab.run", *TINY, "devices=2", "workers=1", "epochs=20", "hydra.run.dir=run"]
    process = subprocess.Popen(
        run, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (tmp_path / "run" / "metrics.jsonl").exists():
        time.sleep(0.2)
    time.sleep(2)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert b"resume=" in said
    done = lines_of(tmp_path / "run")[-1]["step"]
    again = subprocess.run(
        [sys.executable, "-m", "detlab.run", "resume=run", f"max_steps={done + 2}", "resume_anyway=true"],
        cwd=tmp_path,
        capture_output=True,
        check=False,
    )
    assert again.returncode == 0, again.stderr
    assert lines_of(tmp_path / "run")[-1]["step"] == done + 2


@pytest.mark.slow
def test_a_sweep_under_torchrun_is_refused_once_with_a_pointer_to_devices(tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "detlab.run"]
    done = subprocess.run(
        [*torchrun, "-m", *TINY, "seed=0,1"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert done.stderr.count("give devices=2") == 1
    assert not (tmp_path / "outputs").exists()
