"""How good are these detections: COCO's numbers, by pycocotools or in less time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from detlab.errors import UserError
from detlab.evaluation import by_pycocotools, scoring
from detlab.evaluation.ground_truth import GroundTruth, area, shapes_of
from detlab.evaluation.instances import Detections, mask_array
from detlab.evaluation.metrics import BACKENDS, Backend
from detlab.evaluation.overlaps import mask_areas
from detlab.evaluation.results import SCORED_FIELD, Found, check_results, found_in, rows_of
from detlab.structures import IOU_TYPES, PERSON, ClassMap, IouType, Prediction


def score(
    ground_truth: dict[str, Any],
    results: list[dict[str, Any]],
    iou_type: IouType,
    *,
    sigmas: Sequence[float] | None = None,
    backend: Backend = "auto",
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
        backend: `pycocotools`, `faster` (`detlab.evaluation.scoring`), or `auto`: `faster`.

    Returns:
        `<iou_type>/<metric>` for each of `METRICS[iou_type]`, in 0..1, and with more than one class
        `<iou_type>/AP/<class name>`. What has no ground truth to be measured on is nan; with it, no detections give 0.

    Raises:
        UserError: ground truth or results that cannot be scored; see also `check_results`.
        ValueError: another backend.
    """
    _check_backend(backend)
    sigmas = checked_sigmas(sigmas)
    truth, rows = _truth_and_rows(ground_truth, results, iou_type, sigmas)
    if backend == "pycocotools":
        return by_pycocotools.numbers_of(truth, rows, sigmas)
    return _by_scoring(truth, _detections_of_rows(rows, truth), sigmas)


def arrays_of(
    ground_truth: dict[str, Any], results: list[dict[str, Any]], iou_type: IouType, sigmas: Sequence[float]
) -> tuple[GroundTruth, Detections]:
    """What `score` scores, for whoever asks more of it than numbers.

    Args:
        ground_truth: as in `score`.
        results: as in `score`.
        iou_type: `bbox`, `segm` or `keypoints`.
        sigmas: one standard deviation per keypoint.

    Returns:
        The ground truth, and the rows of `results` as arrays, in their order.

    Raises:
        UserError: as in `score`.
    """
    truth, rows = _truth_and_rows(ground_truth, results, iou_type, sigmas)
    return truth, _detections_of_rows(rows, truth)


def matched(
    ground_truth: dict[str, Any],
    results: list[dict[str, Any]],
    iou_type: IouType,
    *,
    sigmas: Sequence[float] | None = None,
) -> scoring.Matched:
    """What `score` knows before it counts images, for `detlab.evaluation.scoring.numbers_by_weight`; its arguments and errors."""
    sigmas = checked_sigmas(sigmas)
    truth, rows = _truth_and_rows(ground_truth, results, iou_type, sigmas)
    detections = _detections_of_rows(rows, truth)
    return scoring.match_all(truth.objects, detections, iou_type, class_names=truth.class_names, sigmas=sigmas)


def _truth_and_rows(
    ground_truth: dict[str, Any], results: list[dict[str, Any]], iou_type: IouType, sigmas: Sequence[float]
) -> tuple[GroundTruth, list[dict[str, Any]]]:
    """Both checked, the rows with their areas."""
    truth = GroundTruth(ground_truth, iou_type, len(sigmas))
    _check_rows(results, truth, len(sigmas))
    return truth, _with_areas(results, truth)


class CocoEvaluator:
    """Gathers predictions image by image, then scores them once; knows no model.

    What it holds of an image are plain arrays, so that several processes can exchange it.

    Args:
        ground_truth: COCO dict in original pixels (`DetectionDataset.ground_truth`); kept, never changed.
        class_map: turns labels into the category ids of `ground_truth`.
        iou_types: what to score.
        keypoint_sigmas: one standard deviation per keypoint; COCO's 17 of a person where not given.
        backend: `pycocotools`, `faster`, or `auto`: `faster`; see `score`.

    Raises:
        ValueError: an unknown type or backend, or a class that the ground truth's categories do not hold.
    """

    takes_masks_in_boxes = True

    def __init__(
        self,
        *,
        ground_truth: dict[str, Any],
        class_map: ClassMap,
        iou_types: Sequence[IouType],
        keypoint_sigmas: Sequence[float] | None = None,
        backend: Backend = "auto",
    ) -> None:
        _check_backend(backend)
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
        self.backend = backend
        self._image_ids = {image["id"] for image in ground_truth["images"]}
        self._truths: dict[IouType, GroundTruth] = {}  # checked and indexed once, when it is first needed
        self._found: dict[int, Found] = {}  # by image id
        self._matches: dict[IouType, scoring.Matched] = {}  # of what was found so far

    def reset(self) -> None:
        """Forget every prediction."""
        self._found, self._matches = {}, {}

    def update(self, image_ids: Sequence[int], predictions: Sequence[Prediction]) -> None:
        """Take in a batch.

        Args:
            image_ids: B ids, as in the ground truth, each of them once in an evaluation.
            predictions: B predictions in original pixels, on any device; masks are kept as run lengths only.

        Raises:
            UserError: keypoints that are not as many as the sigmas.
            ValueError: an image that is unknown or was there before; a label outside 1..K; a field that is missing.
        """
        self._matches = {}
        if "keypoints" in self.iou_types:
            self._check_points(predictions)
        for image_id, prediction in zip(image_ids, predictions, strict=True):
            if image_id not in self._image_ids:
                raise ValueError(f"image {image_id} is not in the ground truth")
            if image_id in self._found:
                raise ValueError(f"image {image_id} was evaluated twice; each image counts once")
            self._found[image_id] = found_in(image_id, prediction, self.class_map, self.iou_types)

    def _check_points(self, predictions: Sequence[Prediction]) -> None:
        points = len(PERSON.sigmas if self.keypoint_sigmas is None else self.keypoint_sigmas)
        for prediction in predictions:
            if "keypoints" in prediction and prediction["keypoints"].shape[1] != points:
                raise UserError(
                    f"model: it predicts {prediction['keypoints'].shape[1]} keypoints of an object, but the data set has {points}."
                )

    def held(self) -> dict[int, Found]:
        """What was taken in so far, by image id, in arrays that another process's `merge` takes."""
        return self._found

    def merge(self, held: dict[int, Found]) -> None:
        """Take in what another process's evaluator holds.

        Raises:
            ValueError: an image that was there before.
        """
        twice = self._found.keys() & held.keys()
        if twice:
            raise ValueError(f"images {sorted(twice)} were evaluated twice; each image counts once")
        self._found |= held
        self._matches = {}

    def results(self) -> list[dict[str, Any]]:
        """COCO results rows so far, ready for JSON, by image id: the same in whatever order the images came."""
        return [row for i in sorted(self._found) for row in rows_of(i, self._found[i], self.class_map)]

    def compute(self) -> dict[str, float]:
        """The numbers of `score` for every type, over all images of the ground truth; may be called again.

        Raises:
            UserError: ground truth that cannot be scored, predictions that are not finite, masks of another size than the image.
        """
        numbers: dict[str, float] = {}
        for iou_type in self.iou_types:
            numbers |= self._numbers(iou_type)
        return numbers

    def counts(self, iou_type: IouType, scores: np.ndarray) -> dict[str, scoring.Counts]:
        """What precision-recall curves at an IoU of 0.5 are drawn from, by class name; classes without objects are left out.

        Args:
            iou_type: one of `iou_types`.
            scores: float64 `[S]`, ascending thresholds.
        """
        matched = self._matched(iou_type)
        counts = scoring.counts_of(matched, scores)
        return {
            name: scoring.Counts(scores, counts.right[k], counts.wrong[k], counts.objects[k])
            for k, name in enumerate(matched.class_names)
            if counts.objects[k]
        }

    def _numbers(self, iou_type: IouType) -> dict[str, float]:
        if self.backend == "pycocotools":
            sigmas, truth = checked_sigmas(self.keypoint_sigmas), self._truth(iou_type)
            rows = self.results()
            _check_rows(rows, truth, len(sigmas))
            return by_pycocotools.numbers_of(truth, _with_areas(rows, truth), sigmas)
        return scoring.numbers_once(self._matched(iou_type))

    def _matched(self, iou_type: IouType) -> scoring.Matched:
        """What was found of what, worked out once for all that is asked of it."""
        if iou_type not in self._matches:
            sigmas, truth = checked_sigmas(self.keypoint_sigmas), self._truth(iou_type)
            detections = self._detections(iou_type, truth, len(sigmas))
            # Our own rows need no other check, and none that looks at each of them.
            finite = np.isfinite(detections.scores).all() and np.isfinite(detections.areas).all()
            if not finite or (iou_type != "segm" and not np.isfinite(detections.shapes).all()):
                _check_rows(self.results(), truth, len(sigmas))
            self._matches[iou_type] = scoring.match_all(
                truth.objects, detections, iou_type, class_names=truth.class_names, sigmas=sigmas
            )
        return self._matches[iou_type]

    def _truth(self, iou_type: IouType) -> GroundTruth:
        if iou_type not in self._truths:
            points = len(checked_sigmas(self.keypoint_sigmas))
            self._truths[iou_type] = GroundTruth(self.ground_truth, iou_type, points)
        return self._truths[iou_type]

    def _detections(self, iou_type: IouType, truth: GroundTruth, points: int) -> Detections:
        """All that was found, as arrays, in the order of `results`."""
        image_ids = sorted(self._found)
        parts = [self._found[image_id] for image_id in image_ids]
        class_numbers = np.array([truth.class_numbers[i] for i in self.class_map.category_ids])
        image_numbers = np.array([truth.image_numbers[i] for i in image_ids], np.int64)
        labels = np.concatenate([np.zeros(0, np.int64), *(part.labels for part in parts)])
        shapes = boxes = np.concatenate([np.zeros((0, 4)), *(part.boxes_xywh for part in parts)])
        areas = boxes[:, 2] * boxes[:, 3]
        if iou_type == "segm":
            shapes = mask_array([mask for image_id in image_ids for mask in self._masks(image_id, truth)])
            areas = mask_areas(shapes)
        if iou_type == "keypoints":
            keypoints = (part.keypoints for part in parts if part.keypoints is not None)
            shapes = np.concatenate([np.zeros((0, points, 3)), *keypoints])
        return Detections(
            images=np.repeat(image_numbers, np.array([len(part.labels) for part in parts], np.int64)),
            classes=class_numbers[labels - 1],
            areas=areas,
            shapes=shapes,
            scores=np.concatenate([np.zeros(0), *(part.scores for part in parts)]),
        )

    def _masks(self, image_id: int, truth: GroundTruth) -> list[dict[str, Any]]:
        """The masks found in an image; all of them have the size of the first one, which must be the image's."""
        masks = self._found[image_id].masks
        assert masks is not None
        for mask in masks[:1]:
            truth.encoded({"image_id": image_id, "segmentation": mask}, "results")
        return masks


def _check_backend(backend: str) -> None:
    if backend not in BACKENDS:
        raise ValueError(f"backend: {backend!r} is not allowed; allowed: {', '.join(BACKENDS)}.")


def checked_sigmas(sigmas: Sequence[float] | None) -> tuple[float, ...]:
    """The sigmas, all of them above 0; those of a person where not given (UserError: one that is not)."""
    sigmas = PERSON.sigmas if sigmas is None else sigmas
    if not sigmas or not all(math.isfinite(s) and s > 0 for s in sigmas):
        raise UserError(f"keypoint sigmas: {list(sigmas)}; expected a finite number above 0 for each keypoint.")
    return tuple(sigmas)


def _check_rows(results: list[dict[str, Any]], truth: GroundTruth, points: int) -> None:
    check_results(results, truth.iou_type, image_ids=truth.images, category_ids=truth.category_names, points=points)


def _with_areas(results: list[dict[str, Any]], truth: GroundTruth) -> list[dict[str, Any]]:
    """New rows with what scoring reads of a detection, `area` included; masks compressed."""
    field = SCORED_FIELD[truth.iou_type]
    detections = []
    for row in results:
        detection = {key: row[key] for key in ("image_id", "category_id", "score", field)}
        if truth.iou_type == "segm":
            detection["segmentation"] = truth.encoded(row, "results")
        # Beside keypoints a box is the better measure of the object; beside a mask it is not.
        has_box = truth.iou_type == "keypoints" and bool(row.get("bbox"))
        detection["area"] = area(row, "bbox") if has_box else area(detection, field)
        detections.append(detection)
    return detections


def _detections_of_rows(rows: list[dict[str, Any]], truth: GroundTruth) -> Detections:
    """Rows with areas as arrays."""
    return Detections(
        images=np.array([truth.image_numbers[row["image_id"]] for row in rows], np.int64),
        classes=np.array([truth.class_numbers[row["category_id"]] for row in rows], np.int64),
        areas=np.array([row["area"] for row in rows], np.float64),
        shapes=shapes_of(rows, truth.iou_type),
        scores=np.array([row["score"] for row in rows], np.float64),
    )


def _by_scoring(truth: GroundTruth, detections: Detections, sigmas: Sequence[float]) -> dict[str, float]:
    return scoring.numbers_of(truth.objects, detections, truth.iou_type, class_names=truth.class_names, sigmas=sigmas)
