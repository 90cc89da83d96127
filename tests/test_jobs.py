"""With which exit status a process ends, and what a job leaves to the next one of its process."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from conftest import TINY, lines_of
from omegaconf import DictConfig
from scale import resident

from detlab import run
from detlab.errors import NonFiniteLossError, UserError
from detlab.jobs import Jobs, SweepStart


def never(cfg: object) -> float:
    raise AssertionError


def test_a_sweep_whose_jobs_are_done_but_whose_sweeper_failed_has_not_succeeded(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("0-a", "1-b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text('{"state": "done"}')
    monkeypatch.setattr(SweepStart, "folder", tmp_path)
    monkeypatch.setattr(SweepStart, "before", {})
    jobs = Jobs(never)
    assert jobs.status(None) == 0
    assert jobs.status(RuntimeError("the sweeper broke")) == 1
    assert "the sweeper broke" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status", "trace"),
    [
        (None, 0, False),
        (UserError("key: value"), 2, False),
        (NonFiniteLossError("step 3"), 1, False),
        (PermissionError(13, "Permission denied", "a"), 1, False),
        (FileExistsError(17, "File exists", "sweep/3-seed=1"), 1, False),
        (ZeroDivisionError("a bug of ours"), 1, True),
    ],
)
def test_a_mistake_has_status_2_and_only_our_own_bugs_a_trace(
    error: Exception | None,
    status: int,
    trace: bool,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(SweepStart, "folder", None)
    assert Jobs(never).status(error) == status
    said = capsys.readouterr().err
    assert said.startswith("detlab: ") == (error is not None and not trace)
    assert ("ZeroDivisionError" in said) == trace


def test_ctrl_c_before_a_run_began_is_said_in_a_word(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_: list[str]) -> list[str]:
        raise KeyboardInterrupt

    monkeypatch.setattr("detlab.run.preflight", interrupted)
    monkeypatch.setattr("sys.path", sys.path[:])
    assert run.main() == 130
    assert capsys.readouterr().err == "detlab: interrupted\n"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads memory and open files from /proc")
def test_jobs_of_one_process_leave_nothing_behind(
    detlab: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from detlab import run

    left: list[dict[str, int]] = []
    job = run.run

    def watched(cfg: DictConfig) -> float | None:
        result = job(cfg)
        # A queue's thread ends a moment after the queue.
        for _ in range(100):
            if threading.active_count() == 1:
                break
            time.sleep(0.05)
        left.append({
            "threads": threading.active_count(), "torch's": torch.get_num_threads(), "files": len(os.listdir("/proc/self/fd")),
            "children": len(multiprocessing.active_children()), "MB": round(resident()),
        })  # fmt: skip
        return result

    monkeypatch.setattr(run, "run", watched)
    assert detlab("-m", *TINY, "workers=1", "max_steps=2", "seed=0,1,0,1", "hydra.sweep.dir=sweep") == 0
    first, other, again, _ = (lines_of(folder) for folder in sorted((tmp_path / "sweep").glob("[0-9]*")))
    assert first == again != other
    for kind in ("threads", "torch's", "files", "children"):
        assert left[1][kind] == left[3][kind], left
    # What is left behind grows with each job; the allocator, which gives nothing back, may need more once.
    grown = [after["MB"] - before["MB"] for before, after in pairwise(left[1:])]
    assert min(grown) < 75, left
