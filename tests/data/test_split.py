"""Parts, folds and subsets depend on the names and the seed, and hold every class in its proportion."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from typing import Any

import pytest

from detlab.data.split import stratified_order, stretch
from detlab.errors import UserError

NAMES = [f"{i:04d}.jpg" for i in range(200)]
# 150 of one class, 45 of another, 5 of a rare one.
STRATA = [1] * 150 + [2] * 45 + [3] * 5
ORDER = stratified_order(NAMES, STRATA, 0)
NO_FOLDS: dict[str, Any] = {"folds": None, "fold": None}


def parts(fraction: float = 1.0, **sizes: Any) -> dict[str, list[int]]:
    sizes = {"val_size": 0.2, "test_size": 0, **NO_FOLDS, **sizes}
    return {part: stretch(ORDER, part, fraction, **sizes) for part in ("train", "val", "test")}


def test_parts_are_disjoint_whole_and_of_the_sizes_asked_for() -> None:
    found = parts(val_size=0.25, test_size=20)
    assert {part: len(images) for part, images in found.items()} == {"train": 130, "val": 50, "test": 20}
    assert sorted(sum(found.values(), [])) == list(range(200))  # noqa: RUF017


@pytest.mark.parametrize("seed", range(5))
def test_every_part_holds_every_class_in_its_proportion(seed: int) -> None:
    order = stratified_order(NAMES, STRATA, seed)
    val = stretch(order, "val", 1.0, val_size=40, test_size=0, **NO_FOLDS)
    counts = Counter(STRATA[i] for i in val)
    assert abs(counts[1] - 30) <= 1
    assert abs(counts[2] - 9) <= 1
    assert counts[3] in (0, 1, 2)


def test_the_order_of_a_listing_changes_nothing() -> None:
    shuffled = list(range(200))
    random.Random(1).shuffle(shuffled)
    again = stratified_order([NAMES[i] for i in shuffled], [STRATA[i] for i in shuffled], 0)
    assert [NAMES[shuffled[i]] for i in again] == [NAMES[i] for i in ORDER]


def test_the_seed_changes_the_parts() -> None:
    assert stratified_order(NAMES, STRATA, 1)[:40] != ORDER[:40]


def test_every_image_is_validated_in_exactly_one_fold() -> None:
    folds = [parts(folds=5, fold=k) for k in range(5)]
    assert sorted(i for fold in folds for i in fold["val"]) == list(range(200))
    assert all(sorted(fold["train"] + fold["val"]) == list(range(200)) for fold in folds)
    assert all(len(fold["val"]) == 40 for fold in folds)
    # The rare class' five images are dealt to all folds, not to one.
    assert max(sum(STRATA[i] == 3 for i in fold["val"]) for fold in folds) <= 2


def test_a_smaller_subset_is_contained_in_a_larger_one() -> None:
    subsets = [set(parts(fraction)["train"]) for fraction in (0.1, 0.25, 0.5, 1.0)]
    assert [len(subset) for subset in subsets] == [16, 40, 80, 160]
    assert all(small < large for small, large in itertools.pairwise(subsets))
    assert Counter(STRATA[i] for i in subsets[1])[2] in range(8, 11)


def test_the_test_part_is_the_same_in_every_fold_and_in_none_of_them() -> None:
    folds = [parts(folds=3, fold=k, test_size=17) for k in range(3)]
    assert len({tuple(fold["test"]) for fold in folds}) == 1
    assert sorted(i for fold in folds for i in fold["val"]) == sorted(set(range(200)) - set(folds[0]["test"]))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"val_size": 200}, r"dataset\.val_size: 200 of 200 images"),
        ({"val_size": -1}, r"dataset\.val_size: -1"),
        ({"val_size": 1.5}, r"dataset\.val_size: 1\.5"),
        ({"val_size": 100, "test_size": 100}, "leave none for training"),
        ({"folds": 5}, r"dataset\.fold: None; of 5 folds there are 0\.\.4"),
        ({"folds": 5, "fold": 5}, r"dataset\.fold: 5; of 5 folds there are 0\.\.4"),
        ({"fold": 1}, r"dataset\.folds: None; give 2 to 200"),
        ({"folds": 201, "fold": 1}, r"dataset\.folds: 201; give 2 to 200"),
        ({"fraction": 0}, r"dataset\.fraction: 0 is not allowed"),
    ],
)
def test_parts_that_cannot_be_are_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        parts(**wrong)
