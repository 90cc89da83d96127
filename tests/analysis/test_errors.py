"""Kinds of errors, after TIDE: each is counted as itself and nothing else, and mending gives what it should."""

from __future__ import annotations

import json
from typing import Any

import pytest
from conftest import SHARED

from detlab.analysis.errors import KINDS, Errors
from detlab.analysis.judged import Judged
from detlab.evaluation.coco import score
from detlab.masks import encode

CAT, DOG = 3, 7


def polygon(x: float, y: float, w: float, h: float) -> list[list[float]]:
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def truth(*objects: tuple[int, tuple[float, ...]], crowd: tuple[float, ...] | None = None) -> dict[str, Any]:
    """Objects (class, xywh) of one image of 100 x 200 pixels, and a crowd region of cats."""
    rows = [(category, box, 0) for category, box in objects] + ([(CAT, crowd, 1)] if crowd else [])
    return {
        "images": [{"id": 5, "height": 100, "width": 200, "file_name": "a.png"}],
        "categories": [{"id": CAT, "name": "cat"}, {"id": DOG, "name": "dog"}],
        "annotations": [
            {"id": i, "image_id": 5, "category_id": category, "bbox": list(box), "area": box[2] * box[3], "iscrowd": is_crowd,
             "segmentation": polygon(*box)}
            for i, (category, box, is_crowd) in enumerate(rows, start=1)
        ],
    }  # fmt: skip


def results(*found: tuple[int, tuple[float, ...], float]) -> list[dict[str, Any]]:
    """Detections (class, xywh, score) in that image, each with its box as a mask."""
    import numpy as np

    rows = []
    for category, (x, y, w, h), confidence in found:
        mask = np.zeros((1, 100, 200), bool)
        mask[0, int(y) : int(y + h), int(x) : int(x + w)] = True
        row = {"image_id": 5, "category_id": category, "bbox": [x, y, w, h], "score": confidence}
        rows.append({**row, "segmentation": encode(mask)[0]})
    return rows


FIRST, SECOND = (10, 10, 40, 40), (100, 10, 40, 40)
MOVED = (30, 10, 40, 40)  # IoU with FIRST: 20 / 60
# What is wrong beside a cat and a dog that are found, and the AP50 that it leaves: of a class with one object, found behind one
# wrong detection, 0.5; behind none, 1; not found, 0.
CASES: dict[str, tuple[list[Any], list[Any], float]] = {
    "class": ([(CAT, FIRST), (DOG, SECOND)], [(CAT, FIRST, 0.9), (CAT, SECOND, 0.8)], 0.5),
    "location": ([(CAT, FIRST), (DOG, SECOND)], [(CAT, MOVED, 0.9), (DOG, SECOND, 0.8)], 0.5),
    "both": ([(CAT, FIRST), (DOG, SECOND)], [(DOG, MOVED, 0.9), (CAT, FIRST, 0.9), (DOG, SECOND, 0.8)], 0.75),
    "duplicate": (
        [(CAT, FIRST), (CAT, SECOND), (DOG, (150, 50, 30, 30))],
        [(CAT, FIRST, 0.9), (CAT, FIRST, 0.8), (CAT, SECOND, 0.7), (DOG, (150, 50, 30, 30), 0.8)],
        # 51 recalls at precision 1, 50 at 2/3.
        (1 + (51 + 50 * 2 / 3) / 101) / 2,
    ),
    "background": (
        [(CAT, FIRST), (DOG, SECOND)],
        [(CAT, (150, 60, 30, 30), 0.95), (CAT, FIRST, 0.9), (DOG, SECOND, 0.8)],
        0.75,
    ),
    "missed": ([(CAT, FIRST), (DOG, SECOND)], [(CAT, FIRST, 0.9)], 0.5),
}  # fmt: skip


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_alone_is_counted_as_that_kind_and_nothing_else(kind: str, iou_type: Any) -> None:
    objects, found, left = CASES[kind]
    errors = Errors.of(Judged.of(truth(*objects), results(*found), iou_type))
    assert errors.counts == {other: int(other == kind) for other in KINDS}
    told = errors.summary()
    assert told["AP50"] == pytest.approx(left, abs=1e-12)
    assert told["AP50"] == pytest.approx(
        score(truth(*objects), results(*found), iou_type)[f"{iou_type}/AP50"], abs=1e-12
    )
    for other in KINDS:
        assert told["kinds"][other]["AP50"] == pytest.approx(1.0 if other == kind else left, abs=1e-12)
        assert told["kinds"][other]["gain"] == pytest.approx(1.0 - left if other == kind else 0, abs=1e-12)
    assert told["all"] == pytest.approx(1.0, abs=1e-12)


def errors_of(objects: list[Any], found: list[Any], **truth_settings: Any) -> Errors:
    return Errors.of(Judged.of(truth(*objects, **truth_settings), results(*found), "bbox"))


def test_what_lies_in_a_crowd_region_is_no_error_and_the_region_is_not_missed() -> None:
    crowd = (60, 50, 40, 40)
    found = [(CAT, FIRST, 0.9), (CAT, (62, 52, 20, 20), 0.95), (CAT, (75, 60, 20, 20), 0.95)]
    errors = errors_of([(CAT, FIRST)], found, crowd=crowd)
    assert sum(errors.counts.values()) == 0
    assert errors.average_precision() == pytest.approx(1.0)
    # A dog there is none of that crowd: it lies where no object is.
    errors = errors_of([(CAT, FIRST)], [*found, (DOG, (62, 52, 20, 20), 0.9)], crowd=crowd)
    assert {kind: count for kind, count in errors.counts.items() if count} == {"background": 1}


def test_of_several_wrong_detections_on_an_object_one_is_put_right_and_the_others_are_left_out() -> None:
    found = [(CAT, MOVED, 0.9), (CAT, (32, 10, 40, 40), 0.95), (CAT, SECOND, 0.5)]
    errors = errors_of([(CAT, FIRST), (CAT, SECOND)], found)
    assert errors.counts["location"] == 2
    assert errors.average_precision(("location",)) == pytest.approx(1.0)
    # On an object that was found nothing is left to be put right.
    errors = errors_of([(CAT, FIRST)], [(CAT, FIRST, 0.9), (CAT, MOVED, 0.95)])
    assert (errors.counts["location"], errors.average_precision(), errors.average_precision(("location",))) == (
        1,
        pytest.approx(0.5),
        pytest.approx(1.0),
    )


def test_a_class_mended_leaves_the_wrong_class_and_counts_for_the_right_one() -> None:
    errors = errors_of([(CAT, FIRST), (DOG, SECOND)], [(DOG, FIRST, 0.9), (DOG, SECOND, 0.8)])
    # No cat is found; the dog is, behind a wrong one.
    assert errors.average_precision() == pytest.approx(0.25)
    assert errors.average_precision(("class",)) == pytest.approx(1.0)
    # A class without an object is left out of the mean, but its detections are errors.
    errors = errors_of([(CAT, FIRST)], [(CAT, FIRST, 0.9), (DOG, FIRST, 0.8)])
    assert (errors.counts["class"], errors.average_precision()) == (1, pytest.approx(1.0))


def test_a_missed_class_that_is_no_longer_asked_for_counts_1_only_where_nothing_is_wrong_in_it() -> None:
    wrong = (CAT, (150, 60, 30, 30), 0.9)
    errors = errors_of([(CAT, FIRST), (DOG, SECOND)], [wrong, (DOG, SECOND, 0.8)])
    assert errors.average_precision(("missed",)) == pytest.approx(0.5)
    assert errors.average_precision(("missed", "background")) == pytest.approx(1.0)


def test_without_objects_there_is_no_ap_and_without_detections_all_is_missed() -> None:
    empty = errors_of([], [(CAT, FIRST, 0.9)])
    assert empty.counts["background"] == 1
    assert str(empty.average_precision()) == "nan"
    nothing = errors_of([(CAT, FIRST), (DOG, SECOND)], [])
    assert (nothing.counts["missed"], nothing.average_precision(), nothing.average_precision(KINDS)) == (
        2,
        0.0,
        pytest.approx(1.0),
    )


@pytest.mark.parametrize(("iou_type", "ap50"), [("bbox", 0.6969727247), ("segm", 0.5622883973)])
def test_on_a_hundred_images_of_coco_the_ap_is_cocos_and_mending_all_gives_1(iou_type: Any, ap50: float) -> None:
    folder = SHARED / "coco_val2014_100"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    files = {path.name: json.loads(path.read_text()) for path in folder.glob("*.json")}
    ground_truth = next(content for content in files.values() if isinstance(content, dict))
    found = next(content for name, content in files.items() if isinstance(content, list) and iou_type in name)
    errors = Errors.of(Judged.of(ground_truth, found, iou_type))
    told = errors.summary()
    assert told["AP50"] == pytest.approx(ap50, abs=1e-9)  # ../shared/README.md
    assert told["all"] == pytest.approx(1.0, abs=1e-12)
    wrong, counts = int(errors.judged.wrong.sum()), errors.counts
    assert sum(counts.values()) - counts["missed"] == wrong > 50
    assert all(told["kinds"][kind]["gain"] >= 0 for kind in KINDS)
