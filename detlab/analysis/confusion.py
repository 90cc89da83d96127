"""Which class is taken for which: a confusion matrix of detection, the background beside the classes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from detlab.analysis.judged import POSITIVE, Judged
from detlab.evaluation.matching import match
from detlab.evaluation.overlaps import overlap_of


def confusion_of(judged: Judged, thresholds: np.ndarray) -> list[list[int]]:
    """Count what is believed, at IoU 0.5: by class first, as COCO matches; what is left over may then find what is left over of
    other classes. A detection of a crowd region counts nowhere.

    Args:
        judged: all detections and objects.
        thresholds: float64 `[K]`, least score of a detection that is believed, in the order of the categories' ids.

    Returns:
        K + 1 rows, the classes of the objects, in the order of the categories' ids, and the background; K + 1 columns, the
        classes of the detections, and the background: objects that were not found.
    """
    detections, objects = judged.detections, judged.objects
    count = len(thresholds)
    matrix = np.zeros((count + 1, count + 1), np.int64)
    # A detection chooses before all of lower score, so that leaving those out changes nothing for it.
    believed = detections.scores >= thresholds[detections.classes]
    right = believed & judged.right
    np.add.at(matrix, (objects.classes[judged.found[right]], detections.classes[right]), 1)
    taken = np.zeros(len(objects), bool)
    taken[judged.found[right]] = True
    left, free = np.flatnonzero(believed & judged.wrong), np.flatnonzero(judged.counted & ~taken)
    left = left[np.lexsort((-detections.scores[left], detections.images[left]))]
    free = free[np.argsort(objects.images[free], kind="stable")]
    others, real = detections.take(left), objects.take(free)
    alike = [replace(some, classes=np.zeros(len(some), np.int64)) for some in (others, real)]
    overlap = overlap_of(judged.truth.iou_type, *alike, at_least=POSITIVE, sigmas=judged.sigmas)  # type: ignore[arg-type]
    matches = match(*alike, np.zeros((len(real), 1), bool), overlap, np.array([POSITIVE]))  # type: ignore[arg-type]
    found = np.full(len(others), -1)
    found[matches.detections] = matches.objects
    rows = np.where(found >= 0, real.classes[found] if len(real) else count, count)
    np.add.at(matrix, (rows, others.classes), 1)
    missed = np.ones(len(real), bool)
    missed[found[found >= 0]] = False
    matrix[:count, count] += np.bincount(real.classes[missed], minlength=count)
    return matrix.tolist()
