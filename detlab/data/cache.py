"""Decoded images that are kept: in memory that the workers share, or on disk."""

from __future__ import annotations

import hashlib
import logging
import mmap
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detlab.data.index import Index, offsets_of
from detlab.download import cache_folder
from detlab.errors import UserError
from detlab.storage import replacing

log = logging.getLogger(__name__)

CACHES = ("none", "ram", "disk")
Read = Callable[[Path], Tensor]


class ImageCache:
    """No cache: every image is decoded each time it is asked for."""

    @staticmethod
    def of(kind: str, index: Index) -> ImageCache:
        """The cache that `dataset.cache` names, for the images of an index; says how much it will take.

        Raises:
            UserError: another word, or not enough memory or disk.
        """
        if kind not in CACHES:
            raise UserError(f"dataset.cache: {kind!r} is not allowed; allowed: {', '.join(CACHES)}.")
        if kind == "none" or not len(index):
            return ImageCache()
        needed = 3 * int(index.sizes.astype(np.int64).prod(1).sum())
        free = _free_memory() if kind == "ram" else shutil.disk_usage(_existing(cache_folder())).free
        said = f"dataset.cache={kind}: {needed / 1e9:.2f} GB for {len(index)} decoded images"
        if free is not None and needed > free:
            raise UserError(f"{said}, but {free / 1e9:.2f} GB are free; take dataset.cache=none.")
        log.info("%s", said)
        return MemoryCache(index) if kind == "ram" else DiskCache(cache_folder() / "images")

    def image(self, number: int, path: Path, read: Read) -> Tensor:
        """An image, uint8 `[3, H, W]`, free to be changed.

        Args:
            number: its number in the index.
            path: its file.
            read: decodes the file.
        """
        return read(path)


class MemoryCache(ImageCache):
    """Images in memory that a run and the workers that it forks share, so that each is decoded once.

    An image is decoded anew when its file's size or times have changed since. Where workers are not forked, each keeps its own.
    """

    def __init__(self, index: Index) -> None:
        self._sizes = index.sizes.tolist()
        self._begin = offsets_of((3 * index.sizes.astype(np.int64).prod(1)).tolist())
        self._open()

    def _open(self) -> None:
        # Anonymous memory: that of /dev/shm is often limited to 64 MB in containers. Pages count once they are written.
        self._pixels = np.frombuffer(mmap.mmap(-1, int(self._begin[-1])), np.uint8)
        self._stamps = np.frombuffer(mmap.mmap(-1, 8 * len(self._sizes)), np.int64)

    def __getstate__(self) -> dict[str, Any]:
        return {"_sizes": self._sizes, "_begin": self._begin}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def image(self, number: int, path: Path, read: Read) -> Tensor:
        """See `ImageCache`."""
        height, width = self._sizes[number]
        place = self._pixels[self._begin[number] : self._begin[number + 1]]
        stamp = _stamp(path)
        if stamp and self._stamps[number] == stamp:
            return torch.from_numpy(place.reshape(3, height, width).copy())
        image = read(path)
        if tuple(image.shape) == (3, height, width):
            self._stamps[number] = 0
            place[:] = image.numpy().ravel()
            self._stamps[number] = stamp
        return image


def _stamp(path: Path) -> int:
    """A number that changes when a file does; 0 where it cannot be looked at."""
    try:
        state = path.stat()
    except OSError:
        return 0
    text = f"{state.st_ino} {state.st_size} {state.st_mtime_ns} {state.st_ctime_ns}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big", signed=True) or 1


class DiskCache(ImageCache):
    """Decoded images in files called by the hash of what they were decoded from: a file that changed is another one.

    Args:
        folder: of the files; it may be deleted at any time.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def image(self, number: int, path: Path, read: Read) -> Tensor:
        """See `ImageCache`."""
        try:
            name = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError:
            return read(path)  # whose error names the file
        kept = self.folder / name[:2] / f"{name}.npy"
        try:
            return torch.from_numpy(np.load(kept))
        except FileNotFoundError:
            pass
        except (OSError, ValueError, EOFError):
            log.warning("%s: damaged; decoded anew", kept)
        image = read(path)
        kept.parent.mkdir(parents=True, exist_ok=True)
        with replacing(kept) as file:
            np.save(file, image.numpy())
        return image


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(place for place in (folder, *folder.parents) if place.is_dir())


def _free_memory() -> int | None:
    """Bytes of memory that are available, what the system keeps of files counted in; None where it does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)
