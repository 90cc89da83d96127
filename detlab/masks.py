"""Masks as pixels and as COCO's run lengths."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor
from torch.nn import functional
from torchvision.models.detection.roi_heads import expand_boxes, expand_masks

from detlab.structures import RLE

# How far float32's rounding moves a pasted value by itself, and a pixel among the samples of an axis, in parts of all of them.
_ROUNDING, _DISPLACEMENT = 1e-6, 2**-22


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


class _Placed(NamedTuple):
    """N masks of a head, and where torchvision's `paste_masks_in_image` puts them."""

    samples: np.ndarray  # float32 [N, S, S], with a border of 0
    corners: np.ndarray  # int64 [N, 2], x and y in the image of the upper left pixel, which may lie outside of it
    sizes: np.ndarray  # int64 [N, 2], width and height in pixels, 1 or more where anything is inside
    firsts: np.ndarray  # int64 [N, 2], x and y of the first pixel inside of the image
    insides: np.ndarray  # int64 [N, 2], how many columns and rows are inside; both or neither


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
    placed = _place(probabilities, boxes, height, width)
    runs, owners, doubtful = _runs_by_crossings(placed, height)
    pasted = [(i, _runs_by_pasting(placed, i, height)) for i in np.flatnonzero(doubtful).tolist()]
    owners = np.concatenate([owners, *(np.full(len(of_mask), i) for i, of_mask in pasted)])
    order = np.argsort(owners, kind="stable")
    runs = np.concatenate([runs, *(of_mask for _, of_mask in pasted)])[order]
    counts = _run_lengths(runs, owners[order], len(doubtful), height * width)
    uncompressed: Any = [{"size": [height, width], "counts": of_mask} for of_mask in counts]
    encoded = cast("Any", coco_mask).frPyObjects(uncompressed, height, width) if uncompressed else []
    return [{"size": list(e["size"]), "counts": e["counts"].decode("ascii")} for e in encoded]


def _place(probabilities: Tensor, boxes: Tensor, height: int, width: int) -> _Placed:
    padded, scale = expand_masks(probabilities.detach().cpu().float(), 1)
    corners, lasts = np.split(expand_boxes(boxes.detach().cpu(), scale).to(torch.int64).numpy(), 2, axis=1)
    firsts = np.maximum(corners, 0)
    insides = np.maximum(np.minimum(lasts + 1, [width, height]) - firsts, 0)
    insides[(insides == 0).any(1)] = 0
    return _Placed(padded[:, 0].numpy(), corners, lasts - corners + 1, firsts, insides)


def _runs_by_crossings(placed: _Placed, height: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where the pasted masks exceed 0.5, without their pixels.

    Down a column of pixels a pasted mask is linear between one sample and the next, so that its runs begin and end where it
    crosses 0.5: S steps a column, however high the box is, and all masks at once. Pasting is the plain way, and what this must
    equal to the pixel.

    Returns:
        int64 `[R, 2]`, the first pixel of each run and the first one after it, counted column by column, ascending in each
        mask; int64 `[R]`, whose they are, ascending; bool `[N]`, the masks of which rounding may decide: paste these.
    """
    count, samples = placed.samples.shape[:2]
    widths = placed.insides[:, 0]
    masks = np.repeat(np.arange(count), widths)  # of every column inside of the image
    columns = np.arange(len(masks)) + (placed.firsts[:, 0] - np.cumsum(widths) + widths)[masks]
    values, differences = _columns(placed, masks, columns)
    displacement = samples * _DISPLACEMENT
    clear = np.abs(values - 0.5) > _ROUNDING + 2 * displacement  # samples differ by 1 at most; nan is not clear
    above = values > 0.5
    column, sample = np.divmod(np.flatnonzero(above[:, 1:] != above[:, :-1]), samples - 1)
    of_mask, before, after = masks[column], values[column, sample], values[column, sample + 1]
    samples_a_pixel = samples / placed.sizes[of_mask, 1]
    crossings = (sample + (0.5 - before.astype(np.float64)) / (after - before) + 0.5) / samples_a_pixel - 0.5
    rows = np.ceil(crossings)
    down = np.abs(after - before)
    across = np.maximum(np.abs(differences[column, sample]), np.abs(differences[column, sample + 1]))
    at_next_pixel = np.minimum(rows - crossings, 1 - (rows - crossings)) * samples_a_pixel * down  # less 0.5
    near = at_next_pixel < _ROUNDING + displacement * (across + down)
    first = placed.firsts[of_mask, 1]
    with np.errstate(invalid="ignore"):
        rows = rows.astype(np.int64)  # any number for nan, of which the mask will be pasted
    rows = np.clip(rows + placed.corners[of_mask, 1], first, first + placed.insides[of_mask, 1])
    # The border of 0 ends every run within its column.
    runs, owners = (columns[column] * height + rows).reshape(-1, 2), of_mask[::2]
    doubtful = np.bincount(np.r_[masks[~clear.all(1)], of_mask[near]], minlength=count) > 0
    kept = (runs[:, 0] < runs[:, 1]) & ~doubtful[owners]  # of low boxes, some runs lie between two pixels
    return runs[kept], owners[kept], doubtful


def _columns(placed: _Placed, masks: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Samples interpolated across, but not down, for C columns (x in the image) of masks.

    Returns:
        float32 `[C, S]` twice: the values, and the differences of the two samples that each lies between.
    """
    samples = placed.samples.shape[1]
    x = (columns - placed.corners[masks, 0] + 0.5) * (samples / placed.sizes[masks, 0]) - 0.5
    left = np.clip(x.astype(np.int64), 0, samples - 2)
    weights = np.clip(x - left, 0, 1).astype(np.float32)[:, None]
    turned = placed.samples.transpose(0, 2, 1).reshape(-1, samples)
    values = turned[masks * samples + left]
    differences = turned[masks * samples + left + 1] - values
    return values + weights * differences, differences


def _runs_by_pasting(placed: _Placed, i: int, height: int) -> np.ndarray:
    """The runs of mask `i`, int64 `[R, 2]` as those of `_runs_by_crossings`, from its pixels."""
    (x0, y0), (left, top), (columns, rows) = (
        array[i].tolist() for array in (placed.corners, placed.firsts, placed.insides)
    )
    samples = torch.from_numpy(placed.samples[i])[None, None]
    size = placed.sizes[i, ::-1].tolist()
    pasted = functional.interpolate(samples, size=size, mode="bilinear", align_corners=False).numpy()[0, 0]
    # A change at either side of a pixel, down each column: of a mask of few runs few numbers are left.
    found = np.zeros((columns, rows + 2), np.bool_)
    np.greater(pasted[top - y0 : top - y0 + rows, left - x0 : left - x0 + columns].T, 0.5, out=found[:, 1:-1])
    column, row = np.nonzero(found[:, 1:] != found[:, :-1])
    return ((column + left) * height + row + top).reshape(-1, 2)


def _run_lengths(runs: np.ndarray, owners: np.ndarray, count: int, pixels: int) -> list[np.ndarray]:
    """Run lengths of background and object in turn.

    Args:
        runs: int64 `[R, 2]`, the first pixel of each run of the object and the first one after it, ascending in each mask.
        owners: int64 `[R]`, whose they are, ascending.
        count: of the masks.
        pixels: of the image.

    Returns:
        `count` arrays, int64.
    """
    # Where an object reaches the lower border of a column and the upper of the next, its run goes on.
    goes_on = (runs[1:, 0] == runs[:-1, 1]) & (owners[1:] == owners[:-1])
    begins, ends = np.r_[True, ~goes_on][: len(runs)], np.r_[~goes_on, True][: len(runs)]
    after_masks = np.cumsum(2 * np.bincount(owners[begins], minlength=count) + 1)  # background follows the last run
    bounds = np.full(after_masks[-1] if count else 0, pixels)
    is_run = np.ones(len(bounds), bool)
    is_run[after_masks - 1] = False
    bounds[is_run] = np.stack([runs[begins, 0], runs[ends, 1]], 1).ravel()
    lengths = np.diff(bounds, prepend=0)
    lengths[after_masks[:-1]] = bounds[after_masks[:-1]]
    parts = np.split(lengths, after_masks[:-1])[:count]
    return [part if part[-1] else part[:-1] for part in parts]
