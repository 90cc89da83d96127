"""Which images are for training, which for validation, and which are held out for a test at the end."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections import defaultdict
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import torch

from detlab.errors import UserError
from detlab.untrusted import json_of

PARTS = ("train", "val", "test")


def check_part(part: str) -> None:
    """Refuse a part that is none of `train`, `val` and `test`."""
    if part not in PARTS:
        raise UserError(f"dataset: no part {part!r}; there are {', '.join(PARTS)}.")


def random_split(count: int, val_size: int, seed: int, part: str, *, test_size: int) -> list[int]:
    """Indices of a part: of a seeded permutation the last `val_size` are for validation, those before them for the test.

    Raises:
        UserError: parts that leave nothing for training, or are negative.
    """
    check_part(part)
    for key, size in (("val_size", val_size), ("test_size", test_size)):
        if not 0 <= size < count:
            raise UserError(f"dataset.{key}: {size} of {count} images; give 0..{count - 1}.")
    train_size = count - val_size - test_size
    if train_size < 1:
        raise UserError(
            f"dataset.test_size: {test_size} and val_size={val_size} of {count} images leave none for training."
        )
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    first = {"train": 0, "test": train_size, "val": train_size + test_size}
    last = {"train": train_size, "test": train_size + test_size, "val": count}
    return order[first[part] : last[part]]


def stratified_order(names: Sequence[str], strata: Sequence[Hashable], seed: int) -> list[int]:
    """An order of images of which each stretch holds every stratum in its proportion, give or take one image.

    It depends on the names and the seed alone, not on the order in which they are given. A stretch of it is a part, a fold, or a
    subset that a longer one contains.

    Args:
        names: unique.
        strata: of each image, such as its rarest class.
        seed: of the order.

    Returns:
        Indices.
    """

    def drawn(text: str) -> int:
        return int.from_bytes(hashlib.sha256(f"{seed}:{text}".encode("utf-8", "surrogateescape")).digest()[:8], "big")

    members: dict[Hashable, list[tuple[int, int]]] = defaultdict(list)
    for i, (name, stratum) in enumerate(zip(names, strata, strict=True)):
        members[stratum].append((drawn(name), i))
    placed: list[tuple[float, int, int]] = []
    for stratum, images in members.items():
        # Each stratum begins elsewhere: those of one image would all lie in the middle otherwise.
        begin = drawn(f"stratum {stratum}") / 2**64
        for rank, (number, i) in enumerate(sorted(images)):
            placed.append(((rank + begin) / len(images), number, i))
    return [i for _, _, i in sorted(placed)]


def part_size(size: float, count: int, key: str) -> int:
    """A number of images, given as it is or as a fraction below 1.

    Raises:
        UserError: negative, or all of them and more.
    """
    images = round(size * count) if 0 < size < 1 else size
    if images != int(images) or not 0 <= images < max(count, 1):
        raise UserError(
            f"dataset.{key}: {size} of {count} images; give a whole number from 0 to {count - 1}, or a fraction below 1."
        )
    return int(images)


def check_folds(folds: int | None, fold: int | None, count: int) -> None:
    """Refuse folds that cannot be.

    Raises:
        UserError: one key without the other, fewer than 2 folds or more than images, or a fold that is none of them.
    """
    if folds is None and fold is None:
        return
    if folds is None or not 2 <= folds <= count:
        raise UserError(f"dataset.folds: {folds}; give 2 to {count} (images), or leave dataset.fold out.")
    if fold is None or not 0 <= fold < folds:
        raise UserError(f"dataset.fold: {fold}; of {folds} folds there are 0..{folds - 1}.")


def place_of(
    count: int, part: str, *, val_size: float, test_size: float, folds: int | None, fold: int | None
) -> tuple[int, int]:
    """Where a part lies in an order of `count` images: the first are the test's, behind them a stretch is for validation.

    Returns:
        The beginning and the end of `val` or `test`; for `train`, which is the rest, those of `val`.

    Raises:
        UserError: parts that leave nothing for training.
    """
    check_part(part)
    tested = part_size(test_size, count, "test_size")
    check_folds(folds, fold, count - tested)
    if folds is not None and fold is not None:
        begin, end = (tested + (count - tested) * number // folds for number in (fold, fold + 1))
    else:
        begin, end = tested, tested + part_size(val_size, count, "val_size")
    if end - begin + tested >= count:
        raise UserError(
            f"dataset.test_size: {test_size} and val_size={val_size} of {count} images leave none for training."
        )
    return (0, tested) if part == "test" else (begin, end)


def stretch(order: Sequence[int], part: str, fraction: float, **sizes: Any) -> list[int]:
    """The images of a part, of an order from `stratified_order`; of `train` the first `fraction` of what the others leave.

    Args:
        order: of all images.
        part: `train`, `val` or `test`.
        fraction: above 0, up to 1; a smaller one is contained in a larger one.
        sizes: as `place_of` takes them.

    Raises:
        UserError: a fraction out of its range, or parts that leave nothing for training.
    """
    if not 0 < fraction <= 1:
        raise UserError(f"dataset.fraction: {fraction} is not allowed; allowed: above 0, up to 1.")
    begin, end = place_of(len(order), part, **sizes)
    if part != "train":
        return list(order[begin:end])
    tested = place_of(len(order), "test", **sizes)[1]
    rest = [*order[end:], *order[tested:begin]]
    return rest[: math.ceil(fraction * len(rest))]


def split_from_file(path: Path, names: Sequence[str], part: str) -> list[int]:
    """Indices of a part, in the order in which a split file lists them.

    The file is `{"train": [names], "val": [names]}`, with "test" where there is such a part.

    Raises:
        UserError: no such file, not that form, a name that the data set lacks, or one that stands in two parts.
    """
    check_part(part)
    try:
        lists = json_of(path)
        listed = {key: list(map(str, lists[key])) for key in PARTS if key != "test" or key in lists}
    except OSError as error:
        raise UserError(f"dataset.split_file: {path}: {error.strerror}.") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f'dataset.split_file: {path}: not JSON with "train" and "val", lists of names ({error}).'
        ) from None
    if part not in listed:
        return []
    index = {name: i for i, name in enumerate(names)}
    unknown = [name for name in listed[part] if name not in index]
    twice = [name for i, name in enumerate(listed[part]) if name in listed[part][:i]]
    if unknown:
        raise UserError(
            f"dataset.split_file: {path}: {len(unknown)} names are not in the data set, the first: {unknown[0]}."
        )
    for one, other in itertools.combinations(listed, 2):
        both = sorted(set(listed[one]) & set(listed[other]))
        if both:
            raise UserError(
                f"dataset.split_file: {path}: {len(both)} names stand in {one} and {other}, the first: {both[0]}."
            )
    if twice:
        raise UserError(f"dataset.split_file: {path}: {twice[0]} stands twice in {part}.")
    return [index[name] for name in listed[part]]
