"""`detlab` itself: its commands, their help at once, and the exit status."""

from __future__ import annotations

import errno
import subprocess
import sys

import pytest

from detlab import cli
from detlab.commands import score
from detlab.errors import UserError


@pytest.mark.parametrize("command", [name for name in cli.COMMANDS if name != "train"])
def test_the_help_of_a_command_comes_without_torch(command: str) -> None:
    code = (
        "import sys; from detlab import cli\n"
        f"try: cli.main([{command!r}, '--help'])\n"
        "except SystemExit as left: assert left.code == 0\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code + "print(sorted({'torch', 'numpy', 'hydra', 'pycocotools'} & set(sys.modules)))"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith(f"usage: detlab {command}")
    assert done.stdout.splitlines()[-1] == "[]"
    assert command in cli.usage()


def test_what_is_no_command_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["predcit"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("detlab: no command 'predcit'; there are train, ")
    assert said.endswith(" Did you mean predict?\n")


@pytest.mark.parametrize(("command", "missing"), [("evaluate", "RUN"), ("rerun", "RUN"), ("compare", "A, B")])
def test_what_is_missing_is_named_and_nothing_else(
    command: str, missing: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main([command])
    assert capsys.readouterr().err.strip().endswith(f"the following arguments are required: {missing}")


@pytest.mark.parametrize(
    ("raised", "status", "said"),
    [
        (UserError("a.json: gone."), 2, "detlab: a.json: gone.\n"),
        (KeyboardInterrupt(), 130, "detlab: interrupted\n"),
        (
            OSError(errno.ENOSPC, "No space left on device", "out/a.png"),
            1,
            "detlab: [Errno 28] No space left on device: 'out/a.png'\n",
        ),
    ],
)
def test_how_a_command_ends_is_told_by_the_exit_status(
    raised: BaseException, status: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(_arguments: list[str]) -> int:
        raise raised

    monkeypatch.setattr("sys.path", sys.path[:])
    monkeypatch.setattr(score, "main", failing)
    assert cli.main(["score"]) == status
    assert capsys.readouterr().err == said


def test_a_failure_of_ours_shows_its_trace(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.path", sys.path[:])
    monkeypatch.setattr(score, "main", lambda _: 1 // 0)
    assert cli.main(["score"]) == 1
    assert "Traceback" in capsys.readouterr().err
