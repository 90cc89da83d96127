"""Files are written whole or not at all, and damage is found."""

from __future__ import annotations

import random
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
            raise OSError("No space left on device")

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
