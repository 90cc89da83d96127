"""Which of an index' image files are missing, or cannot be decoded as what the annotations say."""

from __future__ import annotations

import os
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import numpy as np

from detlab.data.images import read_image
from detlab.data.index import Index, Integers
from detlab.errors import UserError


def missing_images(index: Index, folder: Path) -> Integers:
    """The numbers of the images whose file is not there, by listing each folder once."""
    by_folder: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for i, name in enumerate(index.file_names):
        path = PurePosixPath(name)
        by_folder[str(path.parent)].append((path.name, i))
    missing: list[int] = []
    for parent, names in by_folder.items():
        place = folder / parent
        present = set(os.listdir(place)) if place.is_dir() else set()
        missing += [i for name, i in names if name not in present]
    return np.array(sorted(missing), np.int64)


def unreadable_images(index: Index, folder: Path, *, besides: Integers) -> Integers:
    """The numbers of the images whose file cannot be decoded, or has another size than the index says; decodes them all."""

    def fits(i: int) -> bool:
        try:
            image = read_image(folder / index.file_names[i])
        except UserError:
            return False
        return list(image.shape[1:]) == index.sizes[i].tolist()

    asked = np.setdiff1d(np.arange(len(index)), besides).tolist()
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        fit = list(threads.map(fits, asked))
    return np.array([i for i, good in zip(asked, fit, strict=True) if not good], np.int64)
