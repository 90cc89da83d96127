"""How well can a detector's anchors reach the boxes that it is to learn, and which anchors would reach them better?"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.transform import GeneralizedRCNNTransform

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]
Sizes = tuple[tuple[int, ...], ...]
Ratios = tuple[tuple[float, ...], ...]

# The overlap that counts as found in COCO's AP50, and the least that box heads are trained to refine.
FOUND_AT = 0.5
# The search looks at so many boxes at most, and changes sizes and ratios by these factors, one after the other.
SEARCHED_BOXES = 2000
FACTORS = (2**0.5, 2**0.25, 2**0.125, 2**0.0625)
# A map's anchors stay within this factor of the smallest and largest configured: what its cells see does not grow with them.
LARGEST_CHANGE = 4
LEAST_RATIO, LARGEST_RATIO = 0.1, 10.0


@dataclass(frozen=True)
class Anchors:
    """What a detector lays over an image: torchvision's `AnchorGenerator` of these sizes and ratios, one tuple a map.

    Sizes are square roots of areas in pixels of the resized image, ratios height / width. A cell of a map has an anchor for each
    pair of both.
    """

    sizes: Sizes
    aspect_ratios: Ratios

    def cells(self) -> list[Floats]:
        """The anchors of a cell around its corner, one array `[A, 4]` xyxy a map: whole pixels, as torchvision rounds them."""
        generator = AnchorGenerator(self.sizes, self.aspect_ratios)  # pyright: ignore[reportArgumentType]
        return [cell.double().numpy() for cell in generator.cell_anchors]


@dataclass(frozen=True)
class AnchorModel:
    """What of a detector decides which anchors an object meets."""

    anchors: Anchors
    fg_iou_thresh: float  # the overlap from which an anchor learns an object
    transform: GeneralizedRCNNTransform
    backbone: nn.Module


def anchor_model(model: nn.Module) -> AnchorModel | None:
    """The anchors of one of torchvision's detectors, and the grid that they stand on.

    None for a model without any, or whose anchors are not matched by their overlap alone (FCOS) or not laid out by an
    `AnchorGenerator` (SSD).
    """
    head = getattr(model, "rpn", model)
    generator, matcher = getattr(head, "anchor_generator", None), getattr(head, "proposal_matcher", None)
    transform, backbone = resize_of(model), getattr(model, "backbone", None)
    if not isinstance(generator, AnchorGenerator) or matcher is None or transform is None or backbone is None:
        return None
    sizes = tuple(tuple(level) for level in generator.sizes)
    ratios = tuple(tuple(float(ratio) for ratio in level) for level in generator.aspect_ratios)
    return AnchorModel(Anchors(sizes, ratios), float(matcher.high_threshold), transform, backbone)


def resize_of(model: nn.Module) -> GeneralizedRCNNTransform | None:
    """How a model resizes its images; None where it takes them as they are, or in a way of its own."""
    transform = getattr(model, "transform", None)
    return transform if isinstance(transform, GeneralizedRCNNTransform) else None


def shorter_sides(transform: GeneralizedRCNNTransform) -> tuple[int, ...]:
    """The shorter sides that a detector resizes images to: evaluation the last of them, training one that it draws."""
    sides = transform.min_size  # which torchvision declares as one, and keeps as several
    return tuple(sides) if isinstance(sides, list | tuple) else (sides,)


def resized(sizes: Integers, transform: GeneralizedRCNNTransform) -> Integers:
    """The sizes that images have after a detector's resize in evaluation.

    Args:
        sizes: `[M, 2]`, height and width in pixels.
        transform: the detector's; equal to what its `resize` gives, without an image.
    """
    if transform.fixed_size is not None:
        width, height = transform.fixed_size
        return np.broadcast_to(np.array([height, width]), sizes.shape).astype(np.int64)
    factors = np.minimum(shorter_sides(transform)[-1] / sizes.min(1), transform.max_size / sizes.max(1))
    return np.floor(sizes * factors[:, None]).astype(np.int64)


@dataclass(frozen=True)
class Grids:
    """The cells of L maps over M images, each image alone in its batch."""

    cells: Integers  # [M, L, 2], rows and columns
    strides: Integers  # [M, L, 2], pixels from one to the next


def grids(backbone: nn.Module, sizes: Integers, *, divisor: int) -> Grids:
    """Where the anchors of a detector stand, found by running its backbone.

    The cells of a row are taken to depend on the image's width alone, and those of a column on its height, as for everything that
    convolves; so one run for each width and height that occurs is enough.

    Args:
        backbone: `[B, 3, H, W]` to one map or a dict of maps.
        sizes: of the resized images, `[M, 2]` height and width.
        divisor: what the detector pads both to a multiple of, `transform.size_divisible`.
    """
    padded = -(-sizes // divisor) * divisor
    cells = np.stack([_cells(backbone, padded[:, axis], axis, divisor) for axis in (0, 1)], 2)
    return Grids(cells, padded[:, None] // cells)


@torch.no_grad()
def _cells(backbone: nn.Module, extents: Integers, axis: int, divisor: int) -> Integers:
    """Cells of each map along one axis of images that are so long there, `[M, L]`."""
    training = backbone.training
    backbone.eval()
    across = -(-64 // divisor) * divisor
    found = []
    unique, places = np.unique(extents, return_inverse=True)
    for extent in unique.tolist():
        maps = backbone(torch.zeros(1, 3, *((extent, across) if axis == 0 else (across, extent))))
        maps = {"0": maps} if isinstance(maps, torch.Tensor) else maps
        found.append([value.shape[2 + axis] for value in maps.values()])
    backbone.train(training)
    return np.array(found, np.int64)[places]


def best_iou(boxes: Floats, image_of: Integers, grids: Grids, cells: Sequence[Floats]) -> Floats:
    """For each box the largest overlap (IoU) with any anchor of its image, exactly.

    No anchor has to be laid out. Of one shape, the overlap grows with the intersection, which is the product of those along x
    and y; and along each axis the best of the cells is one of the two nearest to where both centres would meet.

    Args:
        boxes: `[N, 4]` xyxy in pixels of the resized images.
        image_of: `[N]`, their images.
        grids: of the images.
        cells: the anchors of a cell, `[A, 4]` xyxy around its corner, of each map.

    Returns:
        `[N]`, 0..1.
    """
    best = np.zeros(len(boxes))
    for level, shapes in enumerate(cells):
        for shape in shapes:
            ious = _iou_with(shape, boxes, grids.cells[image_of, level], grids.strides[image_of, level])
            best = np.maximum(best, ious)
    return best


def _iou_with(shape: Floats, boxes: Floats, cells: Integers, strides: Integers) -> Floats:
    """The largest overlap of each box with one shape of anchor at any of its image's cells."""
    down, across = (
        _longest_overlap(boxes[:, low], boxes[:, low + 2], shape[low], shape[low + 2], strides[:, axis], cells[:, axis])
        for axis, low in ((0, 1), (1, 0))
    )
    shared = down * across
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return shared / (areas + (shape[2] - shape[0]) * (shape[3] - shape[1]) - shared)


def _longest_overlap(low: Floats, high: Floats, start: float, stop: float, stride: Integers, count: Integers) -> Floats:
    """How much `low..high` shares at most with one of `count` stretches, `start..stop` and each a stride further."""
    nearest = np.floor((low + high - start - stop) / (2 * stride))
    longest = np.zeros(len(low))
    for cell in (nearest, nearest + 1):
        shift = cell.clip(0, count - 1) * stride
        longest = np.maximum(longest, np.minimum(high, stop + shift) - np.maximum(low, start + shift))
    return longest


@dataclass(frozen=True)
class Reach:
    """How well anchors reach some boxes."""

    objects: int
    recall: tuple[
        float, ...
    ]  # for each threshold the part of the boxes with an anchor that overlaps them so much; nan of none
    mean_iou: float  # of the boxes with their best anchors; nan of none


def thresholds_of(fg_iou_thresh: float) -> tuple[float, ...]:
    """The overlaps at which recall is told: 0.5 and the one from which an anchor learns an object."""
    return tuple(sorted({FOUND_AT, fg_iou_thresh}))


def reach(ious: NDArray[np.floating], thresholds: Sequence[float]) -> Reach:
    """What the best overlaps of some boxes amount to."""
    if not len(ious):
        return Reach(0, (float("nan"),) * len(thresholds), float("nan"))
    return Reach(len(ious), tuple(float((ious >= t).mean()) for t in thresholds), float(ious.mean()))


def merit(found: Reach) -> float:
    """What a proposal is to raise: the mean of its recalls and of its mean overlap. The recalls count, and between two of the
    same recall the overlap leads on.
    """
    return float(np.mean([*found.recall, found.mean_iou]))


def propose(boxes: Floats, image_of: Integers, grids: Grids, anchors: Anchors, thresholds: Sequence[float]) -> Anchors:
    """Sizes and ratios of the same structure that reach the boxes better, by climbing from the given ones and from quantiles.

    The structure is kept: as many sizes and ratios a map, the same ratios where maps share theirs, and sizes that do not fall from
    one map to the next, so that the detector's heads fit. No size leaves a factor of 4 around the configured ones of its map.

    Args:
        boxes: `[N, 4]` xyxy in pixels of the resized images; of more than 2000, so many are drawn, always the same.
        image_of: `[N]`, their images.
        grids: of the images.
        anchors: the configured ones.
        thresholds: see `merit`.

    Returns:
        Whole sizes, ratios of two decimals; those given where nothing better was found, or where there is no box.
    """
    if not len(boxes):
        return anchors
    chosen = np.random.default_rng(0).permutation(len(boxes))[:SEARCHED_BOXES]
    search = _Search(boxes[chosen], image_of[chosen], grids, thresholds, anchors)
    starts = [anchors, _from_quantiles(boxes[chosen], anchors)]
    ends = [search.climb(start) for start in starts if start is anchors or search.permits(start)]
    return max(ends, key=search.merit)


class _Search:
    """Climbs in steps that each change one number, and keeps the overlaps of each anchor that it has met."""

    def __init__(
        self, boxes: Floats, image_of: Integers, grids: Grids, thresholds: Sequence[float], configured: Anchors
    ) -> None:
        self._boxes, self._thresholds, self._configured = boxes, thresholds, configured
        self._cells, self._strides = grids.cells[image_of], grids.strides[image_of]
        self._met: dict[tuple[int, int, float], NDArray[np.float32]] = {}

    def _ious(self, level: int, size: int, ratio: float) -> NDArray[np.float32]:
        key = (level, size, ratio)
        if key not in self._met:
            (shape,) = Anchors(((size,),), ((ratio,),)).cells()[0]
            ious = _iou_with(shape, self._boxes, self._cells[:, level], self._strides[:, level])
            self._met[key] = ious.astype(np.float32)
        return self._met[key]

    def merit(self, anchors: Anchors) -> float:
        """Of all boxes of the search."""
        ious = np.zeros(len(self._boxes), np.float32)
        for level, (sizes, ratios) in enumerate(zip(anchors.sizes, anchors.aspect_ratios, strict=True)):
            for size, ratio in itertools.product(sizes, ratios):
                ious = np.maximum(ious, self._ious(level, size, ratio))
        return merit(reach(ious, self._thresholds))

    def permits(self, anchors: Anchors) -> bool:
        """Whether the structure is kept; see `propose`."""
        within = all(
            low <= size <= high
            for (low, high), level in zip(_bounds(self._configured), anchors.sizes, strict=True)
            for size in level
        )
        rising = all(a <= b for one, two in itertools.pairwise(anchors.sizes) for a, b in zip(one, two, strict=False))
        shaped = all(LEAST_RATIO <= ratio <= LARGEST_RATIO for level in anchors.aspect_ratios for ratio in level)
        return within and rising and shaped and all(_ascend(t) for t in (*anchors.sizes, *anchors.aspect_ratios))

    def climb(self, anchors: Anchors) -> Anchors:
        """The best that can be come to by always taking the step that gains most."""
        best, highest = anchors, self.merit(anchors)
        for factor in FACTORS:
            while steps := [step for step in _steps(best, factor) if self.permits(step)]:
                step = max(steps, key=self.merit)
                if self.merit(step) <= highest:
                    break
                best, highest = step, self.merit(step)
        return best


def _bounds(anchors: Anchors) -> list[tuple[int, int]]:
    """The smallest and the largest size that the search may give to each map."""
    return [(-(-min(level) // LARGEST_CHANGE), max(level) * LARGEST_CHANGE) for level in anchors.sizes]


def _ascend(numbers: Sequence[float]) -> bool:
    return all(a < b for a, b in itertools.pairwise(numbers))


def _steps(anchors: Anchors, factor: float) -> Iterator[Anchors]:
    """Anchors in which one size, all sizes or one ratio is larger or smaller by a factor."""
    sizes, ratios = anchors.sizes, anchors.aspect_ratios
    for change in (factor, 1 / factor):
        yield Anchors(tuple(tuple(round(size * change) for size in level) for level in sizes), ratios)
        for level, own in enumerate(sizes):
            for place, size in enumerate(own):
                changed = (*own[:place], round(size * change), *own[place + 1 :])
                yield Anchors((*sizes[:level], changed, *sizes[level + 1 :]), ratios)
        for shared in dict.fromkeys(ratios):
            for place, ratio in enumerate(shared):
                changed = (*shared[:place], round(ratio * change, 2), *shared[place + 1 :])
                yield Anchors(sizes, tuple(changed if own == shared else own for own in ratios))


def _from_quantiles(boxes: Floats, anchors: Anchors) -> Anchors:
    """Anchors of the same structure whose sizes and ratios divide those of the boxes evenly, as far as sizes may move."""
    widths, heights = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    places = sorted((size, level, i) for level, own in enumerate(anchors.sizes) for i, size in enumerate(own))
    even = np.quantile(np.sqrt(widths * heights), _evenly(len(places)))
    bounds, sizes = _bounds(anchors), [list(level) for level in anchors.sizes]
    for (_, level, i), size in zip(places, even.tolist(), strict=True):
        sizes[level][i] = round(np.clip(size, *bounds[level]))
    ratios = [np.quantile(heights / widths, _evenly(len(level))).round(2) for level in anchors.aspect_ratios]
    return Anchors(tuple(map(tuple, sizes)), tuple(tuple(level.tolist()) for level in ratios))


def _evenly(count: int) -> Floats:
    """The middles of so many equal parts of 0..1."""
    return (np.arange(count) + 0.5) / count
