"""Which ground truth can be scored, and what scoring reads of it that files leave out."""

from __future__ import annotations

import functools
from collections.abc import Hashable
from typing import Any, cast

import numpy as np
from pycocotools import mask as rle
from pycocotools.coco import COCO

from detlab.errors import UserError
from detlab.evaluation.instances import Objects, mask_array
from detlab.evaluation.overlaps import mask_boxes
from detlab.evaluation.results import SCORED_FIELD, entry_fault, keypoints_fault, mask_fault, numbers_fault
from detlab.structures import RLE, IouType


class GroundTruth:
    """A COCO dict for one type: checked, and completed in copies of its objects; see `detlab.evaluation.coco.score`.

    Args:
        ground_truth: COCO dict; never changed.
        iou_type: what is to be scored.
        points: number of keypoints of an object.

    Raises:
        UserError: names the first entry that cannot be scored.
    """

    def __init__(self, ground_truth: dict[str, Any], iou_type: IouType, points: int) -> None:
        _check(ground_truth, iou_type, points)
        self.iou_type: IouType = iou_type
        self.images: dict[Hashable, dict[str, Any]] = {image["id"]: image for image in ground_truth["images"]}
        self.category_names: dict[Hashable, str] = {c["id"]: c["name"] for c in ground_truth["categories"]}
        self.annotations = [dict(a) for a in ground_truth["annotations"] if a["image_id"] in self.images]
        self._complete(points)

    def _complete(self, points: int) -> None:
        """Add to objects (our own copies) what scoring reads and files leave out."""
        if self.iou_type == "keypoints" and self.annotations and not any("keypoints" in a for a in self.annotations):
            raise UserError("ground truth: no object has keypoints; score bbox or segm.")
        for annotation in self.annotations:
            annotation["iscrowd"] = int(annotation.get("iscrowd") or 0)
            if self.iou_type == "segm":
                annotation["segmentation"] = self.encoded(annotation, "ground truth")
            if self.iou_type == "keypoints":
                # No keypoint known: the object is then left out, and what was detected around it.
                annotation.setdefault("keypoints", [0] * (3 * points))
                annotation.setdefault("num_keypoints", sum(v > 0 for v in annotation["keypoints"][2::3]))
            if annotation.get("area") is None:
                annotation["area"] = area(annotation, "segmentation" if self.iou_type == "segm" else "bbox")

    def encoded(self, row: dict[str, Any], source: str) -> RLE:
        """A row's polygons or run lengths as compressed run lengths of the size of its image.

        Raises:
            UserError: they cannot be read, or are of another size; names `source` and the image.
        """
        image = self.images[row["image_id"]]
        if "height" not in image or "width" not in image:
            raise UserError(f"ground truth: image {image['id']} lacks height and width, needed to score segm.")
        try:
            for polygon in row["segmentation"] if isinstance(row["segmentation"], list) else ():
                fault = numbers_fault(polygon, len(polygon))
                if fault is not None:
                    raise ValueError(f"a polygon {fault}")
            encoded = _compressed(row["segmentation"], image["height"], image["width"])
        except Exception as error:  # pycocotools raises whatever the first wrong type leads to
            raise UserError(
                f"{source}: image {image['id']} has a segmentation that is neither polygons nor run lengths ({error})."
            ) from error
        if isinstance(row["segmentation"], list):
            return encoded  # of polygons pycocotools makes runs that fit the image
        fault = mask_fault(encoded, image["height"], image["width"])
        if fault is not None:
            raise UserError(f"{source}: image {image['id']} has a mask that {fault}.")
        return encoded

    @functools.cached_property
    def index(self) -> COCO:
        """The index that pycocotools makes of it."""
        return self.indexed(self.annotations)

    def indexed(self, rows: list[dict[str, Any]]) -> COCO:
        """The index that pycocotools makes of objects or of detections; gives them ids from 1."""
        for number, row in enumerate(rows, start=1):
            row["id"] = number
        categories = [{"id": i, "name": name} for i, name in self.category_names.items()]
        index = COCO()
        # The cast: its type stubs demand every field that COCO's own files have.
        index.dataset = cast(
            "Any", {"info": {}, "images": list(self.images.values()), "categories": categories, "annotations": rows}
        )
        index.createIndex()
        return index

    @functools.cached_property
    def image_numbers(self) -> dict[Hashable, int]:
        """From the images' ids to 0, 1, ... in their order."""
        return {image_id: number for number, image_id in enumerate(sorted(cast("Any", self.images)))}

    @functools.cached_property
    def class_numbers(self) -> dict[Hashable, int]:
        """From the categories' ids to 0, 1, ... in their order."""
        return {category_id: number for number, category_id in enumerate(sorted(cast("Any", self.category_names)))}

    @property
    def class_names(self) -> list[str]:
        """The names in the order of `class_numbers`."""
        return [self.category_names[category_id] for category_id in self.class_numbers]

    @functools.cached_property
    def objects(self) -> Objects:
        """Its objects as arrays."""
        rows = self.annotations
        shapes = shapes_of(rows, self.iou_type)
        crowd = np.array([row["iscrowd"] != 0 for row in rows], bool)
        boxes = mask_boxes(shapes) if self.iou_type == "segm" else shapes_of(rows, "bbox")
        unknown = np.array([self.iou_type == "keypoints" and row["num_keypoints"] == 0 for row in rows], bool)
        return Objects(
            images=np.array([self.image_numbers[row["image_id"]] for row in rows], np.int64),
            classes=np.array([self.class_numbers[row["category_id"]] for row in rows], np.int64),
            areas=np.array([row["area"] for row in rows], np.float64),
            shapes=shapes,
            boxes=boxes,
            crowd=crowd,
            ignored=crowd | unknown,
        )


def shapes_of(rows: list[dict[str, Any]], iou_type: IouType) -> np.ndarray:
    """What `iou_type` scores of rows whose masks are compressed run lengths, as `Objects` and `Detections` have it."""
    values = [row[SCORED_FIELD[iou_type]] for row in rows]
    if iou_type == "segm":
        return mask_array(values)
    if iou_type == "keypoints":
        return np.array(values, np.float64).reshape(len(rows), -1 if rows else 0, 3)
    return np.array(values, np.float64).reshape(-1, 4)


def area(row: dict[str, Any], field: str) -> float:
    """Area in pixels of a row's compressed `segmentation`, its `bbox`, or the extent of its `keypoints`."""
    if field == "segmentation":
        return float(rle.area(row["segmentation"]))
    if field == "bbox":
        return row["bbox"][2] * row["bbox"][3]
    x, y = row["keypoints"][0::3], row["keypoints"][1::3]
    return (max(x) - min(x)) * (max(y) - min(y))


def _compressed(segmentation: Any, height: int, width: int) -> RLE:
    """Polygons (their union) or run lengths as compressed run lengths; raises anything where it is neither."""
    if isinstance(segmentation, list):
        parts: Any = cast("Any", rle).frPyObjects(segmentation, height, width)
        return cast("Any", rle).merge(parts)
    if isinstance(segmentation["counts"], list):
        return cast("Any", rle).frPyObjects(segmentation, height, width)
    return segmentation


def _check(ground_truth: Any, iou_type: IouType, points: int) -> None:
    """Hold a COCO dict against what scoring reads of it; UserError names the first entry that does not fit."""
    if not isinstance(ground_truth, dict):
        raise UserError(f"ground truth: expected a COCO dict, got {type(ground_truth).__name__}.")
    for part, fields in (("images", ["id"]), ("categories", ["id", "name"]), ("annotations", [])):
        if not isinstance(ground_truth.get(part), list):
            raise UserError(f"ground truth: no list {part!r}; a COCO file holds images, annotations and categories.")
        for index, entry in enumerate(ground_truth[part]):
            if not isinstance(entry, dict) or any(field not in entry for field in fields):
                raise UserError(f"ground truth: {part}[{index}] is no object with {', '.join(fields) or 'fields'}.")
    names = [category["name"] for category in ground_truth["categories"]]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"ground truth: two categories are called {twice!r}; their AP could not be told apart.")
    category_ids = {category["id"] for category in ground_truth["categories"]}
    for index, annotation in enumerate(ground_truth["annotations"]):
        fault = _annotation_fault(annotation, iou_type, category_ids, points)
        if fault is not None:
            image = f" (image {annotation['image_id']})" if "image_id" in annotation else ""
            raise UserError(f"ground truth: annotations[{index}]{image} {fault}.")


def _annotation_fault(annotation: dict[str, Any], iou_type: IouType, category_ids: set[Any], points: int) -> str | None:
    """The first thing that keeps one object from being scored, in words; None where it can be."""
    needed = "segmentation" if iou_type == "segm" else "bbox"
    fault = entry_fault(annotation, ("image_id", "category_id", needed), category_ids)
    if fault is not None:
        return fault
    if annotation.get("area") is not None and numbers_fault([annotation["area"]], 1):
        return f"has area {annotation['area']}; expected a finite number"
    fault = numbers_fault(annotation["bbox"], 4) if needed == "bbox" else None
    if fault is not None:
        return f"has a bbox that {fault}"
    if iou_type == "keypoints" and "keypoints" in annotation:
        fault = keypoints_fault(annotation["keypoints"], points)
    return None if fault is None else f"has keypoints that {fault}"
