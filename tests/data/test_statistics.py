"""Statistics: what was made by hand is counted and measured, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from detlab.data.cache import ImageCache
from detlab.data.dataset import IndexedDataset
from detlab.data.index import Floats, IndexBuilder, Integers
from detlab.data.statistics import QUANTILES, SIZES, Objects, objects_of, statistics
from detlab.data.transforms import keep_objects, trainable_objects
from detlab.structures import ClassMap, IouType, Keypoints

CLASSES = ClassMap(("cat", "dog", "emu"), (7, 3, 9))


def hand_made(folder: Path) -> IndexedDataset:
    """Three images: a cat, and a dog across the border; nothing; two dogs, a crowd, an ignored cat, a cat beside the image."""
    builder = IndexBuilder(CLASSES)
    rows: list[tuple[tuple[int, int], list[dict[str, Any]]]] = [
        ((50, 100), [{"label": 1, "box": [10, 5, 20, 40]}, {"label": 2, "box": [90, 40, 30, 30]}]),
        ((60, 60), []),
        (
            (80, 40),
            [
                {"label": 2, "box": [0, 0, 8, 8]},
                {"label": 2, "box": [10, 10, 30, 60]},
                {"label": 2, "box": [0, 0, 40, 40], "crowd": True},
                {"label": 1, "box": [1, 1, 5, 5], "ignored": True},
                {"label": 1, "box": [45, 10, 10, 10]},
            ],
        ),
    ]
    for number, ((height, width), objects) in enumerate(rows, 1):
        Image.new("RGB", (width, height)).save(folder / f"{number}.png")
        builder.add_image(f"{number}.png", number, height, width)
        for number_of_object, one in enumerate(objects, 1):
            builder.add_object(annotation_id=number_of_object, area=1.0, **one)
    index = builder.build()
    return IndexedDataset(index, folder, name="hand-made", cache=ImageCache.of("none", index))


class Plain:
    """A data set without an index, as a user's own may be."""

    def __init__(self, dataset: IndexedDataset) -> None:
        self._dataset = dataset
        self.class_map, self.image_names = dataset.class_map, dataset.image_names
        self.iou_types: tuple[IouType, ...] = dataset.iou_types
        self.keypoints: Keypoints | None = None

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Any:
        raise AssertionError("decoded for statistics")

    def get_height_and_width(self, index: int) -> tuple[int, int]:
        return self._dataset.get_height_and_width(index)

    def ground_truth(self) -> dict[str, Any]:
        truth = self._dataset.ground_truth()
        return {**truth, "annotations": truth["annotations"][::-1]}


def test_objects_are_those_that_training_learns_cut_as_training_cuts_them(tmp_path: Path) -> None:
    dataset = hand_made(tmp_path)
    found = objects_of(dataset)
    assert found.left_out == 3
    for i in range(len(dataset)):
        image, target = dataset[i]
        target = keep_objects(target, ~target["ignored"])  # type: ignore[typeddict-item]
        learnt: Any = trainable_objects(image, target)
        learnt = learnt[0] if isinstance(learnt, tuple) else learnt
        mine = found.image_of == i
        assert torch.equal(torch.from_numpy(found.boxes[mine]).float(), learnt["boxes"].reshape(-1, 4))
        assert found.labels[mine].tolist() == learnt["labels"].tolist()


def test_images_and_objects_are_counted_by_class(tmp_path: Path) -> None:
    numbers = statistics(objects_of(hand_made(tmp_path)))
    assert (numbers.images, numbers.empty_images, numbers.objects, numbers.left_out) == (3, 1, 4, 3)
    assert numbers.objects_by_class.tolist() == [1, 3, 0]
    assert numbers.images_by_class.tolist() == [1, 2, 0]
    assert numbers.objects_per_image.edges.tolist() == [0, 1, 2, 3]
    assert numbers.objects_per_image.counts.tolist() == [1, 0, 2]


def test_a_data_set_without_an_index_gives_the_same_objects_from_its_ground_truth_undecoded(tmp_path: Path) -> None:
    dataset = hand_made(tmp_path)
    from_index, from_truth = objects_of(dataset), objects_of(Plain(dataset))
    assert from_truth.left_out == from_index.left_out
    assert from_truth.sizes.tolist() == from_index.sizes.tolist()
    for field in ("image_of", "boxes", "labels"):
        assert getattr(from_truth, field).tolist() == getattr(from_index, field)[::-1].tolist()


def boxes_of(*sides: tuple[float, float]) -> Objects:
    """One image with a box of each width and height."""
    boxes: Floats = np.array([[0, 0, *both] for both in sides], np.float64).reshape(-1, 4)
    places: Integers = np.zeros(len(sides), np.int64)
    return Objects(CLASSES, np.array([[500, 400]]), places, boxes, places + 1, 0)


def test_sizes_are_those_of_boxes_after_a_resize_and_the_bounds_belong_to_the_larger_size() -> None:
    objects = boxes_of((32, 32), (31, 33), (96, 96), (95, 97), (16, 16))
    assert [SIZES[place] for place in objects.size_of] == ["medium", "small", "large", "medium", "small"]
    larger = objects.resized(np.array([[1000, 1200]]))
    assert larger.boxes[4].tolist() == [0, 0, 48, 32]
    assert (larger.widths[4], larger.heights[4]) == (48, 32)
    assert statistics(larger).objects_by_size.tolist() == [0, 3, 2]


def test_measures_fall_into_bins_that_grow_by_the_same_factor_and_hold_each_once() -> None:
    numbers = statistics(boxes_of((16, 64), (16, 64), (17, 34), (300, 150)))
    widths = numbers.widths
    assert widths.counts.sum() == numbers.aspect_ratios.counts.sum() == 4
    assert widths.counts[0] == 3  # 16 belongs to the bin that it begins
    assert widths.edges[0] == 16
    assert widths.edges[-2] <= 300 < widths.edges[-1]
    factors = widths.edges[1:] / widths.edges[:-1]
    assert factors == pytest.approx(np.full(len(factors), 2**0.25))
    assert widths.quantiles[[0, 3, -1]].tolist() == [16, 16.5, 300]
    assert numbers.aspect_ratios.quantiles[[0, -1]].tolist() == [0.5, 4]
    assert numbers.scales.quantiles[0] == pytest.approx((17 * 34) ** 0.5)
    assert len(widths.quantiles) == len(QUANTILES)


def test_without_objects_there_are_no_bins_and_no_quantiles() -> None:
    numbers = statistics(boxes_of())
    assert (numbers.images, numbers.empty_images, numbers.objects) == (1, 1, 0)
    assert numbers.objects_by_size.tolist() == [0, 0, 0]
    assert len(numbers.widths.counts) == len(numbers.widths.edges) == 0
    assert np.isnan(numbers.widths.quantiles).all()
    assert numbers.objects_per_image.counts.tolist() == [1]


def test_crowded_images_share_bins_of_several_numbers() -> None:
    objects = boxes_of(*[(10, 10)] * 95)
    spread = statistics(objects).objects_per_image
    assert len(spread.counts) <= 40
    assert spread.counts[-1] == spread.counts.sum() == 1
    assert spread.edges[-2] <= 95 < spread.edges[-1]
    assert set(np.diff(spread.edges)) == {3.0}
