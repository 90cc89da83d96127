"""Transforms of image and target together, every per-instance field in step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from detlab.errors import UserError
from detlab.masks import enclosing_boxes
from detlab.structures import Keypoints, Sample, Target

Transform = Callable[[Tensor, dict[str, Any]], tuple[Tensor, dict[str, Any]]]
PER_INSTANCE = ("boxes", "labels", "area", "iscrowd", "masks", "keypoints", "keypoint_visibility")


class Flip(nn.Module):
    """Mirror image and target left to right with probability `p`; left and right keypoints change places.

    Args:
        p: probability, 0..1.
    """

    def __init__(self, *, p: float) -> None:
        super().__init__()
        if not 0 <= p <= 1:
            raise UserError(f"augmentation.p: {p} is not a probability; give 0..1.")
        self.p = p

    def forward(self, image: Tensor, target: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        if torch.rand(()) >= self.p:
            return image, target
        flipped = {
            key: F.horizontal_flip(value) if isinstance(value, tv_tensors.TVTensor) else value
            for key, value in target.items()
        }
        if "keypoints" in flipped:
            # v2 mirrors a point as a pixel, x to W - 1 - x; ours are places, as the edges of boxes are.
            mirrored = target["keypoints"].as_subclass(Tensor) * torch.tensor([-1.0, 1.0])
            mirrored[..., 0] += image.shape[-1]
            flipped["keypoints"] = _of_the_same_kind(mirrored, target["keypoints"])
            _swap_sides(flipped)
        return F.horizontal_flip(image), flipped


@dataclass(frozen=True)
class _Move:
    """Resize to `size`, then lay the upper left corner of that at `corner` of the canvas; pairs of y, x in pixels."""

    canvas: tuple[int, int]
    size: tuple[int, int]
    corner: tuple[int, int]

    def pixels(self, pixels: Tensor, interpolation: InterpolationMode, fill: list[float]) -> Tensor:
        """An image or masks `[C, H, W]`: cut where larger than the canvas, on `fill` where smaller."""
        resized = F.resize(pixels, list(self.size), interpolation=interpolation, antialias=True)
        (height, width), (rows, columns), (top, left) = self.canvas, self.size, self.corner
        if rows >= height and columns >= width:
            return F.crop(resized, -top, -left, height, width)
        return F.pad(resized, [left, top, width - columns - left, height - rows - top], fill=fill)

    def places(self, places: Tensor) -> Tensor:
        """Places x, y `[..., 2]`; they may come to lie outside the canvas."""
        (height, width), (rows, columns), (top, left) = self.canvas, self.size, self.corner
        return places * torch.tensor([columns / width, rows / height]) + torch.tensor([left, top])

    def target(self, target: dict[str, Any], min_visible: float) -> dict[str, Any]:
        """What is left of the objects that keep `min_visible` of their box's area; fields and types as they were."""
        (height, width), (rows, columns) = self.canvas, self.size
        far_corner = torch.tensor([width, height])
        whole = self.places(target["boxes"].as_subclass(Tensor).reshape(-1, 2, 2))
        left = whole.clamp(torch.zeros(2), far_corner)
        visible = left.diff(dim=1).prod(2)[:, 0] / whole.diff(dim=1).prod(2)[:, 0]
        moved = {**target, "boxes": _of_the_same_kind(left.flatten(1), target["boxes"])}
        moved["area"] = target["area"] * (rows * columns / (height * width)) * visible
        if "keypoints" in target:
            points = self.places(target["keypoints"].as_subclass(Tensor))
            on_canvas = ((points >= 0) & (points <= far_corner)).all(-1)
            moved["keypoints"] = _of_the_same_kind(points, target["keypoints"])
            moved["keypoint_visibility"] = target["keypoint_visibility"] * on_canvas
        keep = (visible > 0) & (visible >= min_visible)
        moved = cast(dict[str, Any], keep_objects(cast(Target, moved), keep))
        return self._masks(moved, cut=visible[keep] < 1) if "masks" in target else moved

    def _masks(self, target: dict[str, Any], cut: Tensor) -> dict[str, Any]:
        """The target with its masks moved too, `area` their pixels, and the boxes of cut objects those of what is left."""
        # On a plain tensor: of masks, v2 would take the neighbour to the upper left, up to half a pixel off the image.
        masks = self.pixels(target["masks"].as_subclass(Tensor), InterpolationMode.NEAREST_EXACT, [0.0])
        pixels = masks.flatten(1).sum(1)
        seen = pixels > 0
        boxes = target["boxes"].as_subclass(Tensor).clone()
        boxes[cut & seen] = torch.from_numpy(enclosing_boxes(masks[cut & seen].numpy())).to(boxes.dtype)
        moved = {
            **target,
            "boxes": _of_the_same_kind(boxes, target["boxes"]),
            "area": pixels.to(target["area"].dtype),
            "masks": _of_the_same_kind(masks, target["masks"]),
        }
        return cast(dict[str, Any], keep_objects(cast(Target, moved), seen))


class ScaleJitter(nn.Module):
    """Change the size of what an image shows, not of the image: "large scale jitter" (Ghiasi et al., 2021) on its own canvas.

    Image and target are resized by a factor drawn evenly from `scale_min`..`scale_max`. What became larger than the image was
    is cut out at a random place, what became smaller is laid at a random place on `fill`. Of objects that are cut, boxes are
    those of what is left of their masks, or, without masks, are cut too; `area` is the mask's pixels, or shrinks with the box. A
    keypoint that was cut off becomes one not labelled.

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
        if not 0 < scale_min <= scale_max < math.inf:
            raise UserError(
                f"augmentation: scale_min={scale_min}, scale_max={scale_max}; give 0 < scale_min <= scale_max."
            )
        if not 0 <= min_visible <= 1:
            raise UserError(f"augmentation: min_visible={min_visible} is no part of an area; give 0..1.")
        if len(fill) != 3 or not all(0 <= value <= 255 for value in fill):
            raise UserError(f"augmentation: fill={list(fill)} is no colour; give red, green and blue, each 0..255.")
        self.scale_min, self.scale_max = scale_min, scale_max
        self.min_visible = min_visible
        self.fill = [float(value) for value in fill]

    def forward(self, image: Tensor, target: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        height, width = image.shape[-2:]
        drawn, down, across = torch.rand(3).tolist()
        factor = self.scale_min + drawn * (self.scale_max - self.scale_min)
        rows, columns = (max(1, round(side * factor)) for side in (height, width))
        corner = (_somewhere(down, height - rows), _somewhere(across, width - columns))
        move = _Move((height, width), (rows, columns), corner)
        return move.pixels(image, InterpolationMode.BILINEAR, self.fill), move.target(target, self.min_visible)


def _somewhere(drawn: float, room: int) -> int:
    """A whole number from 0 to `room`, both included, which may be negative; `drawn` is from 0 to below 1."""
    return int(math.copysign(drawn * (abs(room) + 1), room))


def _of_the_same_kind(value: Tensor, like: Tensor) -> Tensor:
    """An indexed tensor as the tv_tensor that it was; indexing gives a plain one."""
    return tv_tensors.wrap(value, like=like) if isinstance(like, tv_tensors.TVTensor) else value  # pyright: ignore


def _swap_sides(target: dict[str, Any]) -> None:
    """Let the points of a mirrored target stand where their names do."""
    for key in ("keypoints", "keypoint_visibility"):
        target[key] = _of_the_same_kind(target[key][:, target["keypoint_order"]], target[key])


def apply(transform: Transform, image: Tensor, target: Target, keypoints: Keypoints | None) -> Sample:
    """Run a transform on a sample. v2's keypoints have two columns, so the visibility travels beside them and is joined again,
    and beside both the order that a mirror gives the points, which `Flip` needs.

    Args:
        transform: v2's, or one like it: image and target to image and target.
        image: uint8 `[3, H, W]`.
        target: see `Target`.
        keypoints: what the target's points are, where it has any.
    """
    travelling: dict[str, Any] = dict(target)
    if "keypoints" in target:
        size = (image.shape[1], image.shape[2])
        travelling["keypoints"] = tv_tensors.KeyPoints(target["keypoints"][..., :2], canvas_size=size)  # pyright: ignore
        travelling["keypoint_visibility"] = target["keypoints"][..., 2]
        assert keypoints is not None
        travelling["keypoint_order"] = torch.tensor(keypoints.mirrored)
    image, travelling = transform(image, travelling)
    if "keypoints" in target:
        del travelling["keypoint_order"]
        visibility = travelling.pop("keypoint_visibility")
        points = travelling["keypoints"].as_subclass(Tensor) * (visibility > 0)[..., None]
        travelling["keypoints"] = torch.cat([points, visibility[..., None]], -1)
    return image, cast(Target, travelling)


def keep_objects(target: Target, keep: Tensor) -> Target:
    """The target with only those objects where `keep` (bool `[N]`) is true, in every per-instance field."""
    kept: dict[str, Any] = dict(target)
    for field in PER_INSTANCE:
        if field in kept:
            kept[field] = _of_the_same_kind(kept[field][keep], kept[field])
    return cast(Target, kept)


def trainable_objects(image: Tensor, target: Target) -> Target:
    """What is left to learn after the transforms: boxes cut at the image's border, those that became empty and crowd regions
    gone (torchvision would learn a crowd as an object).
    """
    height, width = image.shape[-2:]
    boxes = target["boxes"].as_subclass(Tensor).clone()
    boxes[:, 0::2] = boxes[:, 0::2].clamp(0, width)
    boxes[:, 1::2] = boxes[:, 1::2].clamp(0, height)
    keep = (boxes[:, 2:] > boxes[:, :2]).all(1) & (target["iscrowd"] == 0)
    return keep_objects(cast(Target, {**target, "boxes": boxes}), keep)
