"""The flat index says what the files said, in arrays."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from detlab.data.index import Index, IndexBuilder, SegmentationsBuilder, Strings
from detlab.errors import UserError
from detlab.structures import ClassMap, Keypoints

POINTS = Keypoints(("a", "b"), (), (0.1, 0.2))


def example() -> Index:
    """Three images of two classes: two objects, none, one crowd region; polygons, nothing, run lengths."""
    builder = IndexBuilder(ClassMap(("person", "dog"), (1, 18)), POINTS)
    builder.add_image("a.jpg", 7, 10, 20)
    builder.add_object(
        annotation_id=3, box=[1, 2, 3, 4], label=1, area=5.5, polygons=[[1, 2, 4, 2, 4, 6], [0, 0, 1, 0, 1, 1]],
        points=[1, 2, 2, 0, 0, 0],
    )  # fmt: skip
    builder.add_object(annotation_id=1, box=[0.1, 0.2, 0.3, 0.4], label=2, area=0.12)
    builder.add_image("b.jpg", 2, 30, 40)
    builder.add_image("c.jpg", 5, 2, 3)
    builder.add_object(annotation_id=9, box=[0, 0, 3, 2], label=2, area=6, crowd=True, runs="06")
    return builder.build()


def test_an_index_says_what_was_put_in() -> None:
    index = example()
    assert index.file_names[:] == ["a.jpg", "b.jpg", "c.jpg"]
    assert index.image_ids.tolist() == [7, 2, 5]
    assert index.sizes.tolist() == [[10, 20], [30, 40], [2, 3]]
    assert index.image_of.tolist() == [0, 0, 2]
    assert index.boxes[1].tolist() == [0.1, 0.2, 0.3, 0.4]
    assert index.crowd.tolist() == [False, False, True]
    assert index.iou_types == ("bbox", "segm", "keypoints")
    assert index.points is not None
    assert index.points[:, 0].tolist() == [[1, 2, 2], [0, 0, 0], [0, 0, 0]]
    outlines = index.segmentations
    assert outlines is not None
    assert outlines.in_coco(0, 10, 20) == [[1, 2, 4, 2, 4, 6], [0, 0, 1, 0, 1, 1]]
    assert outlines.in_coco(1, 10, 20) is None
    assert outlines.in_coco(2, 2, 3) == {"size": [2, 3], "counts": "06"}


def test_images_are_selected_with_all_that_is_theirs() -> None:
    index = example().select([2, 0])
    assert index.file_names[:] == ["c.jpg", "a.jpg"]
    assert index.annotation_ids.tolist() == [9, 3, 1]
    assert index.image_of.tolist() == [0, 1, 1]
    assert index.segmentations is not None
    assert index.segmentations.in_coco(0, 2, 3) == {"size": [2, 3], "counts": "06"}
    assert index.segmentations.in_coco(1, 10, 20) == [[1, 2, 4, 2, 4, 6], [0, 0, 1, 0, 1, 1]]
    assert index.segmentations.in_coco(2, 10, 20) is None


def test_objects_are_kept_with_all_that_is_theirs() -> None:
    index = example().keep(np.array([False, True, True]))
    assert index.annotation_ids.tolist() == [1, 9]
    assert index.offsets.tolist() == [0, 1, 1, 2]
    assert len(index) == 3
    assert example().keep(np.zeros(3, bool)).offsets.tolist() == [0, 0, 0, 0]


def test_nothing_can_be_selected() -> None:
    index = example().select([])
    assert len(index) == 0
    assert len(index.boxes) == 0
    assert index.keep(np.zeros(0, bool)).offsets.tolist() == [0]


def test_classes_are_taken_by_name_in_the_order_given() -> None:
    index = example().of_classes(["dog", "person"], lacking_allowed=False)
    assert index.class_map == ClassMap(("dog", "person"), (18, 1))
    assert index.labels.tolist() == [2, 1, 1]
    only_dogs = example().of_classes(["dog"], lacking_allowed=False)
    assert only_dogs.labels.tolist() == [1, 1]
    assert only_dogs.annotation_ids.tolist() == [1, 9]
    assert len(only_dogs) == 3


def test_a_class_that_the_files_lack_is_named_with_those_that_they_have() -> None:
    with pytest.raises(UserError, match=r"dataset\.classes: no class 'cat'; the files have person, dog"):
        example().of_classes(["cat"], lacking_allowed=False)
    assert example().of_classes(["cat", "dog"], lacking_allowed=True).class_map.category_ids == (19, 18)


def test_outlines_and_points_may_be_left_out() -> None:
    assert example().only(["bbox"]).iou_types == ("bbox",)
    with pytest.raises(UserError, match="'keypoints', but the files hold only bbox, segm"):
        example().only(["bbox", "segm"]).only(["keypoints"])


@pytest.mark.parametrize(
    ("value", "dtype"), [(123.7, np.int32), (1 / 3, np.float64), (1e9, np.float64), (float("nan"), np.float64)]
)
def test_coordinates_are_given_back_exactly(value: float, dtype: type) -> None:
    builder = SegmentationsBuilder()
    builder.add_polygons([[value, 0.01, 5, 6.25, 7, 8]])
    outlines = builder.build()
    assert outlines.coordinates.dtype == dtype
    np.testing.assert_array_equal(outlines.polygons(0)[0], [value, 0.01, 5, 6.25, 7, 8])


def test_every_number_of_two_decimals_is_kept_in_hundredths() -> None:
    numbers = [float(f"{i / 100:.2f}") for i in range(0, 200_000, 7)]
    builder = SegmentationsBuilder()
    builder.add_polygons([numbers])
    outlines = builder.build()
    assert outlines.coordinates.dtype == np.int32
    assert outlines.polygons(0)[0].tolist() == numbers


def test_strings_of_any_script_are_given_back() -> None:
    strings = Strings(["a/b.jpg", "", "größe.png", "写真.jpg", "\udcff.jpg"])
    assert strings[:] == ["a/b.jpg", "", "größe.png", "写真.jpg", "\udcff.jpg"]
    assert strings[-1] == "\udcff.jpg"
    assert strings.take(np.array([3, 0]))[:] == ["写真.jpg", "a/b.jpg"]
    assert "a/b.jpg" in strings


def test_an_index_goes_to_a_worker_whole() -> None:
    again = pickle.loads(pickle.dumps(example()))
    assert again.file_names[:] == example().file_names[:]
    np.testing.assert_array_equal(again.boxes, example().boxes)
