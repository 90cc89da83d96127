"""What can be done to a sample to make more of few: jitter, crop, copy and paste. Each moves image and target together."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torchvision.ops import box_iou
from torchvision.transforms import v2
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from detlab.data.transforms import (
    Flip,
    Tally,
    Transform,
    drop_objects,
    have_pixels,
    keep_objects,
    learnable,
    of_the_same_kind,
    per_instance_fields,
    travelling,
)
from detlab.errors import UserError
from detlab.structures import DetectionDataset, Sample, check_sample

BLACK = (0.0, 0.0, 0.0)


@runtime_checkable
class Mixing(Protocol):
    """A transform that takes other samples of the data set."""

    def use(self, dataset: DetectionDataset) -> None: ...


@runtime_checkable
class Listing(Protocol):
    """A transform made of others."""

    transforms: Sequence[Any]


def parts_of(transform: Any) -> Iterator[Any]:
    """A transform and all that it is made of; v2's containers, and the tutorial's, keep theirs in `transforms`."""
    yield transform
    children: list[Any] = list(transform.children()) if isinstance(transform, nn.Module) else []
    if isinstance(transform, Listing):
        children += [part for part in transform.transforms if part not in children]
    for part in children:
        yield from parts_of(part)


def make_ready(transform: Transform, dataset: DetectionDataset) -> None:
    """Give a data set to those parts of a transform that take other samples of it.

    Raises:
        UserError: a part that is wrong for this data set.
    """
    mirrors = (v2.RandomHorizontalFlip, v2.RandomVerticalFlip)
    for part in parts_of(transform):
        if isinstance(part, mirrors) and dataset.keypoints is not None and dataset.keypoints.flip_pairs:
            raise UserError(
                f"augmentation: {type(part).__name__} leaves left and right keypoints where they were, in a mirrored image the "
                "wrong ones; take detlab.data.transforms.Flip."
            )
        if isinstance(part, Mixing):
            part.use(dataset)


def checked_sample(dataset: DetectionDataset, index: int) -> Sample:
    """One sample, held against the contract; the error names data set, image and object."""
    image, target = dataset[index]
    where = f"{type(dataset).__name__}, image {dataset.image_names[index]}"
    check_sample(image, target, dataset.class_map, dataset.iou_types, where)
    return image, target


@dataclass(frozen=True)
class Placement:
    """Resize an image from `source` to `size`, then lay the upper left corner of that at `corner` of a canvas; pairs of y, x in
    pixels.
    """

    source: tuple[int, int]
    size: tuple[int, int]
    corner: tuple[int, int]
    canvas: tuple[int, int]

    def pixels(self, pixels: Tensor, interpolation: InterpolationMode, fill: Sequence[float]) -> Tensor:
        """An image or masks `[C, H, W]`: cut where beyond the canvas; elsewhere `fill`, of each channel or one for all."""
        plain = pixels.as_subclass(Tensor)
        if self.size != self.source:
            plain = F.resize(plain, list(self.size), interpolation=interpolation, antialias=True)
        placed = torch.tensor(fill).to(plain.dtype)[:, None, None].repeat(len(plain) // len(fill), *self.canvas)
        (y0, y1), (x0, x1) = (
            (max(0, start), max(0, min(start + side, room)))
            for start, side, room in zip(self.corner, self.size, self.canvas, strict=True)
        )
        top, left = self.corner
        placed[:, y0:y1, x0:x1] = plain[:, y0 - top : y1 - top, x0 - left : x1 - left]
        return of_the_same_kind(placed, pixels)

    def places(self, places: Tensor) -> Tensor:
        """Places x, y `[..., 2]`; they may come to lie outside the canvas."""
        (height, width), (rows, columns), (top, left) = self.source, self.size, self.corner
        return places * torch.tensor([columns / width, rows / height]) + torch.tensor([left, top])

    def target(self, target: dict[str, Any], min_visible: float) -> dict[str, Any]:
        """What is left of the objects that keep `min_visible` of their box's area, in the travelling form; types as they were."""
        far_corner = torch.tensor(self.canvas[::-1])
        whole = self.places(target["boxes"].as_subclass(Tensor).reshape(-1, 2, 2))
        left = whole.clamp(torch.zeros(2), far_corner)
        visible = left.diff(dim=1).prod(2)[:, 0] / whole.diff(dim=1).prod(2)[:, 0]
        moved = {**target, "boxes": of_the_same_kind(left.flatten(1), target["boxes"], canvas_size=self.canvas)}
        if "keypoints" in target:
            points = self.places(target["keypoints"].as_subclass(Tensor))
            on_canvas = ((points >= 0) & (points <= far_corner)).all(-1)
            moved["keypoints"] = of_the_same_kind(points, target["keypoints"], canvas_size=self.canvas)
            moved["keypoint_visibility"] = target["keypoint_visibility"] * on_canvas
        moved = drop_objects(moved, ~((visible > 0) & (visible >= min_visible)), "cut_off")
        if "masks" in moved:
            # Of masks, v2's nearest neighbour would be the one to the upper left, up to half a pixel off the image.
            moved["masks"] = self.pixels(moved["masks"], InterpolationMode.NEAREST_EXACT, [0.0])
        return moved


@dataclass(frozen=True)
class Jitter:
    """A random factor between two, and a random place on the canvas."""

    scale_min: float
    scale_max: float

    def __post_init__(self) -> None:
        if not 0 < self.scale_min <= self.scale_max < math.inf:
            raise UserError(
                f"augmentation: scale_min={self.scale_min}, scale_max={self.scale_max}; give 0 < scale_min <= scale_max."
            )

    def draw(self, source: tuple[int, int], canvas: tuple[int, int]) -> Placement:
        """Where an image comes to lie: the factor is 1 where it just fits the canvas."""
        drawn, down, across = torch.rand(3).tolist()
        fitting = min(room / side for side, room in zip(source, canvas, strict=True))
        factor = fitting * (self.scale_min + drawn * (self.scale_max - self.scale_min))
        # At least 2: torch 2.14 cannot resize bytes to a single pixel.
        rows, columns = (max(2, round(side * factor)) for side in source)
        corner = (_somewhere(down, canvas[0] - rows), _somewhere(across, canvas[1] - columns))
        return Placement(source, (rows, columns), corner, canvas)


def _somewhere(drawn: float, room: int) -> int:
    """A whole number from 0 to `room`, both included, which may be negative; `drawn` is from 0 to below 1."""
    return int(math.copysign(drawn * (abs(room) + 1), room))


def _check_part_of_one(value: float, key: str) -> None:
    if not 0 <= value <= 1:
        raise UserError(f"augmentation: {key}={value} is out of range; give 0..1.")


class ScaleJitter(nn.Module):
    """Change the size of what an image shows, not of the image: "large scale jitter" (Ghiasi et al., 2021) on its own canvas.

    Image and target are resized by a factor drawn evenly from `scale_min`..`scale_max`. What became larger than the image was
    is cut out at a random place, what became smaller is laid at a random place on `fill`. A keypoint that was cut off becomes one
    not labelled.

    Args:
        scale_min: smallest factor, above 0.
        scale_max: largest factor.
        min_visible: 0..1; an object less of whose box's area is left is removed.
        fill: red, green and blue around what became smaller, 0..255.

    Raises:
        UserError: a value out of its range.
    """

    def __init__(self, *, scale_min: float, scale_max: float, min_visible: float, fill: Sequence[float]) -> None:
        super().__init__()
        self.jitter = Jitter(scale_min, scale_max)
        _check_part_of_one(min_visible, "min_visible")
        if len(fill) != 3 or not all(0 <= value <= 255 for value in fill):
            raise UserError(f"augmentation: fill={list(fill)} is no colour; give red, green and blue, each 0..255.")
        self.min_visible = min_visible
        self.fill = [float(value) for value in fill]

    def forward(self, image: Tensor, target: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        size = (image.shape[-2], image.shape[-1])
        placement = self.jitter.draw(size, size)
        moved = placement.target(target, self.min_visible)
        return placement.pixels(image, InterpolationMode.BILINEAR, self.fill), moved


class IoUCrop(nn.Module):
    """Cut out a random part of the image that overlaps an object by a random least measure (Liu et al., SSD, 2016).

    A least overlap is drawn from `overlaps` and "the whole image", then up to `trials` parts, of which the first is taken that has
    such an overlap (intersection over union) with an object whose centre lies in it; where there is none, another least overlap is
    drawn. Objects whose centre is outside go. An image without objects stays whole.

    Args:
        overlaps: least overlaps, each 0..1.
        scale_min: the part's smallest width and height in those of the image, above 0, at most 1.
        aspect_max: the longer side of the part in its shorter one, at most; 1 or more.
        trials: parts drawn for one least overlap.

    Raises:
        UserError: a value out of its range.
    """

    def __init__(self, *, overlaps: Sequence[float], scale_min: float, aspect_max: float, trials: int) -> None:
        super().__init__()
        for overlap in overlaps:
            _check_part_of_one(overlap, "overlaps")
        if not 0 < scale_min <= 1:
            raise UserError(f"augmentation: scale_min={scale_min} is no part of a side; give above 0, and at most 1.")
        if not aspect_max >= 1:
            raise UserError(f"augmentation: aspect_max={aspect_max}; give 1 or more.")
        if trials < 1:
            raise UserError(f"augmentation: trials={trials}; give 1 or more.")
        self.overlaps = list(overlaps)
        self.scale_min, self.aspect_max, self.trials = scale_min, aspect_max, trials

    def forward(self, image: Tensor, target: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        size = (image.shape[-2], image.shape[-1])
        boxes = target["boxes"].as_subclass(Tensor)
        part = self._part(size, boxes[learnable(target)])
        if part is None:
            return image, target
        x0, y0, x1, y1 = (int(edge) for edge in part)
        placement = Placement(size, size, (-y0, -x0), (y1 - y0, x1 - x0))
        centred = drop_objects(target, ~_centres_inside(part[None], boxes)[0], "cut_off")
        return placement.pixels(image, InterpolationMode.BILINEAR, BLACK), placement.target(centred, 0)

    def _part(self, size: tuple[int, int], boxes: Tensor) -> Tensor | None:
        """The part to cut out, xyxy in whole pixels, or None for the whole image."""
        if not len(boxes):
            return None
        while (drawn := int(torch.randint(len(self.overlaps) + 1, ()))) < len(self.overlaps):
            parts = self._draw(size)
            overlaps = box_iou(parts, boxes) * _centres_inside(parts, boxes)
            aspects = (parts[:, 2] - parts[:, 0]) / (parts[:, 3] - parts[:, 1])
            fits = (aspects <= self.aspect_max) & (aspects >= 1 / self.aspect_max)
            # A centre inside with no least overlap: any overlap above 0.
            fits &= (overlaps.amax(1) > 0) & (overlaps.amax(1) >= self.overlaps[drawn])
            if bool(fits.any()):
                return parts[int(fits.nonzero()[0])]
        return None

    def _draw(self, size: tuple[int, int]) -> Tensor:
        """Random parts of an image, float32 `[trials, 4]`, xyxy in whole pixels."""
        image = torch.tensor(size)
        sides, corners = torch.rand(self.trials, 2, 2).unbind(1)  # y, x
        sides = ((self.scale_min + (1 - self.scale_min) * sides) * image).round().clamp(min=1)
        corners = (corners * (image - sides + 1)).floor().minimum(image - sides)
        return torch.cat([corners.flip(1), (corners + sides).flip(1)], 1)


def _centres_inside(parts: Tensor, boxes: Tensor) -> Tensor:
    """Whether the centre of each box lies in each part: bool `[parts, boxes]`."""
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    return ((centres > parts[:, None, :2]) & (centres < parts[:, None, 2:])).all(2)


class CopyPaste(nn.Module):
    """Paste objects of another image over this one: "Simple Copy-Paste" (Ghiasi et al., 2021).

    Another image of the data set is drawn, flipped with probability `flip_p`, resized by a factor drawn evenly from
    `scale_min`..`scale_max` (1: it just fits this image) and laid at a random place; of what is left of its objects, each is pasted
    with probability `object_p`, with all its fields. Crowd regions, ignored objects and masks without pixels are never pasted. What
    a pasted object covers, the masks of others lose; points under it that were visible are then hidden ones.

    Args:
        object_p: probability for each object, 0..1.
        flip_p: probability that the other image is mirrored, 0..1.
        scale_min: smallest factor, above 0.
        scale_max: largest factor.
        min_visible: 0..1; an object of this image less of whose mask is left uncovered is removed, and one of the other image less
            of whose box is left inside is not pasted.

    Raises:
        UserError: a value out of its range.
    """

    def __init__(
        self, *, object_p: float, flip_p: float, scale_min: float, scale_max: float, min_visible: float
    ) -> None:
        super().__init__()
        for key, value in (("object_p", object_p), ("flip_p", flip_p), ("min_visible", min_visible)):
            _check_part_of_one(value, key)
        self.object_p, self.min_visible = object_p, min_visible
        self._flip = Flip(p=flip_p)
        self.jitter = Jitter(scale_min, scale_max)
        self._dataset: DetectionDataset | None = None

    def use(self, dataset: DetectionDataset) -> None:
        """Take the other images from this data set.

        Raises:
            UserError: it has no masks.
        """
        if "segm" not in dataset.iou_types:
            raise UserError(
                f"augmentation: CopyPaste pastes objects by their masks, and {type(dataset).__name__} has none; choose another, "
                "such as augmentation=lsj."
            )
        self._dataset = dataset

    def forward(self, image: Tensor, target: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        source, pasted = self._objects_of_another((image.shape[-2], image.shape[-1]))
        covered = pasted["masks"].as_subclass(Tensor).any(0).bool()
        mixed = torch.where(covered, source.as_subclass(Tensor), image.as_subclass(Tensor))
        return of_the_same_kind(mixed, image), _joined(self._behind(covered, target), pasted)

    def _objects_of_another(self, canvas: tuple[int, int]) -> tuple[Tensor, dict[str, Any]]:
        """Another image on this one's canvas, and those of its objects that are to be pasted."""
        assert self._dataset is not None
        image, target = checked_sample(self._dataset, int(torch.randint(len(self._dataset), ())))
        image, form = self._flip(image, travelling(image, target, self._dataset.keypoints))
        placement = self.jitter.draw((image.shape[-2], image.shape[-1]), canvas)
        form = placement.target(form, self.min_visible)
        chosen = learnable(form) & have_pixels(form["masks"])
        chosen &= torch.rand(len(chosen)) < self.object_p
        return placement.pixels(image, InterpolationMode.BILINEAR, BLACK), keep_objects(form, chosen)

    def _behind(self, covered: Tensor, target: dict[str, Any]) -> dict[str, Any]:
        """The target with what is `covered` (bool `[H, W]`) taken from its masks and hidden among its points."""
        masks = target["masks"].as_subclass(Tensor)
        uncovered = masks * ~covered
        before, after = masks.flatten(1).sum(1), uncovered.flatten(1).sum(1)
        behind = {**target, "masks": of_the_same_kind(uncovered, target["masks"])}
        if "keypoints" in target:
            last = torch.tensor(covered.shape[::-1]) - 1
            x, y = target["keypoints"].as_subclass(Tensor).long().clamp(torch.zeros(2).long(), last).unbind(-1)
            visibility = target["keypoint_visibility"]
            behind["keypoint_visibility"] = torch.where(covered[y, x], visibility.clamp(max=1), visibility)
        # A mask that had no pixel is hidden by nothing.
        return drop_objects(behind, (after < before) & ((after == 0) | (after < self.min_visible * before)), "hidden")


def _joined(target: dict[str, Any], pasted: dict[str, Any]) -> dict[str, Any]:
    """The objects of both, in every per-instance field; all else is the first one's."""
    fields = per_instance_fields(target)
    for field in {*fields, *per_instance_fields(pasted)}:
        if field not in target or field not in pasted or target[field].shape[1:] != pasted[field].shape[1:]:
            raise UserError(
                f"augmentation: image_id {target['image_id']} and {pasted['image_id']} have not the same kind of {field}; "
                "objects that are pasted from one image into another need the same fields."
            )
    joined = {
        field: of_the_same_kind(
            torch.cat([target[field].as_subclass(Tensor), pasted[field].as_subclass(Tensor).to(target[field].dtype)]),
            target[field],
        )
        for field in fields
    }
    return {**target, **joined, "tally": target["tally"] + Tally(objects=len(pasted["boxes"]))}
