"""What are the objects of a data set like: how many are there, of which classes, how large, of which shape?"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detlab.data.dataset import IndexedDataset
from detlab.data.index import Floats, Integers
from detlab.structures import ClassMap, DetectionDataset

SIZES = ("small", "medium", "large")
# The areas between them in square pixels; COCO's numbers (https://cocodataset.org/#detection-eval), here of boxes.
SIZE_BOUNDS = (32**2, 96**2)
# Which quantiles a distribution tells: from the least to the largest.
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
BINS_PER_OCTAVE = 4
MOST_BINS = 40


@dataclass(frozen=True)
class Objects:
    """The objects of one part that training learns: N in M images."""

    class_map: ClassMap
    sizes: Integers  # [M, 2], height and width in pixels
    image_of: Integers  # [N]
    boxes: Floats  # [N, 4], xyxy in pixels, cut at the image's border, none of them empty
    labels: Integers  # [N], 1..K
    left_out: (
        int  # further objects that training leaves out: crowd regions, VOC's `difficult`, boxes outside their image
    )

    def resized(self, sizes: Integers) -> Objects:
        """The same objects in images of other sizes, `[M, 2]` height and width."""
        factors = (sizes / self.sizes)[self.image_of]
        return dataclasses.replace(self, sizes=sizes, boxes=self.boxes * factors[:, [1, 0, 1, 0]])

    @property
    def widths(self) -> Floats:
        """Of the boxes, `[N]`, pixels."""
        return self.boxes[:, 2] - self.boxes[:, 0]

    @property
    def heights(self) -> Floats:
        """Of the boxes, `[N]`, pixels."""
        return self.boxes[:, 3] - self.boxes[:, 1]

    @property
    def size_of(self) -> Integers:
        """For each object the place of its size in `SIZES`, by its box's area, `[N]`."""
        return np.digitize(self.widths * self.heights, SIZE_BOUNDS)


def objects_of(dataset: DetectionDataset) -> Objects:
    """The objects of a data set, from its index where it has one, else from its ground truth; no image is decoded for it.

    Raises:
        UserError: of a data set that reads its samples for the ground truth, what it finds wrong with them.
    """
    if isinstance(dataset, IndexedDataset):
        index = dataset.index
        left_out = index.crowd | index.ignored
        return _learnt(
            index.class_map, index.sizes.astype(np.int64), index.image_of, index.boxes, index.labels, left_out
        )
    truth = dataset.ground_truth()
    number_of = {image["id"]: number for number, image in enumerate(truth["images"])}
    label_of = {category_id: label for label, category_id in enumerate(dataset.class_map.category_ids, 1)}
    rows = truth["annotations"]
    return _learnt(
        dataset.class_map,
        np.array([(image["height"], image["width"]) for image in truth["images"]], np.int64).reshape(-1, 2),
        np.array([number_of[row["image_id"]] for row in rows], np.int64),
        np.array([row["bbox"] for row in rows], np.float64).reshape(-1, 4),
        np.array([label_of[row["category_id"]] for row in rows], np.int64),
        np.array([bool(row["iscrowd"]) for row in rows], np.bool_),
    )


def _learnt(
    class_map: ClassMap,
    sizes: Integers,
    image_of: Integers,
    boxes_xywh: Floats,
    labels: Integers,
    left_out: NDArray[np.bool_],
) -> Objects:
    """Objects without those that training leaves out, their boxes cut as training cuts them."""
    border = sizes[image_of][:, [1, 0, 1, 0]]
    boxes = np.concatenate((boxes_xywh[:, :2], boxes_xywh[:, :2] + boxes_xywh[:, 2:]), 1).clip(0, border)
    learnt = (boxes[:, 2:] > boxes[:, :2]).all(1) & ~left_out
    return Objects(class_map, sizes, image_of[learnt], boxes[learnt], labels[learnt], int((~learnt).sum()))


@dataclass(frozen=True)
class Distribution:
    """How values are spread."""

    quantiles: Floats  # those of `QUANTILES`; nan where there are no values
    edges: Floats  # [B + 1], of the bins; bin b holds what is edges[b] or more and below edges[b + 1]
    counts: Integers  # [B]


@dataclass(frozen=True)
class Statistics:
    """Numbers of one part."""

    images: int
    empty_images: int  # without an object to learn
    objects: int
    left_out: int
    images_by_class: Integers  # [K]
    objects_by_class: Integers  # [K]
    objects_by_size: Integers  # in the order of `SIZES`
    objects_per_image: Distribution
    widths: Distribution  # in pixels
    heights: Distribution  # in pixels
    scales: Distribution  # square roots of the boxes' areas, in pixels
    aspect_ratios: Distribution  # height / width


def statistics(objects: Objects) -> Statistics:
    """Count and measure the objects of a part, in the sizes that they have there."""
    classes, images = len(objects.class_map), len(objects.sizes)
    per_image = np.bincount(objects.image_of, minlength=images)
    pairs = np.unique(np.stack((objects.image_of, objects.labels), 1), axis=0)
    return Statistics(
        images=images,
        empty_images=int((per_image == 0).sum()),
        objects=len(objects.labels),
        left_out=objects.left_out,
        images_by_class=np.bincount(pairs[:, 1], minlength=classes + 1)[1:],
        objects_by_class=np.bincount(objects.labels, minlength=classes + 1)[1:],
        objects_by_size=np.bincount(objects.size_of, minlength=len(SIZES)),
        objects_per_image=_of_counts(per_image),
        widths=_of_measures(objects.widths),
        heights=_of_measures(objects.heights),
        scales=_of_measures(np.sqrt(objects.widths * objects.heights)),
        aspect_ratios=_of_measures(objects.heights / objects.widths),
    )


def _quantiles(values: NDArray[np.number]) -> Floats:
    return np.quantile(values, QUANTILES) if len(values) else np.full(len(QUANTILES), np.nan)


def _of_measures(values: Floats) -> Distribution:
    """A distribution of values above 0, in bins that grow by the same factor: a box of 10 pixels is no neighbour of one of 30."""
    if not len(values):
        return Distribution(_quantiles(values), np.zeros(0), np.zeros(0, np.int64))
    bins = np.floor(np.log2(values) * BINS_PER_OCTAVE).astype(np.int64)
    edges = np.exp2(np.arange(bins.min(), bins.max() + 2, dtype=np.float64) / BINS_PER_OCTAVE)
    return Distribution(_quantiles(values), edges, np.bincount(bins - bins.min()))


def _of_counts(values: Integers) -> Distribution:
    """A distribution of whole numbers from 0, in bins of the same width, 1 where few do."""
    if not len(values):
        return Distribution(_quantiles(values), np.zeros(0), np.zeros(0, np.int64))
    width = int(values.max()) // MOST_BINS + 1
    counts = np.bincount(values // width)
    return Distribution(_quantiles(values), width * np.arange(len(counts) + 1, dtype=np.float64), counts)
