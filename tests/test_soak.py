"""A run that is killed again and again ends as one that was left alone; the long one is a command in the logbook."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("model", "kills", "steps"),
    [
        pytest.param("maskrcnn", 5, 10, marks=pytest.mark.slow),
        pytest.param("maskrcnn", 10, 20, marks=pytest.mark.long),
        pytest.param("mobilenet", 10, 20, marks=pytest.mark.long),
    ],
)
def test_a_run_killed_again_and_again_ends_as_one_that_was_left_alone(
    model: str, kills: int, steps: int, tmp_path: Path
) -> None:
    # In a process of its own: it forks, which is safe only before torch has started threads.
    command = [sys.executable, str(Path(__file__).with_name("soak.py")), "--kills", str(kills), "--steps", str(steps)]
    done = subprocess.run(
        [*command, "--model", model, "--folder", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "all runs equal to the one left alone" in done.stdout
