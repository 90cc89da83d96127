"""Which images are for training, which for validation, and which are held out for a test at the end."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from detlab.errors import UserError

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


def split_from_file(path: Path, names: Sequence[str], part: str) -> list[int]:
    """Indices of a part, in the order in which a split file lists them.

    The file is `{"train": [names], "val": [names]}`, with "test" where there is such a part.

    Raises:
        UserError: no such file, not that form, a name that the data set lacks, or one that stands in two parts.
    """
    check_part(part)
    try:
        lists = json.loads(path.read_text())
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
