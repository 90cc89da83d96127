"""The contracts that every part of detlab keeps: sample, prediction, class map, data set."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NotRequired, Protocol, TypedDict, runtime_checkable

import torch
from torch import Tensor

from detlab.errors import UserError

IouType = Literal["bbox", "segm", "keypoints"]
IOU_TYPES: tuple[IouType, ...] = ("bbox", "segm", "keypoints")
# The field of a target that each type is learnt from and scored on.
FIELD_OF: dict[IouType, str] = {"bbox": "boxes", "segm": "masks", "keypoints": "keypoints"}
# COCO's `counts` string and `size` [H, W]: pycocotools' compressed run-length encoding.
RLE = dict[str, Any]


@dataclass(frozen=True)
class Keypoints:
    """What the points of an object are, in the order in which they stand in targets and files.

    Args:
        names: one for each point.
        flip_pairs: indices, from 0, of points that change places in a mirror.
        sigmas: one standard deviation for each point, relative to the object's scale, for COCO's object keypoint similarity
            (https://cocodataset.org/#keypoints-eval).
        skeleton: indices, from 0, of points that a line connects in pictures.

    Raises:
        UserError: no point, a name twice, another number of sigmas than of names, or an index that is no point's.
    """

    names: tuple[str, ...]
    flip_pairs: tuple[tuple[int, int], ...]
    sigmas: tuple[float, ...]
    skeleton: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        count = len(self.names)
        if not count or len(set(self.names)) != count:
            raise UserError(f"keypoints.names: {list(self.names)}; name at least one point, each of them once.")
        if len(self.sigmas) != count or not all(math.isfinite(s) and s > 0 for s in self.sigmas):
            raise UserError(
                f"keypoints.sigmas: {list(self.sigmas)}; give a finite number above 0 for each of the {count} points."
            )
        for key in ("flip_pairs", "skeleton"):
            for pair in getattr(self, key):
                if len(pair) != 2 or pair[0] == pair[1] or not all(0 <= i < count for i in pair):
                    raise UserError(f"keypoints.{key}: {list(pair)} is no pair of two of the {count} points.")
        swapped = [i for pair in self.flip_pairs for i in pair]
        if len(set(swapped)) != len(swapped):
            raise UserError("keypoints.flip_pairs: a point stands in two pairs; it can change places with one only.")

    def __len__(self) -> int:
        return len(self.names)

    @property
    def mirrored(self) -> tuple[int, ...]:
        """For each point of a mirrored object, the index of the one that it was before."""
        order = list(range(len(self)))
        for left, right in self.flip_pairs:
            order[left], order[right] = right, left
        return tuple(order)


def sides(names: Sequence[str]) -> tuple[tuple[int, int], ...]:
    """Flip pairs by names: `left_x` with `right_x`."""
    index = {name: i for i, name in enumerate(names)}
    pairs = [(i, index.get("right_" + name.removeprefix("left_"))) for name, i in index.items() if name[:5] == "left_"]
    return tuple((left, right) for left, right in pairs if right is not None)


_PERSON_POINTS = (
    "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow",
    "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle",
    "right_ankle",
)  # fmt: skip
# COCO's 17 keypoints of a person: their order, the sigmas of its evaluation (https://cocodataset.org/#keypoints-eval), and its
# limbs (person_keypoints_val2017.json, categories[0].skeleton less 1).
PERSON = Keypoints(
    names=_PERSON_POINTS,
    flip_pairs=sides(_PERSON_POINTS),
    sigmas=(
        0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072, 0.062, 0.062, 0.107, 0.107, 0.087, 0.087, 0.089,
        0.089,
    ),
    skeleton=(
        (15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8), (7, 9), (8, 10),
        (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6),
    ),
)  # fmt: skip


class Target(TypedDict):
    """What is known of one image; every per-instance field has the same length N, in the same order. N = 0 is legal.

    A data set may add fields of its own. Every tensor of one dimension or more is per-instance, a row for each object, and kept
    in step with the others; what holds for the whole image is a plain value or a tensor without dimensions.
    """

    boxes: Tensor  # float32 [N, 4], xyxy in pixels, 0 <= x0 < x1 <= W and 0 <= y0 < y1 <= H
    labels: Tensor  # int64 [N], 1..K
    image_id: int  # unique in its data set
    area: Tensor  # float32 [N], pixels
    iscrowd: Tensor  # bool or integer [N], 1 for a region that holds many objects
    ignored: NotRequired[Tensor]  # bool [N]; not learnt, as crowd regions are not: what VOC calls difficult
    masks: NotRequired[Tensor]  # uint8 [N, H, W], 0 or 1
    keypoints: NotRequired[Tensor]  # float32 [N, P, 3]: x, y, visibility (0 not labelled, 1 hidden, 2 visible)


class Prediction(TypedDict):
    """What a model says of one image, in the pixels of the image that it was given."""

    boxes: Tensor  # float32 [M, 4], xyxy in pixels
    labels: Tensor  # int64 [M], 1..K
    scores: Tensor  # float32 [M], 0..1
    masks: NotRequired[Tensor]  # float32 [M, 1, H, W], probability
    masks_in_boxes: NotRequired[Tensor]  # float32 [M, 1, S, S], probability over each box; in place of masks, with
    image_size: NotRequired[tuple[int, int]]  # height and width in pixels
    keypoints: NotRequired[Tensor]  # float32 [M, P, 3]
    keypoints_scores: NotRequired[Tensor]  # float32 [M, P]


Sample = tuple[Tensor, Target]  # image: uint8 [3, H, W]
Batch = tuple[
    list[Tensor], list[Any]
]  # images of any size, and their targets; what is not ours may hold more than `Target` says


@dataclass(frozen=True)
class ClassMap:
    """The classes of a data set: labels 1..K to names, and to the category ids of its files.

    Args:
        names: class names; label k is `names[k - 1]`.
        category_ids: the file's own id of each class, in the order of `names`; 1..K where not given.

    Raises:
        UserError: no class at all, a name or an id twice, or as many ids as there are not names.
    """

    names: tuple[str, ...]
    category_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        names = tuple(self.names)
        ids = tuple(self.category_ids) or tuple(range(1, len(names) + 1))
        object.__setattr__(self, "names", names)
        object.__setattr__(self, "category_ids", ids)
        if not names:
            raise UserError("classes: the list is empty; name at least one class.")
        if any(not name.isprintable() for name in names):
            raise UserError(f"classes: {list(names)}: a name has characters that cannot be printed.")
        if len(set(names)) != len(names) or len(set(ids)) != len(ids) or len(ids) != len(names):
            raise UserError(f"classes: names {list(names)} and ids {list(ids)} must be unique and equally many.")

    def __len__(self) -> int:
        return len(self.names)

    def name(self, label: int) -> str:
        """The name of a label in 1..K."""
        return self.names[label - 1]

    def category_id(self, label: int) -> int:
        """The file's own id of a label in 1..K."""
        return self.category_ids[label - 1]

    def table(self) -> list[str]:
        """Lines that show each label, the id that it has in the files, and its name."""
        rows = zip(self.category_ids, self.names, strict=True)
        return [
            "label  id in the files  class",
            *(f"{k:>5}{category_id:>17}  {name}" for k, (category_id, name) in enumerate(rows, 1)),
        ]

    def categories(self) -> list[dict[str, Any]]:
        """COCO's `categories`, in the order of the labels."""
        return [{"id": i, "name": n} for i, n in zip(self.category_ids, self.names, strict=True)]


@runtime_checkable
class DetectionDataset(Protocol):
    """A data set as the runner uses it: samples, and what its index tells without decoding an image."""

    class_map: ClassMap
    iou_types: tuple[IouType, ...]
    keypoints: Keypoints | None  # where `iou_types` has them
    image_names: Sequence[str]  # unique, in the order of the indices

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...

    def get_height_and_width(self, index: int) -> tuple[int, int]:
        """Height and width of image `index` in pixels, without decoding it."""
        ...

    def ground_truth(self) -> dict[str, Any]:
        """COCO dict (`info`, `images`, `annotations`, `categories`) in original pixels; annotation ids from 1, boxes and
        areas in float64, crowd objects kept.
        """
        ...


def _fault(boxes: Tensor, labels: Tensor, height: int, width: int, classes: int) -> str | None:
    """The first object that breaks the contract, in words; None where all are well."""
    x0, y0, x1, y1 = boxes.unbind(1)
    inside = (x0 >= 0) & (y0 >= 0) & (x1 <= width) & (y1 <= height)
    for fault, said in (
        (~torch.isfinite(boxes).all(1), "has a box that is not finite: {box}"),
        ((x1 <= x0) | (y1 <= y0), "has a box of zero or negative width or height: {box}"),
        (~inside, f"has a box outside its image of {height} x {width} (height x width): {{box}}"),
        ((labels < 1) | (labels > classes), f"has label {{label}}; allowed are 1..{classes} (0 is the background)"),
    ):
        if bool(fault.any()):
            i = int(fault.nonzero()[0])
            return f"object {i} " + said.format(box=[round(v, 3) for v in boxes[i].tolist()], label=int(labels[i]))
    return None


def check_sample(image: Tensor, target: Target, class_map: ClassMap, iou_types: Sequence[IouType], where: str) -> None:
    """Hold one loaded sample against the contract.

    Args:
        image: uint8 `[3, H, W]`.
        target: see `Target`.
        class_map: the data set's classes, for the range of the labels.
        iou_types: what the data set promises: `segm` needs masks, `keypoints` keypoints.
        where: data set and image, as the error will name them.

    Raises:
        UserError: a field that is missing, or of the wrong type or shape; a box that is not finite, is empty or lies outside
            its image; a label outside 1..K; an area or a keypoint that is not finite. It names data set, image and object.
            torchvision takes all of these in silence.
    """
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
        raise UserError(f"{where}: the image is {image.dtype} {list(image.shape)}; expected uint8 [3, H, W].")
    height, width = image.shape[1:]
    promised = {FIELD_OF[iou_type] for iou_type in iou_types}
    missing = {"boxes", "labels", "image_id", "area", "iscrowd", *promised} - target.keys()
    if missing:
        raise UserError(f"{where}: the target lacks {', '.join(sorted(missing))}.")
    count = len(target["labels"])
    expected: dict[str, tuple[torch.dtype | None, tuple[int | None, ...]]] = {
        "boxes": (torch.float32, (count, 4)),
        "labels": (torch.int64, (count,)),
        "area": (torch.float32, (count,)),
        "iscrowd": (None, (count,)),
        "ignored": (torch.bool, (count,)),
        "masks": (torch.uint8, (count, height, width)),
        "keypoints": (torch.float32, (count, None, 3)),
    }
    for field, (dtype, shape) in expected.items():
        value = target.get(field)
        if value is None:
            continue
        fits = value.ndim == len(shape) and all(e in (None, s) for e, s in zip(shape, value.shape, strict=True))
        if not fits or (dtype is not None and value.dtype != dtype):
            wanted = [e if e is not None else "P" for e in shape]
            raise UserError(
                f"{where}: {field} is {value.dtype} {list(value.shape)}; expected {dtype or 'integer'} {wanted}."
            )
    for field, value in target.items():
        if isinstance(value, Tensor) and value.ndim and len(value) != count:
            raise UserError(
                f"{where}: {field} is {value.dtype} {list(value.shape)}, the image has {count} objects. A tensor holds a row for "
                "each object; give what holds for the whole image as a number, a list or a string."
            )
    if "masks" in target and count and int(target["masks"].max()) > 1:
        raise UserError(f"{where}: masks hold {int(target['masks'].max())}; expected 0 and 1.")
    fault = _fault(target["boxes"].as_subclass(Tensor), target["labels"], height, width, len(class_map))
    finite = torch.isfinite(target["area"])
    if fault is None and not bool(finite.all()):
        i = int((~finite).nonzero()[0])
        fault = f"object {i} has the area {float(target['area'][i])}, which is not finite"
    if fault is None and "keypoints" in target:
        fault = _keypoint_fault(target["keypoints"].as_subclass(Tensor))
    if fault is not None:
        raise UserError(f"{where}: {fault}.")


def _keypoint_fault(keypoints: Tensor) -> str | None:
    """What is wrong with the first object whose points are not finite or not 0, 1 or 2 in visibility."""
    seen = keypoints[..., 2]
    wrong = (~torch.isfinite(keypoints).all(-1) | ((seen != 0) & (seen != 1) & (seen != 2))).any(-1)
    if not bool(wrong.any()):
        return None
    i = int(wrong.nonzero()[0])
    return f"object {i} has the keypoints {keypoints[i].tolist()}; expected finite x, y, and a visibility of 0, 1 or 2"


def learnable_iou_types(model: object, data_types: Sequence[IouType], objective: str) -> tuple[IouType, ...]:
    """What a model learns from a data set and is scored by: its `iou_types`.

    Raises:
        UserError: the model does not say, it needs what the data set does not have, or the objective is none of its numbers.
    """
    model_types: Sequence[IouType] | None = getattr(model, "iou_types", None)
    if not model_types:
        raise UserError(
            f"model: {type(model).__name__} has no iou_types; set it to what it predicts, such as ('bbox',)."
        )
    lacking = [t for t in model_types if t not in data_types]
    if lacking:
        raise UserError(
            f"model: it learns {', '.join(model_types)}, but the data set has only {', '.join(data_types)}; "
            "take another model or add the missing annotations."
        )
    if objective.partition("/")[0] not in model_types:
        raise UserError(f"objective: {objective!r}, but this model is scored by {', '.join(model_types)}.")
    return tuple(model_types)
