"""Which images are for training and which for validation."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from detlab.errors import UserError


def check_part(part: str) -> None:
    """Refuse a part that is neither `train` nor `val`."""
    if part not in ("train", "val"):
        raise UserError(f"dataset: no part {part!r}; there are train and val.")


def random_split(count: int, val_size: int, seed: int, part: str) -> list[int]:
    """Indices of a part: a seeded permutation of all, of which the last `val_size` are for validation.

    Raises:
        UserError: a validation part that leaves nothing for training, or is negative.
    """
    check_part(part)
    if not 0 <= val_size < count:
        raise UserError(f"dataset.val_size: {val_size} of {count} images; give 0..{count - 1}.")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    return order[: count - val_size] if part == "train" else order[count - val_size :]


def split_from_file(path: Path, names: Sequence[str], part: str) -> list[int]:
    """Indices of a part, in the order in which a split file (`{"train": [names], "val": [names]}`) lists them.

    Raises:
        UserError: no such file, not that form, a name that the data set lacks, or one that stands in both parts.
    """
    check_part(part)
    try:
        lists = json.loads(path.read_text())
        listed = {key: list(map(str, lists[key])) for key in ("train", "val")}
    except OSError as error:
        raise UserError(f"dataset.split_file: {path}: {error.strerror}.") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f'dataset.split_file: {path}: not JSON with "train" and "val", lists of names ({error}).'
        ) from None
    index = {name: i for i, name in enumerate(names)}
    unknown = [name for name in listed[part] if name not in index]
    both = sorted(set(listed["train"]) & set(listed["val"]))
    twice = [name for i, name in enumerate(listed[part]) if name in listed[part][:i]]
    if unknown:
        raise UserError(
            f"dataset.split_file: {path}: {len(unknown)} names are not in the data set, the first: {unknown[0]}."
        )
    if both:
        raise UserError(f"dataset.split_file: {path}: {len(both)} names stand in train and val, the first: {both[0]}.")
    if twice:
        raise UserError(f"dataset.split_file: {path}: {twice[0]} stands twice in {part}.")
    return [index[name] for name in listed[part]]
