"""How much do detections and objects overlap: IoU of boxes and masks, and the similarity of keypoints, pair by pair.

Each number is that of pycocotools 2.0.11 to the last bit, since a threshold may lie on it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
from pycocotools import mask as coco_mask

from detlab.evaluation.instances import Detections, Objects
from detlab.structures import IouType

# From int64 indices [P] of detections and of objects to the overlap of each pair, float64 [P].
Overlap = Callable[[np.ndarray, np.ndarray], np.ndarray]


def overlap_of(
    iou_type: IouType, detections: Detections, objects: Objects, *, at_least: float, sigmas: Sequence[float]
) -> Overlap:
    """The function that compares what `iou_type` scores.

    Args:
        iou_type: says what the `shapes` are.
        detections: D of them.
        objects: G of them.
        at_least: below this a pair's overlap is not needed, and may come out as 0.
        sigmas: P standard deviations, for keypoints.
    """
    if iou_type == "keypoints":
        return lambda d, g: _keypoint_similarity(detections, objects, d, g, np.asarray(sigmas))
    if iou_type == "segm":
        sizes = mask_areas(objects.shapes)
        return lambda d, g: _mask_iou(detections, objects, d, g, sizes, at_least)
    return lambda d, g: _box_iou(detections.shapes[d], objects.shapes[g], objects.crowd[g])


def mask_boxes(masks: np.ndarray) -> np.ndarray:
    """The boxes around run lengths `[N]`, float64 `[N, 4]`, xywh in pixels; all 0 around an empty mask."""
    return np.asarray(coco_mask.toBbox(cast("Any", list(masks)))).reshape(-1, 4)


def mask_areas(masks: np.ndarray) -> np.ndarray:
    """The numbers of pixels of run lengths `[N]`, float64 `[N]`."""
    # pycocotools 2.0.11 takes no more than 255 at once: it counts them in 8 bits.
    parts = [coco_mask.area(cast("Any", list(masks[i : i + 255]))) for i in range(0, len(masks), 255)]
    return np.concatenate([np.zeros(0), *parts])


def _intersections(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Float64 `[P]`: the area that two boxes (`[P, 4]`, xywh) share, 0 where they share none."""
    ends = np.minimum(first[:, :2] + first[:, 2:], second[:, :2] + second[:, 2:])
    sides = ends - np.maximum(first[:, :2], second[:, :2])
    return np.where((sides > 0).all(1), sides[:, 0] * sides[:, 1], 0.0)


def _iou(shared: np.ndarray, detected: np.ndarray, real: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """Float64 `[P]` from areas `[P]`: shared by union, in a crowd by the detection's own; 0 where nothing is shared."""
    union = np.where(crowd, detected, detected + real - shared)
    return np.divide(shared, union, out=np.zeros_like(shared), where=shared != 0)


def _box_iou(detected: np.ndarray, real: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    shared = _intersections(detected, real)
    return _iou(shared, detected[:, 2] * detected[:, 3], real[:, 2] * real[:, 3], crowd)


def _mask_iou(
    detections: Detections, objects: Objects, d: np.ndarray, g: np.ndarray, sizes: np.ndarray, at_least: float
) -> np.ndarray:
    """The IoU of masks, where the boxes around them leave room for `at_least`; `sizes`: the objects' pixels, float64 `[G]`."""
    is_first = np.diff(d, prepend=-1) != 0  # of a detection's pairs, which stand together
    boxes = mask_boxes(detections.shapes[d[is_first]])[np.cumsum(is_first) - 1]
    detected, real, crowd = detections.areas[d], sizes[g], objects.crowd[g]
    shared = np.minimum(_intersections(boxes, objects.boxes[g]), np.minimum(detected, real))
    # All of these are whole numbers, and division rounds monotonically: no mask's IoU is above this bound.
    possible = np.flatnonzero(_iou(shared, detected, real, crowd) >= at_least)
    possible = possible[np.argsort(g[possible], kind="stable")]
    overlaps = np.zeros(len(d))
    for pairs in np.split(possible, np.flatnonzero(np.diff(g[possible])) + 1) if len(possible) else ():
        i = g[pairs[0]]
        found, whole = list(detections.shapes[d[pairs]]), [objects.shapes[i]]
        overlaps[pairs] = cast("Any", coco_mask).iou(found, whole, [int(objects.crowd[i])])[:, 0]
    return overlaps


def _keypoint_similarity(
    detections: Detections, objects: Objects, d: np.ndarray, g: np.ndarray, sigmas: np.ndarray
) -> np.ndarray:
    """COCO's object keypoint similarity (https://cocodataset.org/#keypoints-eval), over the points known of the object.

    Of an object without any it tells how far outside of its box, doubled on every side, the points lie.
    """
    known = objects.shapes[:, :, 2] > 0
    counts = known.sum(1)
    # The points known of each object stand first, in their order.
    points = np.argsort(~known, axis=1, kind="stable")
    similarity = np.zeros(len(d))
    # A sum over the same numbers in the same order is the same to the last bit; over zeros between them it is not.
    for count in np.unique(counts[g]):
        pairs = np.flatnonzero(counts[g] == count)
        of, real = detections.shapes[d[pairs], :, :2], objects.take(g[pairs])
        if count:
            chosen = points[g[pairs], :count]
            offsets = np.take_along_axis(of - real.shapes[:, :, :2], chosen[:, :, None], 1)
            variances = ((sigmas * 2) ** 2)[chosen]
        else:
            offsets, variances = _outside(of, real.boxes), (sigmas * 2) ** 2
        squared = offsets[:, :, 0] ** 2 + offsets[:, :, 1] ** 2
        errors = squared / variances / (real.areas[:, None] + np.spacing(1)) / 2
        similarity[pairs] = np.exp(-errors).sum(1) / errors.shape[1]
    return similarity


def _outside(points: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Float64 `[P, K, 2]`: how far points lie outside of boxes (xywh) that are doubled on every side; 0 inside."""
    corners, sides = boxes[:, None, :2], boxes[:, None, 2:]
    return np.maximum(0, corners - sides - points) + np.maximum(0, points - (corners + sides * 2))
