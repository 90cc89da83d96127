"""What becomes of faulty objects: refused, dropped or clipped; and what is no fault."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detlab import distributed
from detlab.data.dataset import readings_kept
from detlab.data.faults import KINDS, SEVERITIES, Fault, Reading, object_faults, scale_faults
from detlab.data.index import Index, IndexBuilder
from detlab.data.invalid import settle
from detlab.data.rules import class_counts, class_faults, oddities
from detlab.errors import UserError
from detlab.structures import ClassMap, Keypoints

SHARED = Path(__file__).resolve().parents[3] / "shared"
SIZE = (60, 80)


def index_of(*boxes: list[float], size: tuple[int, int] = SIZE, **fields: Any) -> Index:
    """One image with these boxes, x0, y0, width, height."""
    builder = IndexBuilder(ClassMap(("thing",)))
    builder.add_image("a.png", 1, *size)
    for i, box in enumerate(boxes):
        builder.add_object(annotation_id=i, box=box, label=1, **{"area": box[2] * box[3], **fields})
    return builder.build()


def reading(index: Index, *faults: Fault) -> Reading:
    return Reading(index, Path(), faults, Path("a.json"))


def kinds(index: Index) -> list[str]:
    return [fault.kind for fault in (*scale_faults(index), *object_faults(index))]


def test_every_kind_has_a_severity_and_says_what_to_do() -> None:
    assert all(kind.severity in SEVERITIES and kind.remedy for kind in KINDS.values())
    assert all(kind.severity == "error" for kind in KINDS.values() if kind.clips or kind.whole)


def test_a_box_that_reaches_out_by_rounding_is_no_fault_unless_nothing_of_it_is_inside() -> None:
    assert kinds(index_of([-0.9, 0, 20, 20], [60, 40, 21, 21])) == []
    assert kinds(index_of([60.5, 40, 21, 19])) == ["box outside"]
    # Cut at the border at 80 nothing is left of it, and a sample could not have it.
    assert kinds(index_of([80, 40, 0.5, 10])) == ["box empty"]


def test_in_an_image_of_unknown_size_no_box_is_outside() -> None:
    assert kinds(index_of([10, 10, 500, 500], size=(0, 0))) == []
    index = index_of([10, 10, 500, 500], [10, 10, 0, 5], size=(0, 0))
    assert settle(reading(index), "clip").boxes.tolist() == [[10, 10, 500, 500]]


def test_without_faults_the_index_stays_as_it_is() -> None:
    index = index_of([10, 10, 20, 20])
    assert all(settle(reading(index), invalid) is index for invalid in ("error", "drop", "clip", "keep"))


def test_a_word_that_is_none_of_the_three_is_refused() -> None:
    with pytest.raises(UserError, match=r"dataset.invalid: 'skip' is not allowed; allowed: error, drop, clip\."):
        settle(reading(index_of()), "skip")


def test_the_refusal_names_the_first_fault_and_counts_the_kinds() -> None:
    index = index_of([10, 10, 20, 20], [70, 10, 20, 20], [10, 10, 0, 20], [70, 20, 20, 20])
    with pytest.raises(UserError) as raised:
        settle(reading(index, Fault("unknown class", "b.png", 7, "category_id 9")), "error")
    first, second = str(raised.value).splitlines()
    assert first == (
        "a.json: b.png, annotation 7: category_id 9 (unknown class; add the class to the file, or correct the object's). 4 in all: "
        "2 box outside, 1 unknown class, 1 box empty."
    )
    assert second == "detlab validate lists them; dataset.invalid=drop or clip trains without them."


def test_clip_cuts_at_the_border_and_drops_what_that_does_not_mend(caplog: pytest.LogCaptureFixture) -> None:
    index = index_of([10, 10, 20, 20], [-5, 10, 20, 20], [10, 10, 0, 20], [90, 10, 20, 20])
    with caplog.at_level(logging.WARNING):
        settled = settle(reading(index, Fault("image unreadable", "c.png", None, "cut off")), "clip")
    assert settled.boxes.tolist() == [[10, 10, 20, 20], [0, 10, 15, 20]]
    assert settled.annotation_ids.tolist() == [0, 1]
    assert caplog.messages == [
        "a.json: 2 object(s) dropped, 1 clipped, 1 file(s) left out (2 box outside, 1 image unreadable, 1 box empty); "
        "detlab validate names them"
    ]


def test_clip_takes_points_out_of_the_image_for_unlabelled_and_leaves_the_others() -> None:
    builder = IndexBuilder(ClassMap(("thing",)), Keypoints(("a", "b"), (), (0.1, 0.1)))
    builder.add_image("a.png", 1, *SIZE)
    builder.add_object(annotation_id=1, box=[10, 10, 20, 20], label=1, area=400, points=[15, 15, 2, 90, 15, 1])
    settled = settle(reading(builder.build()), "clip")
    assert settled.points is not None
    assert settled.points.tolist() == [[[15, 15, 2], [0, 0, 0]]]


def test_only_the_first_of_several_processes_says_what_was_dropped(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    with caplog.at_level(logging.WARNING):
        assert len(settle(reading(index_of([10, 10, 0, 20])), "drop").labels) == 0
    assert caplog.messages == []


def test_readings_kept_within_others_are_the_same() -> None:
    with readings_kept() as outer:
        with readings_kept() as inner:
            assert inner is outer
        with readings_kept() as again:
            assert again is outer


@pytest.mark.parametrize("invalid", ["error", "drop", "clip"])
def test_boxes_that_are_all_fractions_are_refused_whatever_invalid_says(invalid: str) -> None:
    with pytest.raises(UserError, match=r"2 of 2 boxes lie between 0 and 1(.|\n)*no dataset.invalid mends this"):
        settle(reading(index_of([0.1, 0.2, 0.3, 0.3], [0.4, 0.4, 0.6, 0.6])), invalid)


def test_small_boxes_among_others_and_large_boxes_are_of_no_other_scale() -> None:
    assert kinds(index_of([0.1, 0.2, 0.5, 0.5], [10, 10, 20, 20])) == []
    # Portraits: each box begins near the corner and fills its image.
    assert kinds(index_of(*([[x, x, 78 - x, 58 - x] for x in (0, 1, 2, 3, 4, 5)]))) == []


def test_boxes_by_corners_are_told_from_boxes_that_reach_out() -> None:
    corners = [[10, 10, 30, 30], [50, 5, 70, 45], [40, 30, 60, 50], [5, 40, 20, 55]]
    assert kinds(index_of(*corners))[0] == "boxes by corners"
    assert set(kinds(index_of([70, 10, 20, 20], [10, 10, 20, 20], [10, 50, 20, 20], [5, 5, 9, 9]))) == {"box outside"}


def odd(index: Index, limit: int = 100) -> list[str]:
    return [fault.kind for fault in oddities(index, limit)]


def test_an_area_is_that_of_the_mask_or_of_the_box() -> None:
    square = [[10, 10, 30, 10, 30, 30]]  # half of the box
    assert odd(index_of([10, 10, 20, 20], polygons=square)) == []
    assert odd(index_of([10, 10, 20, 20], polygons=square, area=200)) == []
    assert odd(index_of([10, 10, 20, 20], polygons=square, area=90)) == ["area off"]
    # Without a mask a small area may be that of one which the file has not.
    assert odd(index_of([10, 10, 20, 20], area=90)) == []
    assert odd(index_of([10, 10, 20, 20], area=4000)) == ["area off"]


def test_a_mask_may_be_apart_from_its_box_by_two_pixels() -> None:
    def shifted(by: float) -> Index:
        return index_of([10, 10, 20, 20], polygons=[[10 + by, 10, 30, 10, 30, 30, 10 + by, 30]])

    assert odd(shifted(2)) == []
    assert odd(shifted(2.5)) == ["mask off its box"]


def test_many_run_lengths_in_one_image_are_measured() -> None:
    from detlab.masks import encode

    mask = np.zeros((1, *SIZE), np.uint8)
    mask[0, 10:30, 10:30] = 1
    runs = encode(mask)[0]["counts"]
    # Of each the box is one pixel further to the right.
    index = index_of(*([10 + i / 100, 10, 20, 20] for i in range(300)), runs=runs)
    assert odd(index, 300) == ["mask off its box"] * 99


def test_more_objects_than_a_model_reports_are_told_by_image_without_crowds() -> None:
    boxes = [[x, 10, 10, 10] for x in range(5)]
    assert odd(index_of(*boxes), 5) == []
    assert odd(index_of(*boxes), 4) == ["too many objects"]
    assert odd(index_of(*boxes, crowd=True), 4) == []
    assert odd(index_of(), 4) == ["no objects"]


def test_classes_are_counted_by_part_and_what_is_odd_in_them_is_told() -> None:
    classes = ClassMap(("cat", "Cat", "dog", "cow"))

    def part(*labels: list[int]) -> Index:
        builder = IndexBuilder(classes)
        for i, some in enumerate(labels):
            builder.add_image(f"{i}.png", i, *SIZE)
            for label in some:
                builder.add_object(annotation_id=label, box=[1, 1, 9, 9], label=label, area=81)
        return builder.build()

    parts = {"train": part([1, 1, 2], [1], [], [2] * 10), "val": part([1], [3])}
    counts = class_counts(parts)
    assert [(c.name, c.objects, c.images) for c in counts] == [
        ("cat", {"train": 3, "val": 1}, {"train": 2, "val": 1}),
        ("Cat", {"train": 11, "val": 0}, {"train": 2, "val": 0}),
        ("dog", {"train": 0, "val": 1}, {"train": 0, "val": 1}),
        ("cow", {"train": 0, "val": 0}, {"train": 0, "val": 0}),
    ]
    assert [(fault.kind, fault.said) for fault in class_faults(parts, counts)] == [
        ("class of few objects", "class 'cat': 3 object(s) in train"),
        ("class absent", "class 'Cat' has no object in val, but 11 in train"),
        ("class absent", "class 'dog' has no object in train, but 1 in val"),
        ("class unused", "no object of class 'cow'"),
        ("class names alike", "classes 'cat' and 'Cat'"),
    ]


@pytest.mark.parametrize(
    "file", ["coco_val2014_100/instances_val2014_100.json", "coco_keypoints_139099/gt_dataset.json"]
)
def test_in_cocos_own_files_nothing_is_wrong_or_odd(file: str) -> None:
    from detlab.data.coco import read_coco

    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is not there")
    read = read_coco(SHARED / file, Path(), None)
    assert list(read.faults) == []
    assert kinds(read.index) == []
    assert odd(read.index) == []
