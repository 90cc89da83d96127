"""Masks as pixels and as COCO's run lengths."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor

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
