"""Every sample is held against the contract, and the error names data set, image and object."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from detlab.errors import UserError
from detlab.structures import ClassMap, Target, check_sample

CLASSES = ClassMap(("cat", "dog"), (5, 9))


def target(**changes: Any) -> Target:
    fields: dict[str, Any] = {
        "boxes": torch.tensor([[1.0, 1, 5, 5], [0, 0, 20, 10]]),
        "labels": torch.tensor([1, 2]),
        "image_id": 1,
        "area": torch.tensor([16.0, 200.0]),
        "iscrowd": torch.zeros(2, dtype=torch.uint8),
    }
    return {**fields, **changes}  # type: ignore[return-value]


def check(sample: Target) -> None:
    check_sample(torch.zeros(3, 10, 20, dtype=torch.uint8), sample, CLASSES, ("bbox",), "Cats, image a.png")


def second_box(*box: float) -> Callable[[], Target]:
    return lambda: target(boxes=torch.tensor([[1.0, 1, 5, 5], list(box)]))


def test_a_box_that_fills_its_image_and_a_target_without_objects_are_legal() -> None:
    check(target())
    check(
        target(
            boxes=torch.zeros(0, 4),
            labels=torch.zeros(0, dtype=torch.int64),
            area=torch.zeros(0),
            iscrowd=torch.zeros(0),
        )
    )


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (second_box(0, 0, 20.5, 10), "object 1 has a box outside its image of 10 x 20"),
        (second_box(-1, 0, 5, 5), "object 1 has a box outside"),
        (second_box(4, 0, 4, 5), "object 1 has a box of zero"),
        (second_box(4, 0, math.nan, 5), "object 1 has a box that is not finite"),
        (lambda: target(labels=torch.tensor([0, 1])), r"object 0 has label 0; allowed are 1\.\.2"),
        (lambda: target(labels=torch.tensor([1, 3])), r"object 1 has label 3; allowed are 1\.\.2"),
        (lambda: target(area=torch.zeros(1)), "area is torch.float32"),
        (lambda: target(boxes=torch.zeros(2, 4, dtype=torch.float64)), "boxes is torch.float64"),
        (lambda: target(masks=torch.zeros(2, 10, 19, dtype=torch.uint8)), r"masks is .*\[2, 10, 19\]; expected .*\[2, 10, 20\]"),
        (lambda: target(keypoints=torch.zeros(2, 17, 2)), "keypoints"),
        (lambda: target(area=torch.tensor([4.0, math.inf])), "object 1 has the area inf, which is not finite"),
        (lambda: target(keypoints=torch.full((2, 3, 3), 4.0)), "object 0 has the keypoints .* visibility of 0, 1 or 2"),
        (lambda: target(keypoints=torch.tensor([[[1.0, 1, 2]], [[math.nan, 1, 0]]])), "object 1 has the keypoints"),
        (lambda: target(masks=torch.full((2, 10, 20), 255, dtype=torch.uint8)), "masks hold 255"),
    ],
)  # fmt: skip
def test_a_bad_sample_is_refused_in_one_line_that_names_image_and_object(make: Callable[[], Target], said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        check(make())
    assert str(caught.value).startswith("Cats, image a.png: ")
    assert "\n" not in str(caught.value)


def test_a_missing_field_is_named() -> None:
    incomplete = target()
    del incomplete["area"]  # type: ignore[misc]
    with pytest.raises(UserError, match="lacks area"):
        check(incomplete)


def test_masks_are_missed_where_the_data_set_promises_them() -> None:
    with pytest.raises(UserError, match="lacks masks"):
        check_sample(
            torch.zeros(3, 10, 20, dtype=torch.uint8), target(), CLASSES, ("bbox", "segm"), "Cats, image a.png"
        )


def test_a_float_image_is_refused() -> None:
    with pytest.raises(UserError, match=r"float32 \[3, 10, 20\]; expected uint8"):
        check_sample(torch.zeros(3, 10, 20), target(), CLASSES, ("bbox",), "Cats, image a.png")


def test_a_class_map_goes_from_labels_to_names_and_the_files_own_ids() -> None:
    assert (CLASSES.name(2), CLASSES.category_id(2), len(CLASSES)) == ("dog", 9, 2)
    assert ClassMap(("a", "b")).category_ids == (1, 2)
    for names, ids in ((("a", "a"), ()), ((), ()), (("a", "b"), (1,)), (("a", "b"), (1, 1))):
        with pytest.raises(UserError, match="classes"):
            ClassMap(names, ids)
