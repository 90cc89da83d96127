"""Confusion, calibration and likely label errors of one image written by hand."""

from __future__ import annotations

import numpy as np
import pytest

from detlab.analysis.calibration import calibration_of
from detlab.analysis.confusion import confusion_of
from detlab.analysis.curves import curves_of
from detlab.analysis.errors import Errors
from detlab.analysis.judged import Judged
from detlab.analysis.label_errors import label_errors_of
from detlab.evaluation.coco import score

# Categories by id: dog 2, cat 4. A cat that is found, a cat taken for a dog, a dog that nobody sees, and a crowd of cats.
TRUTH = {
    "images": [{"id": 1, "height": 99, "width": 99, "file_name": "a.png"}, {"id": 2, "height": 99, "width": 99}],
    "categories": [{"id": 4, "name": "cat"}, {"id": 2, "name": "dog"}],
    "annotations": [
        {"id": 11, "image_id": 1, "category_id": 4, "bbox": [0, 0, 10, 10]},
        {"id": 12, "image_id": 1, "category_id": 4, "bbox": [20, 0, 10, 10]},
        {"id": 13, "image_id": 1, "category_id": 2, "bbox": [40, 0, 10, 10]},
        {"id": 14, "image_id": 1, "category_id": 4, "bbox": [60, 60, 30, 30], "iscrowd": 1},
    ],
}
RESULTS = [
    {"image_id": 1, "category_id": category, "bbox": box, "score": confidence}
    for category, box, confidence in (
        (4, [0, 0, 10, 10], 0.85),
        (2, [20, 0, 10, 10], 0.75),
        (4, [0, 40, 10, 10], 0.95),
        (4, [65, 65, 5, 5], 0.95),
        (2, [0, 80, 10, 10], 0.25),
    )
]
LEAST = np.array([0.5, 0.5])


@pytest.fixture
def judged() -> Judged:
    return Judged.of(TRUTH, RESULTS, "bbox")


def test_a_confusion_matrix_has_the_background_beside_the_classes(judged: Judged) -> None:
    # Rows: dog, cat, background; columns: taken for dog, cat, background.
    assert confusion_of(judged, LEAST) == [[0, 0, 1], [1, 1, 0], [0, 1, 0]]
    assert confusion_of(judged, np.array([0.1, 1.0])) == [[0, 0, 1], [1, 0, 1], [1, 0, 0]]
    assert confusion_of(Judged.of(TRUTH, [], "bbox"), LEAST) == [[0, 0, 1], [0, 0, 2], [0, 0, 0]]


def test_the_calibration_error_is_the_mean_difference_of_score_and_precision(judged: Judged) -> None:
    told = calibration_of(judged)
    # By hand, of the four outside the crowd region: 0.85 is right, the others are wrong.
    assert told["error"] == pytest.approx((0.15 + 0.75 + 0.95 + 0.25) / 4)
    assert [one["count"] for one in told["bins"]] == [0, 0, 1, 0, 0, 0, 0, 1, 1, 1]
    assert (told["bins"][8]["score"], told["bins"][8]["precision"]) == (pytest.approx(0.85), 1.0)
    assert np.isnan(calibration_of(Judged.of(TRUTH, [], "bbox"))["error"])


def test_likely_label_errors_are_a_coco_file_of_what_is_not_annotated_and_what_is_never_found(judged: Judged) -> None:
    told = label_errors_of(Errors.of(judged), TRUTH, RESULTS, LEAST)
    assert [image["id"] for image in told["images"]] == [1]
    assert told["annotations"] == [
        {"id": 1, "image_id": 1, "category_id": 4, "bbox": [0, 40, 10, 10], "score": 0.95, "area": 100.0, "iscrowd": 0,
         "review": "not annotated"},
        {"id": 2, "image_id": 1, "category_id": 2, "bbox": [40, 0, 10, 10], "area": 100, "iscrowd": 0,
         "review": "never found", "annotation_id": 13},
    ]  # fmt: skip
    # As a ground truth of its own: each of its objects is found by itself.
    again = [{**row, "score": 1.0} for row in told["annotations"]]
    assert score(told, again, "bbox")["bbox/AP"] == pytest.approx(1.0)


def test_a_classs_precision_over_recall_has_its_ap50_as_its_mean(judged: Judged) -> None:
    dog, cat = curves_of(judged)
    assert dog == [0.0] * 101
    # The wrong one first, then one of two cats: 1/2 up to a recall of 0.5.
    assert cat == [pytest.approx(0.5)] * 51 + [0.0] * 50
    assert (sum(cat) / 101 + 0) / 2 == pytest.approx(score(TRUTH, RESULTS, "bbox")["bbox/AP50"])
