"""Non-maximum suppression of many groups of boxes at once, for a device that does much at a time."""

from __future__ import annotations

import torch
from torch import Tensor

# Between looks at whether anything still changes, each of which waits for the device.
_ITERATIONS = 4
# Of the matrices that are held at a time.
_ELEMENTS = 50_000_000


def keep_of_groups(boxes: Tensor, valid: Tensor, threshold: float) -> Tensor:
    """Which boxes remain when, from the first on, each that does removes those after it that overlap it by more than a threshold.

    torchvision's `nms` walks through the boxes one after the other. Here all boxes of all groups are looked at again and again,
    against what remained the last time, until nothing changes: after k rounds those are settled that hang on chains of k
    removals, which are short. What is found then is what the walk finds.

    Args:
        boxes: of G groups, the best first, `[G, K, 4]`, xyxy.
        valid: those that count, bool `[G, K]`.
        threshold: IoU above which one box removes another.

    Returns:
        bool `[G, K]`.
    """
    groups, count = valid.shape
    kind = boxes.device.type
    # Of zeros and ones, whose sums are compared with 0 alone.
    dtype = torch.float16 if kind == "cuda" else torch.float32
    removes = torch.empty((groups, count, count), dtype=dtype, device=boxes.device)
    step = max(1, _ELEMENTS // max(1, count * count))
    for start in range(0, groups, step):
        here = slice(start, start + step)
        removes[here] = (overlaps(boxes[here], boxes[here]) > threshold).triu_(1)

    def looked_at(keep: Tensor) -> Tensor:
        return valid & (torch.bmm(keep[:, None].to(dtype), removes)[:, 0] == 0)

    keep = valid
    with torch.autocast(kind, enabled=False):
        while True:
            for _ in range(_ITERATIONS - 1):
                keep = looked_at(keep)
            before, keep = keep, looked_at(keep)
            if torch.equal(before, keep):
                return keep


def overlaps(boxes: Tensor, others: Tensor) -> Tensor:
    """Torchvision's `box_iou` of each group's boxes `[G, N, 4]` with its others `[G, M, 4]`: `[G, N, M]`."""
    areas, other_areas = (
        (group[..., 2] - group[..., 0]) * (group[..., 3] - group[..., 1]) for group in (boxes, others)
    )
    boxes, others = boxes[:, :, None], others[:, None]
    low, high = torch.maximum(boxes[..., :2], others[..., :2]), torch.minimum(boxes[..., 2:], others[..., 2:])
    width, height = (high - low).clamp_(min=0).unbind(-1)
    common = width * height
    return common / (areas[:, :, None] + other_areas[:, None] - common)
