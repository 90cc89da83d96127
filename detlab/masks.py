"""Masks as pixels and as COCO's run lengths."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor
from torch.nn import functional
from torchvision.models.detection.roi_heads import expand_boxes, expand_masks

from detlab.structures import RLE


def enclosing_boxes(masks: np.ndarray) -> np.ndarray:
    """The boxes around masks, xyxy in pixels. The last pixel belongs to its box: x1 = last column + 1.

    torchvision's tutorial and its `masks_to_boxes` are one pixel short.

    Args:
        masks: bool or integer `[N, H, W]`, each with a pixel at least.

    Returns:
        float64 `[N, 4]`.
    """
    boxes = np.zeros((len(masks), 4))
    for box, mask in zip(boxes, masks, strict=True):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box[:] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return boxes


def encode(masks: np.ndarray) -> list[RLE]:
    """Masks as run lengths.

    Args:
        masks: `[N, H, W]`, bool or 0 and 1.

    Returns:
        N times `{"size": [H, W], "counts": str}`, ready for JSON.
    """
    # pycocotools takes [H, W, N] in column-major order. The cast: its type stubs expect one mask.
    columns = np.asfortranarray(masks.transpose(1, 2, 0).astype(np.uint8))
    encoded = cast("list[dict[str, Any]]", coco_mask.encode(columns))
    return [{"size": list(e["size"]), "counts": e["counts"].decode("ascii")} for e in encoded]


def decode(rles: Sequence[RLE], height: int, width: int) -> Tensor:
    """Run lengths as masks, uint8 `[N, height, width]`."""
    masks = np.empty((len(rles), height, width), np.uint8)
    with warnings.catch_warnings():
        # pycocotools 2.0.11 has not caught up with numpy 2's copy keyword.
        warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
        # One by one: all at once they come as [H, W, N], which takes twice the memory and 2.5 times as long to turn.
        for mask, rle in zip(masks, rles, strict=True):
            mask[:] = coco_mask.decode(cast("Any", rle))
    return torch.from_numpy(masks)


def encode_in_boxes(probabilities: Tensor, boxes: Tensor, height: int, width: int) -> list[RLE]:
    """A mask head's outputs as run lengths, made in their boxes alone: where torchvision's `paste_masks_in_image` exceeds 0.5.

    Args:
        probabilities: float `[N, 1, M, M]`, 0..1, over each object's box.
        boxes: float `[N, 4]`, xyxy in pixels of the image.
        height: of the image in pixels.
        width: of the image in pixels.

    Returns:
        N times `{"size": [height, width], "counts": str}`, ready for JSON.
    """
    padded, scale = expand_masks(probabilities.detach().cpu().float(), 1)
    places = expand_boxes(boxes.detach().cpu(), scale).to(torch.int64).tolist()
    uncompressed = []
    for mask, (x0, y0, x1, y1) in zip(padded, places, strict=True):
        size = (max(y1 - y0 + 1, 1), max(x1 - x0 + 1, 1))
        found = functional.interpolate(mask[None], size=size, mode="bilinear", align_corners=False)[0, 0] > 0.5
        left, top = max(x0, 0), max(y0, 0)
        inside = found[top - y0 : max(min(y1 + 1, height) - y0, 0), left - x0 : max(min(x1 + 1, width) - x0, 0)]
        counts = _run_lengths(inside.numpy(), left, top, height, width)
        uncompressed.append({"size": [height, width], "counts": counts})
    encoded = cast("Any", coco_mask).frPyObjects(uncompressed, height, width) if uncompressed else []
    return [{"size": list(e["size"]), "counts": e["counts"].decode("ascii")} for e in encoded]


def _run_lengths(region: np.ndarray, left: int, top: int, height: int, width: int) -> list[int]:
    """Run lengths of background and object in turn, column by column, of an image that is empty but for a region.

    Args:
        region: bool `[h, w]`.
        left: its first column in the image.
        top: its first row in the image.
        height: of the image.
        width: of the image.
    """
    if not region.size:
        return [height * width]
    # A change at either side of a pixel, down each column: of a mask of few runs few numbers are left.
    column = np.zeros((region.shape[1], region.shape[0] + 2), np.int8)
    column[:, 1:-1] = region.T
    columns, rows = np.nonzero(np.diff(column, axis=1))
    bounds = (columns + left) * height + rows + top
    # Where an object reaches the lower border of a column and the upper of the next, its run goes on.
    starts, ends = bounds[0::2], bounds[1::2]
    goes_on = starts[1:] == ends[:-1]
    starts, ends = starts[np.r_[True, ~goes_on][: len(starts)]], ends[np.r_[~goes_on, True][: len(ends)]]
    counts: list[int] = np.diff(np.stack([starts, ends], 1).ravel(), prepend=0, append=height * width).tolist()
    return counts if counts[-1] else counts[:-1]
