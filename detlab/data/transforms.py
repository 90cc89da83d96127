"""How is a sample transformed, every per-instance field in step, and what of it is left to learn?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from detlab.errors import UserError
from detlab.masks import enclosing_boxes
from detlab.structures import Keypoints, Target

Transform = Callable[[Tensor, dict[str, Any]], tuple[Tensor, dict[str, Any]]]
REASONS = ("cut_off", "hidden", "too_small", "without_pixels", "removed")


@dataclass(frozen=True)
class Tally:
    """How many objects the transforms met, and how many of them are not learnt, by the reason. Tallies add up.

    What is learnt is `objects` less what was dropped for one of the `REASONS`. Crowd regions and ignored objects are no part of
    `objects`: they were never to be learnt.
    """

    objects: int = 0  # an image's own and those pasted into it
    cut_off: int = 0  # outside the image, or too much of them
    hidden: int = 0  # behind what was pasted
    too_small: int = 0  # less than a pixel wide or high
    without_pixels: int = 0  # nothing left of the mask, or nothing ever in it
    removed: int = 0  # by a transform of the user's, which tells no reason
    crowd: int = 0
    ignored: int = 0

    def __add__(self, other: Tally) -> Tally:
        theirs = vars(other)
        return Tally(**{name: count + theirs[name] for name, count in vars(self).items()})

    @property
    def dropped(self) -> int:
        """How many objects were to be learnt and are not."""
        return sum(getattr(self, reason) for reason in REASONS)

    def said(self) -> str:
        """What is not learnt and why, for the log; empty where all is learnt."""
        clauses = []
        if self.dropped:
            reasons = [f"{count} {reason.replace('_', ' ')}" for reason in REASONS if (count := getattr(self, reason))]
            verb = "was" if self.dropped == 1 else "were"
            clauses.append(f"of {self.objects} objects {self.dropped} {verb} dropped ({', '.join(reasons)})")
        for count, one, many in (
            (self.crowd, "crowd region is", "crowd regions are"),
            (self.ignored, "ignored object is", "ignored objects are"),
        ):
            if count:
                clauses.append(f"{count} {one if count == 1 else many} not learnt")
        return "; ".join(clauses)


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
            flipped["keypoints"] = of_the_same_kind(mirrored, target["keypoints"])
            _swap_sides(flipped)
        return F.horizontal_flip(image), flipped


def _swap_sides(target: dict[str, Any]) -> None:
    """Let the points of a mirrored target stand where their names do."""
    for key in ("keypoints", "keypoint_visibility"):
        target[key] = of_the_same_kind(target[key][:, list(target["keypoint_order"])], target[key])


def of_the_same_kind(value: Tensor, like: Tensor, **metadata: Any) -> Tensor:
    """A plain tensor as the tv_tensor that it was, with other metadata where given; indexing gives a plain one."""
    if not isinstance(like, tv_tensors.TVTensor):
        return value
    return tv_tensors.wrap(value, like=like, **metadata)  # pyright: ignore


def per_instance_fields(target: dict[str, Any]) -> list[str]:
    """The fields with a row for each object: every tensor of one dimension or more, a data set's own fields too."""
    return [field for field, value in target.items() if isinstance(value, Tensor) and value.ndim]


def keep_objects(target: dict[str, Any], keep: Tensor) -> dict[str, Any]:
    """The target with only those objects where `keep` (bool `[N]`) is true, in every per-instance field."""
    if bool(keep.all()):
        return target
    kept = {field: of_the_same_kind(target[field][keep], target[field]) for field in per_instance_fields(target)}
    return {**target, **kept}


def drop_objects(target: dict[str, Any], gone: Tensor, reason: str) -> dict[str, Any]:
    """The target without the objects where `gone` (bool `[N]`) is true; those that were to be learnt are tallied under a reason."""
    if not bool(gone.any()):
        return target
    count = int((gone & learnable(target)).sum())
    return {**keep_objects(target, ~gone), "tally": target["tally"] + Tally(**{reason: count})}


def learnable(target: dict[str, Any]) -> Tensor:
    """Which objects are to be learnt, bool `[N]`: not crowd regions, which torchvision takes for objects, nor ignored ones."""
    wanted = target["iscrowd"] == 0
    return wanted & ~target["ignored"] if "ignored" in target else wanted


def travelling(image: Tensor, target: Target, keypoints: Keypoints | None) -> dict[str, Any]:
    """A target in the form in which it goes through transforms.

    v2's keypoints have two columns, so `keypoint_visibility` `[N, P]` travels beside them, and beside both `keypoint_order`, the
    order that a mirror gives the points. `extent_as_loaded` and `tight_as_loaded` remember of each object how large it was and
    whether its box was that of its mask; `tally` counts what is dropped on the way.

    Args:
        image: uint8 `[3, H, W]`.
        target: see `Target`.
        keypoints: what the target's points are, where it has any.

    Raises:
        UserError: points of which nothing is known.
    """
    size = (image.shape[1], image.shape[2])
    form: dict[str, Any] = dict(target)
    # v2 passes over plain tensors, and a flip would leave these where they are.
    if not isinstance(form["boxes"], tv_tensors.BoundingBoxes):
        form["boxes"] = tv_tensors.BoundingBoxes(form["boxes"], format="XYXY", canvas_size=size)  # pyright: ignore
    if "masks" in form and not isinstance(form["masks"], tv_tensors.Mask):
        form["masks"] = tv_tensors.Mask(form["masks"])
    if "keypoints" in target:
        form["keypoints"] = tv_tensors.KeyPoints(target["keypoints"][..., :2], canvas_size=size)  # pyright: ignore
        form["keypoint_visibility"] = target["keypoints"][..., 2]
        if keypoints is None:
            raise UserError(
                f"dataset: image_id {target['image_id']} has keypoints, but the data set's `keypoints` is None; let it be a "
                "detlab.structures.Keypoints, or leave the field out."
            )
        form["keypoint_order"] = keypoints.mirrored
    form["tight_as_loaded"] = _off_their_masks(form) < 1
    form["extent_as_loaded"] = _extents(form)
    form["tally"] = Tally(objects=int(learnable(form).sum()))
    return form


def apply(
    transform: Transform, image: Tensor, target: Target, keypoints: Keypoints | None
) -> tuple[Tensor, Target, Tally]:
    """Run a transform on a sample.

    Whatever the transform does with boxes and masks, they agree afterwards: a box that was its mask's, to less than a pixel, is so
    again, and `area` grows and shrinks as the mask does, or as the box without one. v2 cuts boxes as if objects filled them, and
    knows nothing of areas.

    Args:
        transform: v2's, or one like it: image and target to image and target.
        image: uint8 `[3, H, W]`.
        target: see `Target`.
        keypoints: what the target's points are, where it has any.

    Returns:
        Image, target, and the tally of the objects that the transform met and those that it dropped.

    Raises:
        UserError: what the transform gives is no sample: an image of another type, a field lost, fields of different lengths.
    """
    form = travelling(image, target, keypoints)
    expected = set(form)
    image, form = transform(image, form)
    _check_transformed(image, form, expected)
    tally: Tally = form.pop("tally")
    unexplained = tally.objects - tally.dropped - int(learnable(form).sum())
    tally += Tally(removed=unexplained) if unexplained > 0 else Tally(objects=-unexplained)
    if "keypoints" in form:
        del form["keypoint_order"]
        visibility = form.pop("keypoint_visibility")
        points = form["keypoints"].as_subclass(Tensor) * (visibility > 0)[..., None]
        form["keypoints"] = torch.cat([points, visibility[..., None]], -1)
    return image, cast(Target, _agreeing(form)), tally


def _check_transformed(image: Any, form: dict[str, Any], expected: set[str]) -> None:
    """Hold what a transform gave against what went in; the fields are those of the travelling form."""
    if not isinstance(image, Tensor) or image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
        found = f"{image.dtype} {list(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
        raise UserError(
            f"augmentation: the transforms make of the image a {found}; expected uint8 [3, H, W]. Leave changes of type and "
            "Normalize out: the engine and the model do both."
        )
    lost = sorted(expected - form.keys())
    if lost:
        raise UserError(
            f"augmentation: the transforms lost {', '.join(lost)}; a transform hands on every field of a target."
        )
    count = len(form["boxes"])
    for field in per_instance_fields(form):
        if len(form[field]) != count:
            raise UserError(
                f"augmentation: the transforms leave {count} boxes, but {field} for {len(form[field])} objects. Leave out what "
                "removes objects (SanitizeBoundingBoxes, FixedSizeCrop): empty boxes are removed afterwards in every field."
            )
    if "masks" in form and form["masks"].shape[-2:] != image.shape[-2:]:
        raise UserError(
            f"augmentation: the transforms leave masks of {list(form['masks'].shape[-2:])} on an image of "
            f"{list(image.shape[-2:])}; take transforms that change both (torchvision.transforms.v2)."
        )


def have_pixels(masks: Tensor) -> Tensor:
    """Which masks of uint8 `[N, H, W]` are not empty, bool `[N]`."""
    # Of uint8, `any` is uint8 too, whose `~` is no negation.
    return masks.as_subclass(Tensor).flatten(1).any(1).bool()


def _boxes_of_masks(masks: Tensor) -> Tensor:
    """The boxes around masks uint8 `[N, H, W]`: float32 `[N, 4]`, xyxy in pixels; not a number where a mask has no pixels."""
    masks = masks.as_subclass(Tensor)
    boxes = torch.full((len(masks), 4), torch.nan)
    seen = have_pixels(masks)
    boxes[seen] = torch.from_numpy(enclosing_boxes(masks[seen].numpy())).float()
    return boxes


def _off_their_masks(form: dict[str, Any]) -> Tensor:
    """How many pixels an edge of each box is away from that of its mask, the farthest one: float32 `[N]`; not a number where there
    is no mask.
    """
    if "masks" not in form:
        return torch.full((len(form["boxes"]),), torch.nan)
    return (form["boxes"].as_subclass(Tensor) - _boxes_of_masks(form["masks"])).abs().amax(1)


def _extents(form: dict[str, Any]) -> Tensor:
    """What the area of each object goes with: the pixels of its mask, or else of its box; float64 `[N]`."""
    if "masks" in form:
        return form["masks"].as_subclass(Tensor).flatten(1).sum(1, dtype=torch.float64)
    boxes = form["boxes"].as_subclass(Tensor).double()
    return (boxes[:, 2:] - boxes[:, :2]).prod(1)


def _agreeing(form: dict[str, Any]) -> dict[str, Any]:
    """The target with boxes and areas that follow what the transforms left of the masks, without what was remembered for that."""
    tight, before = form.pop("tight_as_loaded"), form.pop("extent_as_loaded")
    if bool((loose := tight & (_off_their_masks(form) >= 1)).any()):
        boxes = torch.where(loose[:, None], _boxes_of_masks(form["masks"]), form["boxes"].as_subclass(Tensor))
        form["boxes"] = of_the_same_kind(boxes, form["boxes"])
    extents = _extents(form)
    scaled = (form["area"].double() * extents / before).to(form["area"].dtype)
    form["area"] = torch.where(torch.isclose(extents, before), form["area"], scaled)
    return form


def trainable_objects(image: Tensor, target: Target) -> tuple[Target, Tally]:
    """What is left to learn after the transforms, the one rule for all of them.

    Boxes end at the image's border. Those that are then empty go, and those under a pixel wide or high: not one pixel is the
    object's own, and the logarithm of so small a side, which the box head learns, outweighs all others. Masks without pixels, crowd
    regions and ignored objects go. Points outside the image become points not labelled.

    Returns:
        The target and the tally of what was dropped.
    """
    height, width = image.shape[-2:]
    boxes = target["boxes"].as_subclass(Tensor).clone()
    boxes[:, 0::2] = boxes[:, 0::2].clamp(0, width)
    boxes[:, 1::2] = boxes[:, 1::2].clamp(0, height)
    left: dict[str, Any] = {**target, "boxes": boxes, "tally": Tally()}
    if "keypoints" in left:
        points = left["keypoints"]
        inside = ((points[..., :2] >= 0) & (points[..., :2] <= torch.tensor([width, height]))).all(-1)
        left["keypoints"] = torch.where(inside[..., None], points, torch.zeros_like(points))
    left = drop_objects(left, ~(boxes[:, 2:] > boxes[:, :2]).all(1), "cut_off")
    sides = left["boxes"][:, 2:] - left["boxes"][:, :2]
    # A box of one pixel stays one where a flip's arithmetic took the last bit of it.
    left = drop_objects(left, (sides < 1 - 1e-3).any(1), "too_small")
    if "masks" in left:
        left = drop_objects(left, ~have_pixels(left["masks"]), "without_pixels")
    crowd = int((left["iscrowd"] != 0).sum())
    tally = left.pop("tally") + Tally(crowd=crowd, ignored=int((~learnable(left)).sum()) - crowd)
    return cast(Target, keep_objects(left, learnable(left))), tally
