"""With which exit status a process ends."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

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
