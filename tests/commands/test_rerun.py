"""`detlab rerun` repeats a run, and says what is not the same."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import TINY, lines_of

from detlab import cli
from detlab.checkpoint import read
from detlab.provenance import repositories

Detlab = Callable[..., int]


def git(folder: Path, *arguments: str) -> None:
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run(["git", "-C", str(folder), *who, *arguments], check=True, capture_output=True)


def test_the_commit_and_what_was_changed_since_are_recorded(tmp_path: Path) -> None:
    assert repositories([tmp_path]) == []
    git(tmp_path, "init")
    assert repositories([tmp_path]) == []  # no commit yet
    (tmp_path / "a.py").write_text("one\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "a")
    (tmp_path / "below").mkdir()
    ((clean, patch),) = repositories([tmp_path, tmp_path / "below"])
    assert (len(clean["commit"]), clean["untracked"], patch) == (40, [], "")
    (tmp_path / "a.py").write_text("two\n")
    (tmp_path / "b.py").write_text("new\n")
    ((changed, patch),) = repositories([tmp_path])
    assert changed == {**clean, "untracked": ["b.py"]}
    git(tmp_path, "checkout", "a.py")
    (tmp_path / "kept.patch").write_text(patch)
    git(tmp_path, "apply", "kept.patch")
    assert (tmp_path / "a.py").read_text() == "two\n"


@pytest.mark.slow
def test_a_run_is_repeated_to_the_bit_and_what_differs_is_said(
    detlab: Detlab, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    git(tmp_path, "init")
    (tmp_path / "mine.py").write_text("one\n")
    git(tmp_path, "add", "mine.py")
    git(tmp_path, "commit", "-m", "a")
    assert detlab(*TINY, "max_steps=2", "deterministic=true", "hydra.run.dir=a") == 0
    capsys.readouterr()
    assert cli.main(["rerun", "a", "hydra.run.dir=b"]) == 0
    said = capsys.readouterr().out
    assert str(tmp_path) not in said.partition("classes:")[0]
    assert lines_of(tmp_path / "b") == lines_of(tmp_path / "a")
    first, second = (read(tmp_path / run / "checkpoints" / "last.pt")["model"] for run in ("a", "b"))
    assert all(first[name].numpy().tobytes() == second[name].numpy().tobytes() for name in first)
    record = json.loads((tmp_path / "a" / "run.json").read_text())
    older = {**record, "versions": {**record["versions"], "torch": "1.0"}}
    (tmp_path / "a" / "run.json").write_text(json.dumps(older))
    (tmp_path / "mine.py").write_text("two\n")
    git(tmp_path, "commit", "-am", "b")
    (tmp_path / "mine.py").write_text("three\n")
    assert cli.main(["rerun", "a", "--dry-run", "optimizer.lr=0.5", "dataset.val_size=3"]) == 0
    said = capsys.readouterr().out
    assert "version of torch: 1.0 -> " in said
    assert "optimizer.lr: " in said
    assert "data, the fingerprint of val: " in said
    assert f"code, the commit in {tmp_path}: {record['code'][0]['commit']} -> " in said
    assert f"code in {tmp_path}: there are uncommitted changes now" in said


def test_what_is_no_run_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["rerun", "nothing"]) == 2
    assert capsys.readouterr().err == "detlab: nothing: holds no run.json; it is no run's folder.\n"
