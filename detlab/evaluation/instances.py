"""The objects and the detections of a whole data set as arrays, as scoring reads them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Self

import numpy as np


@dataclass(frozen=True)
class _Instances:
    """What objects and detections have in common; every field has one row for each.

    `shapes` is what is compared: boxes as float64 `[N, 4]` (xywh in pixels), compressed run lengths as an object array
    `[N]`, or keypoints as float64 `[N, P, 3]` (x, y, and what is not read of detections: visibility).
    """

    images: np.ndarray  # int64 [N], from 0, in the order of the images' ids
    classes: np.ndarray  # int64 [N], from 0, in the order of the categories' ids
    areas: np.ndarray  # float64 [N], pixels
    shapes: np.ndarray

    def __len__(self) -> int:
        return len(self.areas)

    @property
    def groups(self) -> np.ndarray:
        """Int64 `[N]`, one number for each class and image; detections find objects of their own group only."""
        return (self.classes << 32) + self.images

    def take(self, indices: np.ndarray) -> Self:
        """Those at int64 `[M]` indices, in that order."""
        fields = (field.name for field in dataclasses.fields(self))
        return dataclasses.replace(self, **{name: getattr(self, name)[indices] for name in fields})


@dataclass(frozen=True)
class Objects(_Instances):
    """The ground truth's objects."""

    boxes: np.ndarray  # float64 [N, 4], xywh in pixels; around the shapes, or beside keypoints
    crowd: np.ndarray  # bool [N], a region of many objects: any number of detections may lie in it
    ignored: np.ndarray  # bool [N], neither found nor missed: crowd, or no keypoint known


@dataclass(frozen=True)
class Detections(_Instances):
    """What was detected, in the order of the images' ids, within an image as it came."""

    scores: np.ndarray  # float64 [N]


def mask_array(masks: list[dict[str, object]]) -> np.ndarray:
    """Run lengths as an object array `[N]`, which can be indexed as the other shapes are."""
    return np.fromiter(masks, dtype=object, count=len(masks))
