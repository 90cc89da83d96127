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


def test_each_of_a_thousand_flipped_bytes_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    storage.save(CONTENT, path)
    whole = path.read_bytes()
    chance = random.Random(0)
    for place in [chance.randrange(len(whole)) for _ in range(900)] + list(range(len(whole) - 100, len(whole))):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << chance.randrange(8))]) + whole[place + 1 :])
        with pytest.raises(storage.DamagedFileError, match=r"a\.pt"):
            storage.load(path)


def test_a_file_cut_off_at_any_of_many_lengths_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    storage.save(CONTENT, path)
    whole = path.read_bytes()
    chance = random.Random(0)
    # Among them the length without the seal, and without the last record of the zip file.
    for length in [chance.randrange(len(whole)) for _ in range(100)] + [len(whole) - cut for cut in range(1, 120)]:
        path.write_bytes(whole[:length])
        with pytest.raises(storage.DamagedFileError, match=r"a\.pt"):
            storage.load(path)


def test_a_file_that_torch_wrote_is_read_and_its_content_checked(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save(CONTENT, path)
    assert same(storage.load(path), CONTENT)
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 1
    path.write_bytes(whole)
    with pytest.raises(storage.DamagedFileError, match="the checksum of"):
        storage.load(path)


def test_a_file_keeps_its_name_while_it_is_given_an_older_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "last").write_text("new")
    (tmp_path / "previous").write_text("old")
    storage.keep_as(tmp_path / "last", tmp_path / "previous")
    assert [(tmp_path / name).read_text() for name in ("last", "previous")] == ["new", "new"]

    def no_links(*_: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("os.link", no_links)
    (tmp_path / "previous").unlink()
    (tmp_path / "previous").write_text("old")
    storage.keep_as(tmp_path / "last", tmp_path / "previous")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"previous": "new"}


def test_what_a_killed_write_left_is_deleted_and_nothing_else(tmp_path: Path) -> None:
    for name in (".last.pt.123.tmp", "last.pt", "notes.tmp", ".lock"):
        (tmp_path / name).write_text("x")
    storage.clear_unfinished(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "last.pt", "notes.tmp"]


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
