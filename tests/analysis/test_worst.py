"""The worst images, of detections and objects written by hand."""

from __future__ import annotations

import numpy as np

from detlab.analysis.errors import Errors
from detlab.analysis.judged import Judged
from detlab.analysis.worst import Believed

# Image 5: a dog that is found and one that is not, and a believed box where nothing is. Image 3: a dog found. Image 9: two dogs
# not found, and a crowd region with a detection in it. Image 4 is empty.
TRUTH = {
    "images": [{"id": 5, "file_name": "five.png"}, {"id": 3}, {"id": 9}, {"id": 4}],
    "categories": [{"id": 1, "name": "dog"}],
    "annotations": [
        {"id": i, "image_id": image, "category_id": 1, "bbox": box, "iscrowd": crowd}
        for i, (image, box, crowd) in enumerate(
            [
                (5, [0, 0, 10, 10], 0),
                (5, [30, 0, 10, 10], 0),
                (3, [0, 0, 10, 10], 0),
                (9, [0, 0, 10, 10], 0),
                (9, [30, 0, 10, 10], 0),
                (9, [60, 60, 30, 30], 1),
            ],
            start=1,
        )
    ],
}
RESULTS = [
    {"image_id": image, "category_id": 1, "bbox": box, "score": score}
    for image, box, score in (
        (5, [0, 0, 10, 10], 0.9),
        (5, [50, 50, 10, 10], 0.8),
        (5, [30, 0, 10, 10], 0.4),
        (3, [0, 0, 10, 10], 0.7),
        (9, [65, 65, 5, 5], 0.9),
        (4, [0, 0, 5, 5], 0.1),
    )
]


def worst(threshold: float) -> list[dict[str, object]]:
    return Believed.of(Errors.of(Judged.of(TRUTH, RESULTS, "bbox")), np.array([threshold])).worst()


def test_images_stand_by_the_number_of_errors_above_the_threshold() -> None:
    assert worst(0.5) == [
        {"image_id": 5, "file_name": "five.png", "errors": 2, "wrong": {"background": 1}, "not_found": 1},
        {"image_id": 9, "file_name": None, "errors": 2, "wrong": {}, "not_found": 2},
    ]


def test_another_threshold_makes_other_errors() -> None:
    assert [(one["image_id"], one["errors"]) for one in worst(0.05)] == [(9, 2), (4, 1), (5, 1)]
    assert [(one["image_id"], one["errors"]) for one in worst(0.85)] == [(9, 2), (3, 1), (5, 1)]
    assert worst(1.0)[0]["errors"] == 2
