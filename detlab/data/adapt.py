"""A plain torch Dataset, the fine-tuning tutorial's kind, made to keep detlab's contract."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from detlab.data.images import UNREADABLE, stored_rgb
from detlab.data.keypoints import coco_categories, keypoints_from_config
from detlab.data.split import random_split
from detlab.errors import UserError
from detlab.masks import encode
from detlab.structures import FIELD_OF, IOU_TYPES, ClassMap, IouType, Sample, Target, check_sample

log = logging.getLogger(__name__)


def adapt_image(image: Any, where: str) -> tv_tensors.Image:
    """A PIL image of any mode, or a tensor or array `[C, H, W]` (uint8, or float 0..1), as uint8 `[3, H, W]`.

    A PIL image is not turned by its EXIF orientation: the target is of the image as it is returned.

    Raises:
        UserError: none of these, or a PIL image that cannot be decoded.
    """
    if isinstance(image, Image.Image):
        try:
            return stored_rgb(image)
        except UNREADABLE as error:
            raise UserError(f"{where}: not readable as an image ({error}).") from None
    pixels = torch.as_tensor(image).as_subclass(Tensor)
    if pixels.ndim != 3 or pixels.shape[0] not in (1, 3):
        raise UserError(f"{where}: the image has shape {list(pixels.shape)}; expected a PIL image or [3, H, W].")
    if pixels.is_floating_point():
        pixels = F.to_dtype(pixels, torch.uint8, scale=True)
    return tv_tensors.Image(pixels.expand(3, -1, -1))


def adapt_target(target: dict[str, Any], size: tuple[int, int], where: str) -> Target:
    """Bring a target's fields to the contract's types; absent `area` and `iscrowd` are made from the boxes.

    Raises:
        UserError: a field that is missing or cannot be read as numbers.
    """
    missing = {"boxes", "labels", "image_id"} - target.keys()
    if missing:
        raise UserError(f"{where}: the target lacks {', '.join(sorted(missing))}.")
    try:
        boxes = torch.as_tensor(target["boxes"], dtype=torch.float32).as_subclass(Tensor).reshape(-1, 4)
        labels = torch.as_tensor(target["labels"], dtype=torch.int64).reshape(-1)
        image_id = int(target["image_id"])
        area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        adapted: Target = {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size),  # pyright: ignore
            "labels": labels,
            "image_id": image_id,
            "area": torch.as_tensor(target["area"], dtype=torch.float32) if "area" in target else area,
            "iscrowd": torch.as_tensor(target["iscrowd"]) if "iscrowd" in target else torch.zeros_like(labels),
        }
        if "masks" in target:
            masks = (torch.as_tensor(target["masks"]).as_subclass(Tensor) != 0).to(torch.uint8)
            adapted["masks"] = tv_tensors.Mask(masks.reshape(-1, *masks.shape[-2:]) if masks.ndim >= 2 else masks)
        if "ignored" in target:
            adapted["ignored"] = torch.as_tensor(target["ignored"], dtype=torch.bool)
        if "keypoints" in target:
            adapted["keypoints"] = torch.as_tensor(target["keypoints"], dtype=torch.float32).as_subclass(Tensor)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{where}: the target cannot be read: {error}.") from None
    return adapted


class AdaptedDataset:
    """Any map-style torch Dataset of `(image, target)`, split in parts, with detlab's contract.

    The tutorial's class works as it stands: PIL image, `image_id` a tensor of one element, boxes as xyxy, labels from 1.
    What the contract wants to know without decoding (sizes, ground truth) is learnt by reading the part once, when it is
    first asked for.

    Args:
        dataset: the user's data set.
        classes: names of the labels 1..K.
        keypoints: what the points of the samples' `keypoints` are, see `keypoints_from_config`; None where they have none.
        part: `train`, `val` or `test`.
        val_size: number of images for validation.
        split_seed: of the random split.
        test_size: number of images held out for the test.

    Raises:
        UserError: a sample that cannot be adapted, keypoints that nobody has described, or an `image_id` that stands twice.
    """

    def __init__(
        self,
        *,
        dataset: Dataset[Any],
        classes: Sequence[str],
        part: str,
        val_size: int,
        split_seed: int,
        test_size: int,
        keypoints: Mapping[str, Any] | None,
    ) -> None:
        self.class_map = ClassMap(tuple(classes))
        self._dataset = dataset
        self._name = type(dataset).__name__
        self._chosen = random_split(len(cast(Any, dataset)), val_size, split_seed, part, test_size=test_size)
        self.image_names = [f"{self._name}[{i}]" for i in self._chosen]
        self.keypoints = keypoints_from_config(keypoints, "dataset.keypoints")
        self.iou_types: tuple[IouType, ...] = ("bbox", "keypoints") if self.keypoints is not None else ("bbox",)
        first = self[0][1] if self._chosen else {}
        self.iou_types = tuple(t for t in IOU_TYPES if t in self.iou_types or FIELD_OF[t] in first)

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, index: int) -> Sample:
        where = self.image_names[index]
        sample = self._dataset[self._chosen[index]]
        if not isinstance(sample, tuple) or len(sample) != 2 or not isinstance(sample[1], dict):
            raise UserError(
                f"{where}: gives {type(sample).__name__}; expected the pair (image, target), target a dict."
            )
        image = adapt_image(sample[0], where)
        size = (image.shape[1], image.shape[2])
        target = adapt_target(sample[1], size, where)
        if not len(target["labels"]) and "segm" in self.iou_types and "masks" not in target:
            target["masks"] = tv_tensors.Mask(torch.zeros((0, *size), dtype=torch.uint8))
        if "keypoints" in target:
            self._check_points(target["keypoints"], where)
        if not len(target["labels"]) and self.keypoints is not None:
            target["keypoints"] = torch.zeros((0, len(self.keypoints), 3))
        return image, target

    def _check_points(self, points: Tensor, where: str) -> None:
        """Refuse points that the settings do not describe; no objects have any."""
        count = points.shape[1] if points.ndim == 3 else None
        if self.keypoints is None:
            raise UserError(
                f"{where}: has keypoints, {list(points.shape)}, and nothing says what they are; give dataset.keypoints={{names: "
                "[...], sigmas: [...]}, and flip_pairs where they are not left_x and right_x."
            )
        if len(points) and count != len(self.keypoints):
            raise UserError(
                f"{where}: keypoints are {list(points.shape)}, but dataset.keypoints.names has {len(self.keypoints)}; expected "
                f"[objects, {len(self.keypoints)}, 3]."
            )

    @cached_property
    def _index(self) -> list[tuple[tuple[int, int], list[dict[str, Any]], int]]:
        """For each image: its size, its objects as COCO annotations less their ids, its id."""
        if not hasattr(self._dataset, "get_height_and_width"):
            hint = "; a method get_height_and_width(index) of its own spares this where only sizes are asked for"
        else:
            hint = ""
        log.info("reading %d samples of %s once, for the ground truth%s", len(self), self._name, hint)
        rows = []
        for i in range(len(self)):
            image, target = self[i]
            check_sample(image, target, self.class_map, self.iou_types, self.image_names[i])
            rows.append(((image.shape[1], image.shape[2]), self._annotations(target), target["image_id"]))
        ids = [image_id for _, _, image_id in rows]
        twice = next((i for i, image_id in enumerate(ids) if ids.index(image_id) != i), None)
        if twice is not None:
            raise UserError(f"{self.image_names[twice]}: image_id {ids[twice]} stands twice; give each image its own.")
        return rows

    def _annotations(self, target: Target) -> list[dict[str, Any]]:
        rows = []
        rles = encode(target["masks"].numpy()) if "masks" in target else []
        for i, (x0, y0, x1, y1) in enumerate(target["boxes"].tolist()):
            row: dict[str, Any] = {
                "category_id": self.class_map.category_id(int(target["labels"][i])),
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": float(target["area"][i]),
                "iscrowd": int(target["iscrowd"][i]),
            }
            if "masks" in target:
                row["segmentation"] = rles[i]
            if "keypoints" in target:
                row["keypoints"] = target["keypoints"][i].flatten().tolist()
                row["num_keypoints"] = int((target["keypoints"][i, :, 2] > 0).sum())
            rows.append(row)
        return rows

    def get_height_and_width(self, index: int) -> tuple[int, int]:
        """Height and width of an image in pixels: by the user's own `get_height_and_width` where there is one."""
        ask = getattr(self._dataset, "get_height_and_width", None)
        if ask is None:
            return self._index[index][0]
        height, width = ask(self._chosen[index])
        return int(height), int(width)

    def ground_truth(self) -> dict[str, Any]:
        """COCO dict of this part."""
        images = [
            {"id": image_id, "file_name": name, "height": size[0], "width": size[1]}
            for name, (size, _, image_id) in zip(self.image_names, self._index, strict=True)
        ]
        rows = [{"image_id": image_id, **row} for _, objects, image_id in self._index for row in objects]
        annotations = [{"id": i + 1, **row} for i, row in enumerate(rows)]
        info, categories = {"description": self._name}, coco_categories(self.class_map, self.keypoints)
        return {"info": info, "images": images, "annotations": annotations, "categories": categories}
