"""What is a row of COCO results: how a prediction becomes rows, and which rows can be scored."""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Sequence
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from detlab.errors import UserError
from detlab.masks import encode, encode_in_boxes
from detlab.structures import RLE, ClassMap, IouType, Prediction

# The field that each type scores; a row may hold several.
SCORED_FIELD: dict[IouType, str] = {"bbox": "bbox", "segm": "segmentation", "keypoints": "keypoints"}


def run_lengths(counts: str | bytes) -> np.ndarray:
    """Run lengths in pixels, of background and object in turn, from COCO's compressed `counts`.

    Each number is written in groups of 5 bits, lowest first, a 6th bit marking that more follow; from the fourth on it
    is the difference to the run of the same kind before it (cocoapi, `rleFrString`).

    Returns:
        int64 `[R]`.

    Raises:
        ValueError: a character that the format does not have, or a number that does not end.
    """
    groups = np.frombuffer(counts.encode() if isinstance(counts, str) else counts, np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero(groups < 32)
    lengths = np.diff(ends, prepend=-1)
    if len(ends) == 0 or ends[-1] != len(groups) - 1 or groups.min() < 0 or groups.max() > 63 or lengths.max() > 7:
        raise ValueError("counts are no compressed run lengths")
    starts = ends - lengths + 1
    shifts = 5 * (np.arange(len(groups)) - np.repeat(starts, lengths))
    runs = np.add.reduceat((groups & 31) << shifts, starts)
    runs -= np.where(groups[ends] & 16, 1 << 5 * lengths, 0)  # the highest bit of the last group is the sign
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs


class Found(NamedTuple):
    """What was detected in an image, N times: numpy arrays, so that it is small, and quick to send to another process."""

    labels: np.ndarray  # int64 [N], 1..K
    boxes_xywh: np.ndarray  # float64 [N, 4], in the image's original pixels
    scores: np.ndarray  # float64 [N]
    masks: list[RLE] | None  # N of them, of the image's size; None where masks are not scored
    keypoints: np.ndarray | None  # float64 [N, P, 3], x, y, visibility; None where keypoints are not scored


def found_in(image_id: int, prediction: Prediction, class_map: ClassMap, iou_types: Collection[IouType]) -> Found:
    """One image's prediction as arrays.

    Args:
        image_id: as an error will name it.
        prediction: see `Prediction`; boxes in the image's original pixels, on any device.
        class_map: says which labels there are.
        iou_types: `segm` adds the masks, `keypoints` the keypoints; the boxes are always there.

    Raises:
        ValueError: a label outside 1..K, or a field that `iou_types` needs is missing.
    """
    labels = np.array(prediction["labels"].detach().cpu().numpy(), np.int64)
    outside = (labels < 1) | (labels > len(class_map))
    if outside.any():
        raise ValueError(f"image {image_id}: predicted label {labels[outside][0]} is outside 1..{len(class_map)}")
    boxes_xywh = _own_array(prediction["boxes"]).reshape(-1, 4)
    boxes_xywh[:, 2:] -= boxes_xywh[:, :2]
    scores = _own_array(prediction["scores"])
    masks = _encoded_masks(image_id, prediction) if "segm" in iou_types else None
    keypoints = None
    if "keypoints" in iou_types:
        if "keypoints" not in prediction:
            raise ValueError(f"image {image_id}: keypoints are to be scored but the prediction has none")
        keypoints = _own_array(prediction["keypoints"])
    return Found(labels, boxes_xywh, scores, masks, keypoints)


def _own_array(values: Tensor) -> np.ndarray:
    """A copy in float64, on the CPU because not every device has that; the caller may go on with its tensor."""
    return np.array(values.detach().cpu().double().numpy())


def rows_of(image_id: int, found: Found, class_map: ClassMap) -> list[dict[str, Any]]:
    """What was found in one image as COCO results rows of plain Python numbers.

    Args:
        image_id: as in the ground truth.
        found: in that image.
        class_map: turns labels 1..K into the file's own category ids.
    """
    rows: list[dict[str, Any]] = [
        {"image_id": image_id, "category_id": class_map.category_id(label), "bbox": box, "score": score}
        for label, box, score in zip(
            found.labels.tolist(), found.boxes_xywh.tolist(), found.scores.tolist(), strict=True
        )
    ]
    if found.masks is not None:
        for row, mask in zip(rows, found.masks, strict=True):
            row["segmentation"] = mask
    if found.keypoints is not None:
        for row, points in zip(rows, found.keypoints, strict=True):
            row["keypoints"] = points.ravel().tolist()
    return rows


def prediction_to_results(
    image_id: int, prediction: Prediction, class_map: ClassMap, iou_types: Collection[IouType]
) -> list[dict[str, Any]]:
    """One image's prediction as COCO results rows of plain Python numbers; see `found_in`.

    Args:
        image_id: as in the ground truth.
        prediction: see `Prediction`; boxes in the image's original pixels, on any device.
        class_map: turns labels 1..K into the file's own category ids.
        iou_types: `segm` adds `segmentation`, `keypoints` adds `keypoints`; `bbox` (xywh) is always there.

    Raises:
        ValueError: a label outside 1..K, or a field that `iou_types` needs is missing.
    """
    return rows_of(image_id, found_in(image_id, prediction, class_map, iou_types), class_map)


def _encoded_masks(image_id: int, prediction: Prediction) -> list[RLE]:
    """The masks of a prediction as run lengths, from the boxes where these have them, else from the whole image."""
    if "masks_in_boxes" in prediction and "image_size" in prediction:
        return encode_in_boxes(prediction["masks_in_boxes"], prediction["boxes"], *prediction["image_size"])
    if "masks" not in prediction:
        raise ValueError(f"image {image_id}: segm is to be scored but the prediction has no masks")
    return encode((prediction["masks"][:, 0] > 0.5).cpu().numpy())


def numbers_fault(value: Any, count: int) -> str | None:
    """Why `value` is not a list of `count` finite numbers; None where it is."""
    # The two usual types before the abstract one, which takes ten times as long to ask.
    is_list = isinstance(value, list | tuple) and len(value) == count
    if not is_list or not all(isinstance(v, float | int | Real) for v in value):
        return f"is {str(value)[:60]}; expected a list of {count} numbers"
    if not all(math.isfinite(v) for v in value):
        return f"is not finite: {str(list(value))[:60]}"
    return None


def keypoints_fault(value: Any, points: int) -> str | None:
    """Why `value` is not x, y, visibility of `points` keypoints; None where it is."""
    if isinstance(value, list | tuple) and len(value) != 3 * points:
        return (
            f"hold {len(value)} numbers, but the {points} sigmas ask for 3 x {points}; give a sigma for each keypoint"
        )
    return numbers_fault(value, 3 * points)


def mask_fault(encoded: RLE, height: int, width: int) -> str | None:
    """Why `encoded` is not a mask of an image of that size; None where it is."""
    if "size" not in encoded or list(encoded["size"]) != [height, width]:
        return f"has size {encoded.get('size')} in an image of {[height, width]} (height, width)"
    if not isinstance(encoded["counts"], str | bytes):
        return f"has counts {encoded['counts']}; expected run lengths"
    try:
        runs = run_lengths(encoded["counts"])
    except ValueError as error:
        return f"is damaged: {error}"
    # pycocotools would not return from runs that end before or after the image.
    if runs.min() < 0 or runs.sum() != height * width:
        return f"is damaged: its run lengths cover {runs.sum()} of {height * width} pixels"
    return None


def entry_fault(entry: Any, fields: Collection[str], category_ids: Collection[Any]) -> str | None:
    """Why `entry` (an object of the ground truth, or a detection) is not one of a known class; None where it is."""
    if not isinstance(entry, dict):
        return f"is no object with {', '.join(fields)}"
    missing = [field for field in fields if field not in entry]
    if missing:
        return f"lacks {', '.join(missing)}; needed are {', '.join(fields)}"
    if not isinstance(entry["image_id"], Hashable) or not isinstance(entry["category_id"], Hashable):
        return "has an image_id or a category_id that is no number"
    if entry["category_id"] not in category_ids:
        return f"has category_id {entry['category_id']}, which the ground truth's categories do not hold"
    return None


def _row_fault(row: Any, iou_type: IouType, category_ids: Collection[Any], points: int) -> str | None:
    """The first thing that keeps one row from being scored, in words; None where it can be."""
    field = SCORED_FIELD[iou_type]
    fault = entry_fault(row, ("image_id", "category_id", "score", field), category_ids)
    if fault is not None:
        return fault
    fault = numbers_fault([row["score"]], 1)
    if fault is not None:
        return f"has a score that {fault}"
    if field == "keypoints":
        fault = keypoints_fault(row["keypoints"], points)
        if fault is not None:
            return f"has keypoints that {fault}"
    if field == "bbox" or (field == "keypoints" and row.get("bbox")):
        fault = numbers_fault(row["bbox"], 4)
    return None if fault is None else f"has a bbox that {fault}"


def check_results(
    results: Sequence[Any], iou_type: IouType, *, image_ids: Collection[Any], category_ids: Collection[Any], points: int
) -> None:
    """Hold COCO results against the ground truth that they are to be scored on.

    Args:
        results: the rows as a file has them.
        iou_type: what is to be scored.
        image_ids: the ground truth's images.
        category_ids: the ground truth's classes.
        points: number of keypoints of an object.

    Raises:
        UserError: names the first row (counted from 0) and its image: a field is missing, a number not finite, a class
            unknown; or the first images that the ground truth lacks. pycocotools scores most of these in silence.
    """
    if not isinstance(results, list):
        raise UserError(f"results: expected a list of detections, got {type(results).__name__}.")
    for index, row in enumerate(results):
        fault = _row_fault(row, iou_type, category_ids, points)
        if fault is not None:
            image = f" (image {row['image_id']})" if isinstance(row, dict) and "image_id" in row else ""
            raise UserError(f"results: row {index}{image} {fault}.")
    unknown = list(dict.fromkeys(row["image_id"] for row in results if row["image_id"] not in image_ids))
    if unknown:
        first = ", ".join(str(i) for i in unknown[:5]) + (", ..." if len(unknown) > 5 else "")
        raise UserError(
            f"results: {len(unknown)} image(s) are not in the ground truth: {first}. "
            "Are the two files of the same data set?"
        )
