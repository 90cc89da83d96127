"""COCO's numbers in numpy: all that pycocotools' COCOeval computes, in a small part of its time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from detlab.evaluation.instances import Detections, Objects
from detlab.evaluation.matching import Matches, match, positions_in_runs
from detlab.evaluation.metrics import METRICS, Metric
from detlab.evaluation.overlaps import overlap_of
from detlab.structures import IouType

# https://cocodataset.org/#detection-eval
THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
# In pixels; both bounds belong to the range.
AREAS = {"all": (0.0, 1e10), "small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}


def numbers_of(
    objects: Objects, detections: Detections, iou_type: IouType, *, class_names: Sequence[str], sigmas: Sequence[float]
) -> dict[str, float]:
    """The numbers of `detlab.evaluation.coco.score`.

    Args:
        objects: of all images and classes.
        detections: of all images and classes.
        iou_type: what their shapes are.
        class_names: K names, in the order of the categories' ids.
        sigmas: one standard deviation for each keypoint.

    Returns:
        `<iou_type>/<metric>` and, with more than one class, `<iou_type>/AP/<class name>`; nan for what has no objects.
    """
    limits = sorted({metric.max_detections for metric in METRICS[iou_type]})
    objects = objects.take(np.argsort(objects.groups, kind="stable"))
    detections, ranks = _best(detections, limits[-1])
    ignored = objects.ignored[:, None] | ~_inside(objects.areas)
    with np.errstate(all="ignore"):  # boxes near the largest number overflow, in silence as in C
        overlap = overlap_of(iou_type, detections, objects, at_least=THRESHOLDS[0], sigmas=sigmas)
        matches = match(detections, objects, ignored, overlap, THRESHOLDS)
    counted = np.stack(
        [np.bincount(objects.classes[~of_range], minlength=len(class_names)) for of_range in ignored.T], 1
    )
    precision, recall = _accumulate(detections, ranks, matches, counted, limits)
    values = {f"{iou_type}/{metric.name}": _summary(metric, precision, recall, limits) for metric in METRICS[iou_type]}
    if len(class_names) > 1:
        for name, of_class in zip(class_names, precision[:, :, :, 0].transpose(2, 0, 1), strict=True):
            values[f"{iou_type}/AP/{name}"] = _mean(of_class)
    return values


class Counts(NamedTuple):
    """Of K classes, what is right and wrong among the detections scored so much and more, at an IoU of 0.5."""

    scores: np.ndarray  # float64 [S], ascending
    right: np.ndarray  # int64 [K, S], objects found
    wrong: np.ndarray  # int64 [K, S], detections of nothing, or of what was found already
    objects: np.ndarray  # int64 [K], to be found


def counts_of(
    objects: Objects,
    detections: Detections,
    iou_type: IouType,
    *,
    classes: int,
    sigmas: Sequence[float],
    scores: np.ndarray,
) -> Counts:
    """What precision and recall at each score are made of; with COCO's matching and its limit of detections an image and class.

    Args:
        objects: of all images and classes.
        detections: of all images and classes.
        iou_type: what their shapes are.
        classes: K.
        sigmas: one standard deviation for each keypoint.
        scores: float64 `[S]`, ascending; each is a threshold, and what has it counts.
    """
    objects = objects.take(np.argsort(objects.groups, kind="stable"))
    detections, _ = _best(detections, max(metric.max_detections for metric in METRICS[iou_type]))
    ignored = objects.ignored[:, None]
    with np.errstate(all="ignore"):
        overlap = overlap_of(iou_type, detections, objects, at_least=THRESHOLDS[0], sigmas=sigmas)
        matches = match(detections, objects, ignored, overlap, THRESHOLDS[:1])
    found = np.zeros(len(detections.scores), np.bool_)
    excused = np.zeros_like(found)
    found[matches.detections] = matches.found[:, 0, 0]
    excused[matches.detections] = matches.ignored[:, 0, 0]

    def above(chosen: np.ndarray) -> np.ndarray:
        of_classes = (np.sort(detections.scores[chosen & (detections.classes == k)]) for k in range(classes))
        return np.stack([len(own) - np.searchsorted(own, scores, side="left") for own in of_classes])

    return Counts(
        scores, above(found & ~excused), above(~found), np.bincount(objects.classes[~ignored[:, 0]], minlength=classes)
    )


def _best(detections: Detections, limit: int) -> tuple[Detections, np.ndarray]:
    """The `limit` best-scored of each group, by group and falling score, and int64 `[D]`: how many of its group are better.

    Of equal scores the first counts as the better one.
    """
    order = np.lexsort((-detections.scores, detections.groups))
    ranks = positions_in_runs(detections.groups[order])
    kept = ranks < limit
    return detections.take(order[kept]), ranks[kept]


def _inside(areas: np.ndarray) -> np.ndarray:
    """Bool `[N, A]`: in which of `AREAS` each area lies."""
    low, high = np.array(list(AREAS.values())).T
    return (areas[:, None] >= low) & (areas[:, None] <= high)


def _accumulate(
    detections: Detections, ranks: np.ndarray, matches: Matches, counted: np.ndarray, limits: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Precision over recall of each class.

    A detection that found an object to be ignored, or none and lies outside of the range of areas, is neither right nor wrong.

    Args:
        detections: D of them, by group and falling score.
        ranks: int64 `[D]`, how many of its group are better.
        matches: what they found.
        counted: int64 `[K, A]`, the objects to be found.
        limits: M numbers of detections of a group that count, ascending.

    Returns:
        Precision `[T, R, K, A]` at the last limit, and recall `[T, K, A, M]`; -1 where there is no object to be found.
    """
    classes, ranges = counted.shape
    precision = np.full((len(THRESHOLDS), len(RECALLS), classes, ranges), -1.0)
    recall = np.full((len(THRESHOLDS), classes, ranges, len(limits)), -1.0)
    # Over all images by falling score; of equals the one that came first, by image and rank.
    order = np.lexsort((-detections.scores, detections.classes))
    places = np.empty(len(order), np.int64)
    places[order] = np.arange(len(order))
    inside = _inside(detections.areas)
    seen = np.cumsum(inside[order], axis=0)
    matched = np.argsort(places[matches.detections])
    bounds = np.searchsorted(detections.classes[matches.detections[matched]], np.arange(classes + 1))
    firsts = np.searchsorted(detections.classes, np.arange(classes))
    for k in np.flatnonzero(counted.any(1)):
        chosen = matched[bounds[k] : bounds[k + 1]]
        own = matches.detections[chosen]
        hits = matches.found[chosen] & ~matches.ignored[chosen]  # [C, A, T]
        before = seen[firsts[k] - 1] if firsts[k] else 0
        wrong = (seen[places[own]] - before)[:, :, None]
        wrong = wrong - np.cumsum(matches.found[chosen] & inside[own, :, None], axis=0)
        measured = np.flatnonzero(counted[k])
        at_limits = np.stack([hits[ranks[own] < limit].sum(0) for limit in limits], -1)  # [A, T, M]
        recall[:, k, measured] = (at_limits[measured] / counted[k, measured, None, None]).swapaxes(0, 1)
        for a in measured:
            precision[:, :, k, a] = _precision_at_recalls(hits[:, a], wrong[:, a], int(counted[k, a]))
    return precision, recall


def _precision_at_recalls(hits: np.ndarray, wrong: np.ndarray, objects: int) -> np.ndarray:
    """The best precision at each of `RECALLS` or above, float64 `[T, R]`; 0 where recall does not get so far.

    Args:
        hits: bool `[C, T]`, by falling score: which detections found an object; those left out found none.
        wrong: int64 `[C, T]`, how many are wrong up to each one, those left out among them.
        objects: how many there are to be found; one at least.
    """
    # Precision rises with a hit only, so that the best one stands at a hit.
    right = np.cumsum(hits, axis=0)
    at_hits = np.where(hits, right / (wrong + right + np.spacing(1)), 0.0)
    best = np.zeros((len(hits) + 1, hits.shape[1]))
    best[:-1] = np.maximum.accumulate(at_hits[::-1], axis=0)[::-1]
    needed = np.maximum(np.searchsorted(np.arange(objects + 1) / objects, RECALLS), 1)
    return np.stack([best[np.searchsorted(right[:, t], needed), t] for t in range(hits.shape[1])])


def _summary(metric: Metric, precision: np.ndarray, recall: np.ndarray, limits: Sequence[int]) -> float:
    """One of COCO's numbers from `_accumulate`'s arrays."""
    area = list(AREAS).index(metric.area)
    values = (
        precision[..., area]
        if metric.name.startswith("AP")
        else recall[:, :, area, limits.index(metric.max_detections)]
    )
    return _mean(values if ":" in metric.iou else values[float(metric.iou) == THRESHOLDS])


def _mean(values: np.ndarray) -> float:
    """The mean of what could be measured (-1: could not), nan where nothing could."""
    measured = values[values > -1]
    return float(measured.mean()) if len(measured) else math.nan
