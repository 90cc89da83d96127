"""What a shell proposes at the tabulator key."""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from detlab.cli import COMMANDS

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")


def surroundings(folder: Path) -> dict[str, str]:
    """The environment of a shell that finds a program `detlab`, which it writes."""
    program = folder / "bin" / "detlab"
    program.parent.mkdir(exist_ok=True)
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m detlab "$@"\n')
    program.chmod(0o755)
    return {"PATH": f"{program.parent}:/usr/bin:/bin", "PYTHONPATH": str(Path(__file__).parents[2])}


def proposed(line: str, folder: Path) -> list[str]:
    """What bash has as proposals for the last word of a line."""
    words = line.split(" ")
    asked = " ".join(f"'{word}'" for word in words)
    code = f"""
        eval "$(detlab completion)"
        COMP_WORDS=({asked}) COMP_CWORD={len(words) - 1} COMP_LINE='{line}' COMP_POINT={len(line)}
        _detlab
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    environment = surroundings(folder)
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True, env=environment, cwd=folder)
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_commands_are_proposed(tmp_path: Path) -> None:
    assert proposed("detlab ", tmp_path) == [f"{name} " for name in COMMANDS]
    assert proposed("detlab comp", tmp_path) == ["compare ", "completion "]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("detlab train model=mob", ["model=mobilenet", "model=mobilenet_fpn"]),
        ("detlab train -m optimizer=sgd optimizer.mom", ["optimizer.momentum="]),
        ("detlab show dataset=pen", ["dataset=pennfudan"]),
    ],
)
def test_keys_and_choices_are_proposed_where_a_command_takes_them(
    line: str, expected: list[str], tmp_path: Path
) -> None:
    assert proposed(line, tmp_path) == expected


def test_files_are_left_to_the_shell(tmp_path: Path) -> None:
    assert proposed("detlab predict outputs/f", tmp_path) == [""]


@pytest.mark.skipif(shutil.which("zsh") is None, reason="no zsh")
@pytest.mark.parametrize(
    ("typed", "expected"),
    [("detlab compl", "detlab completion "), ("detlab train model=mobi", "detlab train model=mobilenet")],
)
def test_zsh_completes_a_line_after_bashcompinit(typed: str, expected: str, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    environment = surroundings(tmp_path) | {"TERM": "dumb", "PS1": "> "}
    with subprocess.Popen(
        ["zsh", "-f"], stdin=theirs, stdout=theirs, stderr=theirs, env=environment, cwd=tmp_path, start_new_session=True
    ) as shell:
        os.close(theirs)
        os.write(ours, b"autoload -U +X compinit && compinit -u -D; autoload -U +X bashcompinit && bashcompinit\n")
        os.write(ours, b'eval "$(detlab completion)"; echo set-$((1 + 1))\n')
        said = ""
        while "set-2" not in said:
            said += os.read(ours, 65536).decode()
        os.write(ours, f"{typed}\t".encode())
        said = ""
        while expected not in said:
            said += os.read(ours, 65536).decode()
        shell.kill()
    os.close(ours)
