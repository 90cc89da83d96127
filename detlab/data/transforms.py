"""Transforms of image and target together, every per-instance field in step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from detlab.errors import UserError
from detlab.structures import PERSON_KEYPOINTS, Sample, Target

Transform = Callable[[Tensor, dict[str, Any]], tuple[Tensor, dict[str, Any]]]
PER_INSTANCE = ("boxes", "labels", "area", "iscrowd", "masks", "keypoints")


def flip_pairs(names: Sequence[str]) -> list[tuple[int, int]]:
    """Indices of the keypoints that change places in a mirror: `left_x` with `right_x`."""
    return [
        (i, list(names).index("right_" + name.removeprefix("left_")))
        for i, name in enumerate(names)
        if name.startswith("left_")
    ]


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


def _of_the_same_kind(value: Tensor, like: Tensor) -> Tensor:
    """An indexed tensor as the tv_tensor that it was; indexing gives a plain one."""
    return tv_tensors.wrap(value, like=like) if isinstance(like, tv_tensors.TVTensor) else value  # pyright: ignore


def _swap_sides(target: dict[str, Any]) -> None:
    points = target["keypoints"].shape[1]
    if points != len(PERSON_KEYPOINTS):
        raise UserError(f"augmentation: no flip pairs are known for {points} keypoints; take augmentation=none.")
    order = torch.arange(points)
    for left, right in flip_pairs(PERSON_KEYPOINTS):
        order[[left, right]] = order[[right, left]]
    for key in ("keypoints", "keypoint_visibility"):
        target[key] = _of_the_same_kind(target[key][:, order], target[key])


def apply(transform: Transform, image: Tensor, target: Target) -> Sample:
    """Run a transform on a sample. v2's keypoints have two columns, so the visibility travels beside them and is joined again."""
    travelling: dict[str, Any] = dict(target)
    if "keypoints" in target:
        size = (image.shape[1], image.shape[2])
        travelling["keypoints"] = tv_tensors.KeyPoints(target["keypoints"][..., :2], canvas_size=size)  # pyright: ignore
        travelling["keypoint_visibility"] = target["keypoints"][..., 2]
    image, travelling = transform(image, travelling)
    if "keypoints" in target:
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
