"""The Penn-Fudan pedestrians: 170 photographs and their instance masks."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from pathlib import Path

from detlab.data.dataset import Choice, IndexedDataset, assemble
from detlab.data.masks import read_masks
from detlab.data.split import random_split
from detlab.download import Checksum, cache_folder, extract, fetch


def pennfudan(
    *,
    part: str,
    root: str | None,
    url: str,
    md5: str,
    invalid: str,
    val_size: int,
    test_size: int,
    split_seed: int,
    split_file: str | None,
    folds: int | None,
    fold: int | None,
    fraction: float,
    cache: str,
) -> IndexedDataset:
    """Penn-Fudan as its zip extracts: `PNGImages/NAME.png`, `PedMasks/NAME_mask.png`; see `detlab.data.masks`.

    Its split is that of torchvision's tutorial: by a seeded permutation of the sorted names, and in its order.

    Args:
        part: `train`, `val` or `test`.
        root: the folder that holds the two folders; None downloads the zip into the cache (`detlab.download`), once.
        url: of the zip, for `root` None.
        md5: of the zip.
        val_size: number of images for validation.
        test_size: number of images held out for the test.

    The rest: see `detlab.data.dataset.Choice`.

    Raises:
        UserError: see `read_masks` and `assemble`; a zip that cannot be downloaded, or is another one.
    """
    folder = _downloaded(url, md5) if root is None else Path(root).expanduser()

    def split(names: Sequence[str]) -> list[int]:
        chosen = random_split(len(names), val_size, split_seed, part, test_size=test_size)
        return chosen[: math.ceil(fraction * len(chosen))] if part == "train" else chosen

    choice = Choice(
        part, None, None, invalid, val_size, test_size, split_seed, split_file, folds, fold, fraction, cache
    )
    read = functools.partial(read_masks, folder, "PNGImages", "PedMasks", "", "_mask", "pedestrian")
    return assemble({"train": read}, choice, name="Penn-Fudan pedestrians", key=f"pennfudan {folder}", split=split)


def _downloaded(url: str, md5: str) -> Path:
    """The folder that the zip extracts to, in the cache: downloaded and extracted if it is not there."""
    archive, folder = cache_folder() / "PennFudanPed.zip", cache_folder() / "PennFudanPed"
    if not folder.is_dir():
        fetch(url, archive, checksum=Checksum("md5", md5), by_hand="give dataset.root=FOLDER with its two folders")
        # Four times and twice of what the authors' zip holds: 512 files, 54 MB in all.
        extract(archive, folder, max_bytes=200_000_000, max_files=1000)
    return folder
