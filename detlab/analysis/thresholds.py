"""From which score on is a detection to be believed: an operating threshold for each class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from detlab.analysis.judged import Judged
from detlab.structures import ClassMap, IouType

FALLBACK = 0.5  # of a class of which nothing was found that could tell


@dataclass(frozen=True)
class Operating:
    """A class at its threshold, on the data that this was computed on.

    Args:
        threshold: least score of a detection that is believed, 0..1; None where no threshold does what is wanted.
        precision: of what is believed; None where there is no threshold.
        recall: of what is believed; None where there is no threshold.
        f1: their harmonic mean; None where there is no threshold.
    """

    threshold: float | None
    precision: float | None = None
    recall: float | None = None
    f1: float | None = None


def operating_thresholds(judged: Judged, *, precision: float | None = None) -> list[Operating]:
    """The threshold of each class that is best by F1, or that has a wanted precision.

    The data tell between which two scores the threshold lies; of all between them, which do the same on these data, the middle is
    taken (below the lowest score: the middle to 0).

    Args:
        judged: what is right and wrong at IoU 0.5.
        precision: the lowest threshold with at least this precision, 0..1; None: the best F1, and of equal ones the highest.

    Returns:
        One for each class, in the order of the categories' ids.
    """
    objects = judged.objects_by_class
    found = []
    for k in range(len(objects)):
        own = (judged.detections.classes == k) & ~judged.excused
        found.append(_operating(judged.detections.scores[own], judged.right[own], int(objects[k]), precision))
    return found


def _operating(scores: np.ndarray, right: np.ndarray, objects: int, wanted: float | None) -> Operating:
    """Of one class: scores `[N]`, which are right, bool `[N]`, and how many objects there are."""
    order = np.argsort(-scores, kind="stable")
    scores, hits = scores[order], np.cumsum(right[order])
    # A threshold lies between two different scores.
    lasts = np.flatnonzero(np.append(np.diff(scores) != 0, True)) if len(scores) else np.zeros(0, np.int64)
    precisions, recalls = hits[lasts] / (lasts + 1), hits[lasts] / max(objects, 1)
    f1 = 2 * hits[lasts] / (lasts + 1 + objects)
    enough = np.flatnonzero(hits[lasts] > 0 if wanted is None else (precisions >= wanted) & (hits[lasts] > 0))
    if not len(enough):
        return Operating(None)
    best = int(enough[np.argmax(f1[enough])] if wanted is None else enough[-1])
    last = lasts[best]
    below = scores[last + 1] if last + 1 < len(scores) else 0.0
    middle = (float(scores[last]) + float(below)) / 2
    return Operating(middle, float(precisions[best]), float(recalls[best]), float(f1[best]))


def by_label(found: Sequence[Operating], judged: Judged, class_map: ClassMap) -> list[Operating]:
    """The same in the order of the labels 1..K, which need not be that of the categories' ids."""
    return [found[judged.truth.class_numbers[category_id]] for category_id in class_map.category_ids]


def record_of(
    ground_truth: dict[str, Any],
    results: list[dict[str, Any]],
    iou_type: IouType,
    class_map: ClassMap,
    *,
    sigmas: Sequence[float] | None,
    precision: float | None = None,
) -> dict[str, Any]:
    """The thresholds as a checkpoint holds them: lists of plain numbers in the order of the labels 1..K.

    Args:
        ground_truth: COCO dict of the validation part.
        results: COCO results rows of it.
        iou_type: by which a detection is right.
        class_map: the model's classes.
        sigmas: one standard deviation per keypoint, for keypoints.
        precision: see `operating_thresholds`.

    Returns:
        `iou_type`, `by` ("f1" or "precision 0.9"); by class `thresholds`, `precision`, `recall`, `f1`, None where there is none.
    """
    judged = Judged.of(ground_truth, results, iou_type, sigmas=sigmas)
    found = by_label(operating_thresholds(judged, precision=precision), judged, class_map)
    return {
        "iou_type": iou_type,
        "by": "f1" if precision is None else f"precision {precision:g}",
        "thresholds": [one.threshold for one in found],
        "precision": [one.precision for one in found],
        "recall": [one.recall for one in found],
        "f1": [one.f1 for one in found],
    }


def given(thresholds: Sequence[float | None]) -> np.ndarray:
    """Float64 `[K]`: the thresholds, `FALLBACK` where there is none."""
    return np.array([FALLBACK if threshold is None else threshold for threshold in thresholds], np.float64)
