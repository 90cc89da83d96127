"""Errors image by image, and which images are shown."""

from __future__ import annotations

from typing import Any

import pytest

from detlab.analysis.comparison import Compared, compared, errors_by_image, most_different
from detlab.evaluation.coco import matched

BOX = [0.0, 0.0, 40.0, 40.0]
FAR = [200.0, 0.0, 40.0, 40.0]
TRUTH: dict[str, Any] = {
    "images": [{"id": 7}, {"id": 3}, {"id": 5}],
    "categories": [{"id": 1, "name": "a"}],
    "annotations": [
        {"image_id": 3, "category_id": 1, "bbox": BOX},
        {"image_id": 3, "category_id": 1, "bbox": FAR},
        {"image_id": 5, "category_id": 1, "bbox": BOX},
        {"image_id": 7, "category_id": 1, "bbox": BOX, "iscrowd": 1},
    ],
}


def row(image_id: int, box: list[float], score: float) -> dict[str, Any]:
    return {"image_id": image_id, "category_id": 1, "bbox": box, "score": score}


def test_right_missed_and_wrong_are_counted_by_hand() -> None:
    rows = [row(3, BOX, 0.9), row(3, BOX, 0.8), row(3, FAR, 0.4), row(5, FAR, 0.9), row(7, BOX, 0.9), row(7, FAR, 0.9)]
    errors = errors_by_image(matched(TRUTH, rows, "bbox"), 3, 0.5)
    # By id: image 3 (one found, its duplicate wrong, the other object's detection below the threshold), 5, and 7 with a crowd.
    assert errors.right.tolist() == [1, 0, 0]
    assert errors.missed.tolist() == [1, 1, 0]
    assert errors.wrong.tolist() == [1, 1, 1]
    assert errors.mean.tolist() == [2, 2, 1]


def test_a_box_that_fits_loosely_is_an_error_at_the_higher_thresholds() -> None:
    # IoU 32 / 40 = 0.8: found at seven of the ten thresholds, else both missed and wrong.
    errors = errors_by_image(matched(TRUTH, [row(5, [0.0, 0.0, 40.0, 32.0], 0.9)], "bbox"), 3, 0.5)
    assert errors.mean[1] == pytest.approx(3 * 2 / 10)


def both(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> Compared:
    sides = (matched(TRUTH, rows, "bbox") for rows in (first, second))
    return compared(*sides, "bbox", images=3, resamples=100, seed=0, threshold=0.5)


def test_the_images_with_the_most_unequal_errors_come_first_and_equal_ones_not_at_all() -> None:
    found = both([row(3, BOX, 0.9), row(3, FAR, 0.9), row(5, BOX, 0.9)], [row(5, FAR, 0.9)])
    # Image 3 (index 0): 0 against 2 errors; image 5 (index 1): 0 against 2; image 7 (index 2): none.
    assert most_different([found], 5) == [0, 1]
    assert most_different([found], 1) == [0]
    assert most_different([both([], [])], 5) == []


def test_only_numbers_that_both_have_are_compared() -> None:
    found = both([row(3, BOX, 0.9)], [])
    assert found.numbers["bbox/AP"] == (pytest.approx(34 / 101), 0.0)  # one of three objects found: recalls 0 to 0.33
    assert set(found.intervals) == {"bbox/AP", "bbox/AP50"}
    assert len(found.verdicts) == 2
