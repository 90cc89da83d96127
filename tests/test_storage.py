"""Files are written whole or not at all, and damage is found."""

from __future__ import annotations

import errno
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from detlab import storage
from detlab.errors import UserError

CONTENT = {"format": 1, "model": {"a.weight": torch.arange(3000.0)}, "text": "x" * 500}


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return (
        a["text"] == b["text"]
        and a["format"] == b["format"]
        and torch.equal(a["model"]["a.weight"], b["model"]["a.weight"])
    )


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    storage.save(CONTENT, tmp_path / "a.pt")
    assert same(storage.load(tmp_path / "a.pt"), CONTENT)
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


def test_a_failure_while_writing_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    storage.write_text(path, "old")

    def write_and_fail() -> None:
        with storage.replacing(path) as file:
            file.write(b"half of the n")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_and_fail()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_one_flipped_byte_is_found_or_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    storage.save(CONTENT, path)
    whole = path.read_bytes()
    chance, found = random.Random(0), 0
    for _ in range(200):
        place = chance.randrange(len(whole))
        path.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << chance.randrange(8))]) + whole[place + 1 :])
        try:
            assert same(storage.load(path), CONTENT), place
        except UserError:
            found += 1
    assert found > 150


@pytest.mark.parametrize("keep", [0, 100, -30])
def test_a_file_that_was_cut_off_is_named(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "a.pt"
    storage.save(CONTENT, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"a\.pt"):
        storage.load(path)


FULL_DISK = """
import resource, sys, torch
from pathlib import Path
from detlab import jobs, storage

path = Path(sys.argv[1])
storage.save({"weights": torch.zeros(10)}, path)
before = path.read_bytes()
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    storage.save({"weights": torch.zeros(1_000_000)}, path)
except OSError as error:
    assert path.read_bytes() == before
    sys.exit(jobs.explain(error))
"""


def test_a_disk_that_takes_no_more_is_said_in_a_line_that_names_the_file(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path / "a.pt")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr == f"detlab: [Errno 27] File too large: '{tmp_path / 'a.pt'}'\n"
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]
