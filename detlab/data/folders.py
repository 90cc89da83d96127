"""Which images lie in a folder, and how many files are read at once."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

# The files of a folder that are taken for images, by the ends of their names in any case.
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
# From so many files on reading them takes long enough to be shown.
MANY = 200
# So many results are kept at once, read before they are asked for.
AHEAD = 1024

T = TypeVar("T")
R = TypeVar("R")


def files_below(folder: Path, suffixes: Sequence[str]) -> list[str]:
    """The files in a folder and the folders below it, hidden ones left out.

    Args:
        folder: may be missing.
        suffixes: ends of the names that are taken, in small letters.

    Returns:
        Names relative to the folder, with forward slashes, sorted.
    """
    names: list[str] = []
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        taken = (name for name in files if name.lower().endswith(tuple(suffixes)) and not name.startswith("."))
        names += [Path(place, name).relative_to(folder).as_posix() for name in taken]
    return sorted(names)


def read_all(read: Callable[[T], R], items: Sequence[T], title: str) -> Iterator[R]:
    """What `read` makes of each item, in their order, by a thread for each core; of many with a bar on a terminal."""
    from rich.console import Console
    from rich.progress import track

    bar = Console(stderr=True)
    hidden = len(items) < MANY or not bar.is_terminal
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        stretches = (items[i : i + AHEAD] for i in range(0, len(items), AHEAD))
        results = itertools.chain.from_iterable(threads.map(read, stretch) for stretch in stretches)
        yield from track(results, title, total=len(items), console=bar, transient=True, disable=hidden)
