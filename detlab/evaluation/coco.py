"""How good are these detections: COCO's numbers, computed by pycocotools."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import Any, cast

import numpy as np
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detlab.errors import UserError
from detlab.evaluation.metrics import METRICS
from detlab.evaluation.results import (
    SCORED_FIELD,
    check_results,
    entry_fault,
    keypoints_fault,
    mask_fault,
    numbers_fault,
    prediction_to_results,
)
from detlab.structures import IOU_TYPES, PERSON, RLE, ClassMap, IouType, Prediction


def score(
    ground_truth: dict[str, Any],
    results: list[dict[str, Any]],
    iou_type: IouType,
    *,
    sigmas: Sequence[float] | None = None,
) -> dict[str, float]:
    """COCO's numbers for detections, as pycocotools computes them; neither argument is changed.

    Ground truth may lack `info`, and its objects `iscrowd` (0), `area` (that of the mask for segm, else of the box) and
    `num_keypoints`; their ids are not used (pycocotools takes id 0 for "no match"). As in pycocotools, objects of
    images that `images` does not list are left out, images without results count as missed, and detected keypoints have
    the area of the `bbox` beside them, or of their extent where there is none. For segm a detection has the area of its
    mask, where pycocotools would take that of a `bbox` beside it.

    Args:
        ground_truth: COCO dict with `images`, `annotations`, `categories`; any of them may be empty.
        results: COCO results rows; may be empty.
        iou_type: `bbox`, `segm` or `keypoints`.
        sigmas: one standard deviation per keypoint, for keypoints; COCO's 17 of a person where not given.

    Returns:
        `<iou_type>/<metric>` for each of `METRICS[iou_type]`, in 0..1, and with more than one class
        `<iou_type>/AP/<class name>`. What has no ground truth to be measured on is nan; with it, no detections give 0.

    Raises:
        UserError: ground truth or results that cannot be scored; see also `check_results`.
    """
    sigmas = _check_sigmas(PERSON.sigmas if sigmas is None else sigmas)
    _check_ground_truth(ground_truth, iou_type, len(sigmas))
    image_ids, category_ids = ({entry["id"] for entry in ground_truth[k]} for k in ("images", "categories"))
    check_results(results, iou_type, image_ids=image_ids, category_ids=category_ids, points=len(sigmas))
    # pycocotools prints its progress. A buffer rather than None, which a live progress bar could not write to.
    with redirect_stdout(io.StringIO()):
        annotations = [dict(a) for a in ground_truth["annotations"] if a["image_id"] in image_ids]
        truth = _index(ground_truth, annotations)
        _complete(annotations, truth, iou_type, len(sigmas))
        evaluation = COCOeval(truth, _index(ground_truth, _detections(results, iou_type, truth)), iou_type)
        if iou_type == "keypoints":
            evaluation.params.kpt_oks_sigmas = np.asarray(sigmas)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return _numbers(evaluation, iou_type)


class CocoEvaluator:
    """Gathers predictions image by image, then scores them once; knows no model.

    What it holds of an image is a list of plain rows, so that several processes can exchange it.

    Args:
        ground_truth: COCO dict in original pixels (`DetectionDataset.ground_truth`); kept, never changed.
        class_map: turns labels into the category ids of `ground_truth`.
        iou_types: what to score.
        keypoint_sigmas: one standard deviation per keypoint; COCO's 17 of a person where not given.

    Raises:
        ValueError: an unknown type, or a class that the ground truth's categories do not hold.
    """

    takes_masks_in_boxes = True

    def __init__(
        self,
        *,
        ground_truth: dict[str, Any],
        class_map: ClassMap,
        iou_types: Sequence[IouType],
        keypoint_sigmas: Sequence[float] | None = None,
    ) -> None:
        unknown = set(iou_types) - set(IOU_TYPES)
        if unknown:
            raise ValueError(f"iou_types: {sorted(unknown)} unknown; allowed are {list(IOU_TYPES)}")
        absent = set(class_map.category_ids) - {c["id"] for c in ground_truth["categories"]}
        if absent:
            raise ValueError(f"class_map: category ids {sorted(absent)} are not in the ground truth's categories")
        self.ground_truth = ground_truth
        self.class_map = class_map
        self.iou_types = tuple(iou_types)
        self.keypoint_sigmas = keypoint_sigmas
        self._image_ids = {image["id"] for image in ground_truth["images"]}
        self._rows: dict[int, list[dict[str, Any]]] = {}  # by image id; an empty list where nothing was detected

    def reset(self) -> None:
        """Forget every prediction."""
        self._rows = {}

    def update(self, image_ids: Sequence[int], predictions: Sequence[Prediction]) -> None:
        """Take in a batch.

        Args:
            image_ids: B ids, as in the ground truth, each of them once in an evaluation.
            predictions: B predictions in original pixels, on any device; masks are kept as run lengths only.

        Raises:
            UserError: keypoints that are not as many as the sigmas.
            ValueError: an image that is unknown or was there before; a label outside 1..K; a field that is missing.
        """
        if "keypoints" in self.iou_types:
            self._check_points(predictions)
        for image_id, prediction in zip(image_ids, predictions, strict=True):
            if image_id not in self._image_ids:
                raise ValueError(f"image {image_id} is not in the ground truth")
            if image_id in self._rows:
                raise ValueError(f"image {image_id} was evaluated twice; each image counts once")
            self._rows[image_id] = prediction_to_results(image_id, prediction, self.class_map, self.iou_types)

    def _check_points(self, predictions: Sequence[Prediction]) -> None:
        points = len(PERSON.sigmas if self.keypoint_sigmas is None else self.keypoint_sigmas)
        for prediction in predictions:
            if "keypoints" in prediction and prediction["keypoints"].shape[1] != points:
                raise UserError(
                    f"model: it predicts {prediction['keypoints'].shape[1]} keypoints of an object, but the data set has {points}."
                )

    def held(self) -> dict[int, list[dict[str, Any]]]:
        """What was taken in so far, by image id, in plain values that another process's `merge` takes."""
        return self._rows

    def merge(self, held: dict[int, list[dict[str, Any]]]) -> None:
        """Take in what another process's evaluator holds.

        Raises:
            ValueError: an image that was there before.
        """
        twice = self._rows.keys() & held.keys()
        if twice:
            raise ValueError(f"images {sorted(twice)} were evaluated twice; each image counts once")
        self._rows |= held

    def results(self) -> list[dict[str, Any]]:
        """COCO results rows so far, ready for JSON, by image id: the same in whatever order the images came."""
        return [row for image_id in sorted(self._rows) for row in self._rows[image_id]]

    def compute(self) -> dict[str, float]:
        """The numbers of `score` for every type, over all images of the ground truth; may be called again."""
        results = self.results()
        numbers: dict[str, float] = {}
        for iou_type in self.iou_types:
            numbers |= score(self.ground_truth, results, iou_type, sigmas=self.keypoint_sigmas)
        return numbers


def _check_sigmas(sigmas: Sequence[float]) -> tuple[float, ...]:
    """The sigmas, all of them above 0."""
    if not sigmas or not all(math.isfinite(s) and s > 0 for s in sigmas):
        raise UserError(f"keypoint sigmas: {list(sigmas)}; expected a finite number above 0 for each keypoint.")
    return tuple(sigmas)


def _check_ground_truth(ground_truth: Any, iou_type: IouType, points: int) -> None:
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


def _index(ground_truth: dict[str, Any], annotations: list[dict[str, Any]]) -> COCO:
    """The index that pycocotools makes of objects or of detections; gives them ids from 1."""
    for number, annotation in enumerate(annotations, start=1):
        annotation["id"] = number
    index = COCO()
    # The cast: its type stubs demand every field that COCO's own files have.
    index.dataset = cast(
        "Any",
        {
            "info": {},
            "images": ground_truth["images"],
            "categories": ground_truth["categories"],
            "annotations": annotations,
        },
    )
    index.createIndex()
    return index


def _complete(annotations: list[dict[str, Any]], truth: COCO, iou_type: IouType, points: int) -> None:
    """Add to objects (our own copies) what pycocotools reads and files leave out."""
    if iou_type == "keypoints" and annotations and not any("keypoints" in a for a in annotations):
        raise UserError("ground truth: no object has keypoints; score bbox or segm.")
    for annotation in annotations:
        annotation["iscrowd"] = int(annotation.get("iscrowd") or 0)
        if iou_type == "segm":
            annotation["segmentation"] = _encoded(truth, annotation, "ground truth")
        if iou_type == "keypoints":
            # No keypoint known: pycocotools then leaves the object out, and what was detected around it.
            annotation.setdefault("keypoints", [0] * (3 * points))
            annotation.setdefault("num_keypoints", sum(v > 0 for v in annotation["keypoints"][2::3]))
        if annotation.get("area") is None:
            annotation["area"] = _area(annotation, "segmentation" if iou_type == "segm" else "bbox")


def _area(row: dict[str, Any], field: str) -> float:
    """Area in pixels of a row's compressed `segmentation`, its `bbox`, or the extent of its `keypoints`."""
    if field == "segmentation":
        return float(rle.area(row["segmentation"]))
    if field == "bbox":
        return row["bbox"][2] * row["bbox"][3]
    x, y = row["keypoints"][0::3], row["keypoints"][1::3]
    return (max(x) - min(x)) * (max(y) - min(y))


def _encoded(truth: COCO, row: dict[str, Any], source: str) -> RLE:
    """A row's polygons or run lengths as compressed run lengths of the size of its image."""
    image = truth.imgs[row["image_id"]]
    if "height" not in image or "width" not in image:
        raise UserError(f"ground truth: image {image['id']} lacks height and width, needed to score segm.")
    try:
        for polygon in row["segmentation"] if isinstance(row["segmentation"], list) else ():
            fault = numbers_fault(polygon, len(polygon))
            if fault is not None:
                raise ValueError(f"a polygon {fault}")
        encoded: RLE = cast("Any", truth).annToRLE(row)
    except Exception as error:  # pycocotools raises whatever the first wrong type leads to
        raise UserError(
            f"{source}: image {image['id']} has a segmentation that is neither polygons nor run lengths ({error})."
        ) from error
    fault = mask_fault(encoded, image["height"], image["width"])
    if fault is not None:
        raise UserError(f"{source}: image {image['id']} has a mask that {fault}.")
    return encoded


def _detections(results: list[dict[str, Any]], iou_type: IouType, truth: COCO) -> list[dict[str, Any]]:
    """New rows with what pycocotools reads of a detection, `area` included."""
    field = SCORED_FIELD[iou_type]
    detections = []
    for row in results:
        detection = {key: row[key] for key in ("image_id", "category_id", "score", field)}
        if iou_type == "segm":
            detection["segmentation"] = _encoded(truth, row, "results")
        # Beside keypoints a box is the better measure of the object; beside a mask it is not.
        has_box = iou_type == "keypoints" and bool(row.get("bbox"))
        detection["area"] = _area(row, "bbox") if has_box else _area(detection, field)
        detections.append(detection)
    return detections


def _numbers(evaluation: COCOeval, iou_type: IouType) -> dict[str, float]:
    """The summary and the AP of each class, nan for pycocotools' -1 (nothing to measure)."""
    metrics = METRICS[iou_type]
    values = {f"{iou_type}/{m.name}": float(v) for m, v in zip(metrics, evaluation.stats, strict=True)}
    categories = evaluation.cocoGt.cats
    if len(categories) > 1:
        # [thresholds, recalls, classes, areas, limits]: all areas stand first, the highest limit last.
        precision = evaluation.eval["precision"][:, :, :, 0, -1]
        for k, category_id in enumerate(evaluation.params.catIds):
            # A class has ground truth, and so a precision everywhere, or -1 everywhere.
            values[f"{iou_type}/AP/{categories[category_id]['name']}"] = float(precision[:, :, k].mean())
    return {name: math.nan if value < 0 else value for name, value in values.items()}
