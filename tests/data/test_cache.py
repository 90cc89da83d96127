"""Kept images are those that the files hold now, in the process and in its workers."""

from __future__ import annotations

import logging
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from detlab.data import cache as module
from detlab.data.cache import DiskCache, ImageCache, MemoryCache
from detlab.data.images import read_image
from detlab.data.index import Index, IndexBuilder
from detlab.errors import UserError
from detlab.structures import ClassMap

SIZES = ((4, 6), (5, 3), (7, 7))


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Three small pictures; the cache folder lies beside them."""
    monkeypatch.setenv("DETLAB_CACHE", str(tmp_path / "cache"))
    paths = []
    for i, (height, width) in enumerate(SIZES):
        paths.append(tmp_path / f"{i}.png")
        paint(paths[-1], 10 * i, (height, width))
    return paths


def paint(path: Path, level: int, size: tuple[int, int]) -> None:
    Image.fromarray(np.full((*size, 3), level, np.uint8)).save(path)


def index() -> Index:
    builder = IndexBuilder(ClassMap(("thing",)))
    for i, size in enumerate(SIZES):
        builder.add_image(f"{i}.png", i + 1, *size)
    return builder.build()


class Counted:
    """Reads files, and counts how often."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, path: Path) -> Tensor:
        self.count += 1
        return read_image(path).as_subclass(Tensor)


@pytest.mark.parametrize(("kind", "reads"), [("none", 6), ("ram", 3), ("disk", 3)])
def test_an_image_is_decoded_once_where_it_is_kept(files: list[Path], kind: str, reads: int) -> None:
    kept, read = ImageCache.of(kind, index()), Counted()
    for _ in range(2):
        for i, path in enumerate(files):
            image = kept.image(i, path, read)
            assert torch.equal(image, read_image(path).as_subclass(Tensor))
            image.fill_(255)  # whoever is given it may change it
    assert read.count == reads


@pytest.mark.parametrize("kind", ["ram", "disk"])
def test_a_file_that_changed_is_decoded_anew(files: list[Path], kind: str) -> None:
    kept, read = ImageCache.of(kind, index()), Counted()
    kept.image(0, files[0], read)
    before = files[0].stat()
    paint(files[0], 99, SIZES[0])
    os.utime(files[0], ns=(before.st_atime_ns, before.st_mtime_ns))  # of the same size and time as before
    assert int(kept.image(0, files[0], read).max()) == 99


def test_a_picture_of_another_size_is_given_but_not_kept(files: list[Path]) -> None:
    kept, read = MemoryCache(index()), Counted()
    paint(files[0], 7, (9, 9))
    assert [kept.image(0, files[0], read).shape for _ in range(2)] == [(3, 9, 9)] * 2
    assert read.count == 2


def test_a_damaged_file_of_the_cache_is_decoded_anew(files: list[Path], caplog: pytest.LogCaptureFixture) -> None:
    kept, read = ImageCache.of("disk", index()), Counted()
    assert isinstance(kept, DiskCache)
    kept.image(0, files[0], read)
    [stored] = kept.folder.rglob("*.npy")
    stored.write_bytes(stored.read_bytes()[:20])
    assert kept.image(0, files[0], read).shape == (3, *SIZES[0])
    assert "damaged" in caplog.text
    assert kept.image(0, files[0], read).shape == (3, *SIZES[0])
    assert read.count == 2


def test_the_disk_cache_serves_the_next_run(files: list[Path]) -> None:
    ImageCache.of("disk", index()).image(0, files[0], Counted())
    read = Counted()
    ImageCache.of("disk", index()).image(0, files[0], read)
    assert read.count == 0


def test_what_a_cache_will_take_is_said_before(files: list[Path], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    ImageCache.of("ram", index())
    needed = 3 * sum(h * w for h, w in SIZES)
    assert f"dataset.cache=ram: {needed / 1e9:.2f} GB for 3 decoded images" in caplog.text


def test_a_cache_that_does_not_fit_is_refused(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_free_memory", lambda: 100)
    with pytest.raises(UserError, match=r"dataset\.cache=ram: 0\.00 GB .* take dataset\.cache=none"):
        ImageCache.of("ram", index())


def test_another_word_is_refused() -> None:
    with pytest.raises(UserError, match=r"dataset\.cache: 'gpu' is not allowed; allowed: none, ram, disk"):
        ImageCache.of("gpu", index())


class Kept(torch.utils.data.Dataset[Tensor]):
    """The pictures through a cache; a number that says how often this process decoded is painted beside them."""

    def __init__(self, files: list[Path]) -> None:
        self.files, self.cache, self.read = files, MemoryCache(index()), Counted()

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> Tensor:
        before = self.read.count
        image = self.cache.image(i, self.files[i], self.read)
        return torch.tensor([int(image[0, 0, 0]), self.read.count - before])


def test_forked_workers_share_what_one_of_them_decoded(files: list[Path]) -> None:
    data = Kept(files)
    first, second = (torch.stack(list(DataLoader(data, None, num_workers=2))) for _ in range(2))
    assert first.tolist() == [[0, 1], [10, 1], [20, 1]]
    if torch.multiprocessing.get_start_method() != "fork":
        pytest.skip("workers are not forked here")
    assert second.tolist() == [[0, 0], [10, 0], [20, 0]]


def test_a_worker_that_is_not_forked_begins_with_an_empty_cache(files: list[Path]) -> None:
    kept, read = MemoryCache(index()), Counted()
    kept.image(2, files[2], read)
    again = pickle.loads(pickle.dumps(kept))
    assert torch.equal(again.image(2, files[2], read), read_image(files[2]).as_subclass(Tensor))
    assert read.count == 2
