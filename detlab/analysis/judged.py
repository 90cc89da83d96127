"""Which detections are right at one IoU threshold, and which objects they found: COCO's matching, kept one by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from detlab.evaluation.coco import arrays_of, checked_sigmas
from detlab.evaluation.ground_truth import GroundTruth
from detlab.evaluation.instances import Detections, Objects
from detlab.evaluation.matching import match
from detlab.evaluation.metrics import METRICS
from detlab.evaluation.overlaps import overlap_of
from detlab.evaluation.scoring import best_of, inside_ranges, precision_over_recall
from detlab.structures import IouType

POSITIVE = 0.5  # IoU from which a detection has found an object


@dataclass(frozen=True)
class Judged:
    """Detections and objects of a data set, matched at IoU `POSITIVE` (keypoints: at that similarity).

    Args:
        truth: the ground truth, checked.
        objects: G of them, by class and image.
        detections: D of them, by class, image and falling score: the best-scored 100 of each image and class, as in COCO.
        rows: int64 `[D]`, where each stands in the results.
        annotations: int64 `[G]`, where each object stands in `truth.annotations`.
        found: int64 `[D]`, the object that each detection found; -1 where none.
        excused: bool `[D]`, neither right nor wrong: in a crowd region, on an object to be ignored.
        counted: bool `[G]`, the objects to be found: not crowd, not to be ignored.
        sigmas: one standard deviation for each keypoint.
    """

    truth: GroundTruth
    objects: Objects
    detections: Detections
    rows: np.ndarray
    annotations: np.ndarray
    found: np.ndarray
    excused: np.ndarray
    counted: np.ndarray
    sigmas: tuple[float, ...]

    @classmethod
    def of(
        cls,
        ground_truth: dict[str, Any],
        results: list[dict[str, Any]],
        iou_type: IouType,
        *,
        sigmas: Sequence[float] | None = None,
    ) -> Judged:
        """Match COCO results rows with a COCO dict; see `detlab.evaluation.coco.score`, whose matching this is.

        Raises:
            UserError: ground truth or results that cannot be scored.
        """
        sigmas = checked_sigmas(sigmas)
        truth, detections = arrays_of(ground_truth, results, iou_type, sigmas)
        annotations = np.argsort(truth.objects.groups, kind="stable")
        objects = truth.objects.take(annotations)
        rows, _ = best_of(detections, METRICS[iou_type][0].max_detections)
        detections = detections.take(rows)
        ignored = objects.ignored | ~inside_ranges(objects.areas)[:, 0]
        with np.errstate(all="ignore"):  # boxes near the largest number overflow, in silence as in C
            overlap = overlap_of(iou_type, detections, objects, at_least=POSITIVE, sigmas=sigmas)
            matches = match(detections, objects, ignored[:, None], overlap, np.array([POSITIVE]))
        found = np.full(len(detections), -1)
        found[matches.detections] = matches.objects
        excused = ~inside_ranges(detections.areas)[:, 0] & (found < 0)
        excused[matches.detections] |= matches.ignored[:, 0, 0]
        found[excused] = -1
        return cls(truth, objects, detections, rows, annotations, found, excused, ~ignored, sigmas)

    @property
    def right(self) -> np.ndarray:
        """Bool `[D]`: found an object."""
        return self.found >= 0

    @property
    def wrong(self) -> np.ndarray:
        """Bool `[D]`: found none, and is not excused."""
        return ~self.right & ~self.excused

    @property
    def objects_by_class(self) -> np.ndarray:
        """Int64 `[K]`: how many objects are to be found."""
        return np.bincount(self.objects.classes[self.counted], minlength=len(self.truth.class_names))


def average_precision(scores: np.ndarray, right: np.ndarray, objects: int) -> float:
    """COCO's average precision of one class at one threshold: precision at 101 recalls.

    Args:
        scores: float64 `[N]`, of the detections that are right or wrong; of equal ones the first counts as the better.
        right: bool `[N]`.
        objects: how many there are to be found. Where there are none: 1 without detections, else 0.
    """
    if not objects:
        return float(not len(scores))
    return float(precision_over_recall(right[np.argsort(-scores, kind="stable")], objects).mean())
