"""Operating thresholds: the best F1, or a wanted precision, by class."""

from __future__ import annotations

from typing import Any

import pytest

from detlab.analysis.judged import Judged
from detlab.analysis.thresholds import Operating, operating_thresholds, record_of
from detlab.structures import ClassMap

PLACES = [(10.0 * i, 0.0, 8.0, 8.0) for i in range(8)]


def matched(objects: list[int], found: list[tuple[int, float]]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Cats (category 4) at some of the places, and detections (place, score)."""
    truth = {
        "images": [{"id": 1, "height": 20, "width": 90}],
        "categories": [{"id": 4, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": [{"id": i, "image_id": 1, "category_id": 4, "bbox": PLACES[i]} for i in objects],
    }
    rows = [{"image_id": 1, "category_id": 4, "bbox": list(PLACES[i]), "score": s} for i, s in found]
    return truth, rows


# Right at 0.9, 0.8 and 0.6, wrong at 0.7 and 0.4; four objects.
CURVE = matched([0, 1, 2, 3], [(0, 0.9), (1, 0.8), (5, 0.7), (2, 0.6), (6, 0.4)])


def test_the_threshold_of_the_best_f1_lies_between_the_last_that_is_believed_and_the_next() -> None:
    dog, cat = operating_thresholds(Judged.of(*CURVE, "bbox"))
    # By hand: F1 of the first 1 to 5 is 2/5, 4/6, 4/7, 6/8, 6/9.
    assert cat == Operating(pytest.approx(0.5), 0.75, 0.75, 0.75)
    assert dog == Operating(None)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (1.0, Operating(0.75, 1.0, 0.5, 4 / 6)),
        (0.75, Operating(0.5, 0.75, 0.75, 0.75)),
        (0.6, Operating(0.2, 0.6, 0.75, 6 / 9)),
        (0.5, Operating(0.2, 0.6, 0.75, 6 / 9)),
    ],
)
def test_the_threshold_of_a_precision_is_the_lowest_that_has_it(wanted: float, expected: Operating) -> None:
    found = operating_thresholds(Judged.of(*CURVE, "bbox"), precision=wanted)[1]
    assert found == Operating(*(pytest.approx(value) for value in vars(expected).values()))


def test_a_precision_that_no_threshold_has_gives_none() -> None:
    found = matched([0], [(5, 0.9), (0, 0.8)])
    assert operating_thresholds(Judged.of(*found, "bbox"), precision=0.9)[1] == Operating(None)


def test_detections_of_one_score_are_believed_together_or_not_at_all() -> None:
    found = matched([0, 1], [(0, 0.9), (1, 0.5), (5, 0.5), (6, 0.5)])
    cat = operating_thresholds(Judged.of(*found, "bbox"))[1]
    # The first alone 2/3, all four 4/6: of equals the higher threshold.
    assert cat == Operating(pytest.approx(0.7), 1.0, 0.5, pytest.approx(2 / 3))


def test_a_checkpoints_record_stands_in_the_order_of_the_labels_and_holds_plain_values_only() -> None:
    record = record_of(*CURVE, "bbox", ClassMap(("cat", "dog"), (4, 2)), sigmas=None)
    assert record["thresholds"] == [pytest.approx(0.5), None]
    assert (record["iou_type"], record["by"]) == ("bbox", "f1")
    assert {type(value) for field in ("thresholds", "precision", "recall", "f1") for value in record[field]} == {
        float,
        type(None),
    }


def test_a_checkpoints_record_may_be_of_a_wanted_precision_and_says_so() -> None:
    record = record_of(*CURVE, "bbox", ClassMap(("cat", "dog"), (4, 2)), sigmas=None, precision=0.9)
    assert record["by"] == "precision 0.9"
    assert record["thresholds"] == [pytest.approx(0.75), None]  # the two at 0.9 and 0.8 are right, the next is not
    assert record["precision"] == [1.0, None]


def test_what_lies_in_a_crowd_region_does_not_move_the_threshold() -> None:
    truth, rows = CURVE
    region = {"id": 9, "image_id": 1, "category_id": 4, "bbox": [50, 0, 40, 8], "iscrowd": 1}
    crowded = {**truth, "annotations": [*truth["annotations"], region]}
    # The two wrong ones lie in it: all three others are right, down to the lowest.
    cat = operating_thresholds(Judged.of(crowded, rows, "bbox"))[1]
    assert cat == Operating(pytest.approx(0.3), 1.0, 0.75, pytest.approx(6 / 7))
