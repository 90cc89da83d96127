"""COCO's numbers in numpy: all that pycocotools' COCOeval computes, in a small part of its time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
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
# How many numbers of several data sets are computed at once: enough to be fast, and few enough for the memory.
_NUMBERS_AT_ONCE = 2**23


@dataclass(frozen=True)
class Matched:
    """Which detection found which object in each image: all that is known before images are counted; see `match_all`."""

    iou_type: IouType
    class_names: Sequence[str]  # K, in the order of the categories' ids
    objects: Objects  # by group
    ignored: np.ndarray  # bool [G, A], neither found nor missed, in each of `AREAS`
    detections: Detections  # D, by group and falling score
    ranks: np.ndarray  # int64 [D], how many of its group are better
    matches: Matches


def numbers_of(
    objects: Objects, detections: Detections, iou_type: IouType, *, class_names: Sequence[str], sigmas: Sequence[float]
) -> dict[str, float]:
    """The numbers of `detlab.evaluation.coco.score`; the arguments are those of `match_all`.

    Returns:
        `<iou_type>/<metric>` and, with more than one class, `<iou_type>/AP/<class name>`; nan for what has no objects.
    """
    return numbers_once(match_all(objects, detections, iou_type, class_names=class_names, sigmas=sigmas))


def numbers_once(matched: Matched) -> dict[str, float]:
    """The numbers of `numbers_of`, each image counting once."""
    images = np.concatenate([matched.objects.images, matched.detections.images])
    once = np.ones((1, 1 + int(images.max(initial=0))))
    values = numbers_by_weight(matched, once, METRICS[matched.iou_type], by_class=len(matched.class_names) > 1)
    return {name: float(value[0]) for name, value in values.items()}


def match_all(
    objects: Objects, detections: Detections, iou_type: IouType, *, class_names: Sequence[str], sigmas: Sequence[float]
) -> Matched:
    """Match the detections of every image: the part of scoring that no other image has a share in.

    Args:
        objects: of all images and classes.
        detections: of all images and classes.
        iou_type: what their shapes are.
        class_names: K names, in the order of the categories' ids.
        sigmas: one standard deviation for each keypoint.
    """
    objects = objects.take(np.argsort(objects.groups, kind="stable"))
    best, ranks = best_of(detections, max(metric.max_detections for metric in METRICS[iou_type]))
    detections = detections.take(best)
    ignored = objects.ignored[:, None] | ~inside_ranges(objects.areas)
    with np.errstate(all="ignore"):  # boxes near the largest number overflow, in silence as in C
        overlap = overlap_of(iou_type, detections, objects, at_least=THRESHOLDS[0], sigmas=sigmas)
        matches = match(detections, objects, ignored, overlap, THRESHOLDS)
    return Matched(iou_type, class_names, objects, ignored, detections, ranks, matches)


def numbers_by_weight(
    matched: Matched, weights: np.ndarray, metrics: Sequence[Metric], *, by_class: bool
) -> dict[str, np.ndarray]:
    """COCO's numbers of data sets in which each image occurs any number of times, such as those that a bootstrap draws.

    They are those of `score` on a data set in which the images are repeated under ids that keep the order of the images and put
    an image's copies side by side, but for this: detections of one class, image and score count here as many times as the image
    does one after the other, there they take turns.

    Args:
        matched: of I images.
        weights: float64 `[B, I]`, how often each image occurs in each of B data sets: whole numbers, from 0.
        metrics: which numbers, of `METRICS`.
        by_class: whether AP of each class is wanted too.

    Returns:
        `<iou_type>/<metric>` and `<iou_type>/AP/<class name>`, float64 `[B]` each; nan for what has no objects.
    """
    names = [f"{matched.iou_type}/{metric.name}" for metric in metrics]
    names += [f"{matched.iou_type}/AP/{name}" for name in matched.class_names] if by_class else []
    values = {name: np.empty(len(weights)) for name in names}
    areas = sorted({list(AREAS).index(metric.area) for metric in metrics} | ({0} if by_class else set()))
    limits = sorted({metric.max_detections for metric in metrics})
    step = _data_sets_at_once(matched, len(areas))
    for first in range(0, len(weights), step):
        precision, recall = _accumulate(matched, weights[first : first + step], areas, limits)
        for b in range(len(precision)):
            for name, metric in zip(names, metrics, strict=False):
                values[name][first + b] = _summary(metric, precision[b], recall[b], areas, limits)
            for name, of_class in zip(names[len(metrics) :], precision[b, ..., 0].transpose(2, 0, 1), strict=False):
                values[name][first + b] = _mean(of_class)
    return values


def _data_sets_at_once(matched: Matched, areas: int) -> int:
    """How many data sets fit into `_NUMBERS_AT_ONCE` numbers, one at least."""
    classes = len(matched.class_names)
    most = int(np.bincount(matched.detections.classes, minlength=classes).max(initial=0))
    found = matched.detections.classes[matched.matches.detections]
    most_found = int(np.bincount(found, minlength=classes).max(initial=0))
    of_one = max(most, len(THRESHOLDS) * most_found, len(THRESHOLDS) * len(RECALLS) * classes * areas)
    return max(1, _NUMBERS_AT_ONCE // max(1, of_one))


class Counts(NamedTuple):
    """Of K classes, what is right and wrong among the detections scored so much and more, at an IoU of 0.5."""

    scores: np.ndarray  # float64 [S], ascending
    right: np.ndarray  # int64 [K, S], objects found
    wrong: np.ndarray  # int64 [K, S], detections of nothing, or of what was found already
    objects: np.ndarray  # int64 [K], to be found


def counts_of(matched: Matched, scores: np.ndarray) -> Counts:
    """What precision and recall at each score are made of.

    Args:
        matched: of all images and K classes.
        scores: float64 `[S]`, ascending; each is a threshold, and what has it counts.
    """
    detections, objects, matches = matched.detections, matched.objects, matched.matches
    found = np.zeros(len(detections.scores), np.bool_)
    excused = np.zeros_like(found)
    found[matches.detections] = matches.found[:, 0, 0]
    excused[matches.detections] = matches.ignored[:, 0, 0]
    classes = len(matched.class_names)

    def above(chosen: np.ndarray) -> np.ndarray:
        of_classes = (np.sort(detections.scores[chosen & (detections.classes == k)]) for k in range(classes))
        return np.stack([len(own) - np.searchsorted(own, scores, side="left") for own in of_classes])

    to_be_found = objects.classes[~matched.ignored[:, 0]]
    return Counts(scores, above(found & ~excused), above(~found), np.bincount(to_be_found, minlength=classes))


def best_of(detections: Detections, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """The `limit` best-scored of each group.

    Of equal scores the first counts as the better one.

    Returns:
        Their indices, int64 `[D]`, by group and falling score, and how many of its group are better than each, int64 `[D]`.
    """
    order = np.lexsort((-detections.scores, detections.groups))
    ranks = positions_in_runs(detections.groups[order])
    kept = ranks < limit
    return order[kept], ranks[kept]


def inside_ranges(areas: np.ndarray) -> np.ndarray:
    """Bool `[N, A]`: in which of `AREAS` each area lies."""
    low, high = np.array(list(AREAS.values())).T
    return (areas[:, None] >= low) & (areas[:, None] <= high)


def _accumulate(
    matched: Matched, weights: np.ndarray, areas: Sequence[int], limits: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Precision over recall of each class, in each of B data sets.

    A detection that found an object to be ignored, or none and lies outside of the range of areas, is neither right nor wrong.

    Args:
        matched: of I images.
        weights: float64 `[B, I]`, how often each image occurs.
        areas: A indices into `AREAS`.
        limits: M numbers of detections of a group that count, ascending.

    Returns:
        Precision `[B, T, R, K, A]`, of all detections that were matched, and recall `[B, T, K, A, M]`; -1 where there is no
        object to be found.
    """
    detections, matches, ranks = matched.detections, matched.matches, matched.ranks
    classes = len(matched.class_names)
    precision = np.full((len(weights), len(THRESHOLDS), len(RECALLS), classes, len(areas)), -1.0)
    recall = np.full((len(weights), len(THRESHOLDS), classes, len(areas), len(limits)), -1.0)
    # Over all images by falling score; of equals the one that came first, by image and rank.
    order = np.lexsort((-detections.scores, detections.classes))
    places = np.empty(len(order), np.int64)
    places[order] = np.arange(len(order))
    inside = inside_ranges(detections.areas)[:, areas]
    by_score = np.argsort(places[matches.detections])
    numbers = np.arange(classes + 1)
    bounds = np.searchsorted(detections.classes[matches.detections[by_score]], numbers)
    firsts = np.searchsorted(detections.classes, numbers)
    real = np.searchsorted(matched.objects.classes, numbers)
    to_be_found = ~matched.ignored[:, areas]
    for k in np.flatnonzero(np.diff(real)):
        objects = slice(real[k], real[k + 1])
        counted = weights[:, matched.objects.images[objects]] @ to_be_found[objects].astype(np.float64)  # [B, A]
        if not counted.any():
            continue
        chosen = by_score[bounds[k] : bounds[k + 1]]
        own = matches.detections[chosen]
        found = matches.found[chosen][:, areas]  # [C, A, T]
        hits = found & ~matches.ignored[chosen][:, areas]
        of_class = order[firsts[k] : firsts[k + 1]]
        all_times, times = weights[:, detections.images[of_class]], weights[:, detections.images[own]]  # [B, D], [B, C]
        at = places[own] - firsts[k]
        in_limits = np.stack([hits & (ranks[own] < limit)[:, None, None] for limit in limits], -1).astype(np.float64)
        at_limits = np.tensordot(times, in_limits, 1)  # [B, A, T, M]
        for a in range(len(areas)):
            measured = counted[:, a] > 0
            if not measured.any():
                continue
            shares = at_limits[measured, a] / counted[measured, a, None, None]
            recall[measured, :, k, a] = shares
            neither = found[:, a] & inside[own, a, None]
            wrong = np.cumsum(all_times[measured] * inside[of_class, a], axis=1)[:, None, at]
            wrong = wrong - np.cumsum(times[measured, None] * neither.T, axis=2)
            precision[measured, :, :, k, a] = _precision_at_recalls(
                hits[:, a].T, times[measured], wrong, counted[measured, a]
            )
    return precision, recall


def precision_over_recall(right: np.ndarray, objects: int) -> np.ndarray:
    """The best precision at each of `RECALLS` or above, float64 `[R]`, of detections each of which is right or wrong.

    Args:
        right: bool `[N]`, by falling score.
        objects: how many there are to be found; one at least.
    """
    wrong, once = np.cumsum(~right).astype(np.float64), np.ones((1, len(right)))
    return _precision_at_recalls(right[None], once, wrong[None, None], np.array([float(objects)]))[0, 0]


def _precision_at_recalls(hits: np.ndarray, times: np.ndarray, wrong: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """The best precision at each of `RECALLS` or above, float64 `[B, T, R]`; 0 where recall does not get so far.

    Args:
        hits: bool `[T, C]`, by falling score: which detections found an object; those left out found none.
        times: float64 `[B, C]`, how often each occurs.
        wrong: float64 `[B, T, C]`, how many are wrong up to each one, those left out among them.
        objects: float64 `[B]`, how many there are to be found; one at least.
    """
    # Precision rises with a hit only, so that the best one stands at a hit. A hit that occurs 0 times is no better than the one
    # before, and one that occurs several times is best at its last.
    right = np.cumsum(times[:, None] * hits, axis=2)
    at_hits = np.where(hits, right / (wrong + right + np.spacing(1)), 0.0)
    best = np.zeros((*right.shape[:2], right.shape[2] + 1))
    best[..., :-1] = np.maximum.accumulate(at_hits[..., ::-1], axis=2)[..., ::-1]
    needed = np.maximum(_fewest_for_recalls(objects), 1)
    # One search for all rows: each is raised above the one before.
    rows = np.arange(right.shape[0] * right.shape[1]).reshape(*right.shape[:2], 1) * (objects.max() + 2)
    if not right.shape[2]:
        return np.zeros((*right.shape[:2], len(RECALLS)))
    starts = np.arange(rows.size).reshape(rows.shape) * right.shape[2]
    reached = np.searchsorted((right + rows).ravel(), needed[:, None] + rows) - starts
    return np.take_along_axis(best, reached, axis=2)


def _fewest_for_recalls(objects: np.ndarray) -> np.ndarray:
    """How many of so many objects must be found for each of `RECALLS`, float64 `[B, R]`, by division as COCO has it."""
    count = objects[:, None]
    fewest = np.ceil(RECALLS * count)
    fewest -= (fewest - 1) / count >= RECALLS
    return fewest + (fewest / count < RECALLS)


def _summary(
    metric: Metric, precision: np.ndarray, recall: np.ndarray, areas: Sequence[int], limits: Sequence[int]
) -> float:
    """One of COCO's numbers from `_accumulate`'s arrays of one data set."""
    area = areas.index(list(AREAS).index(metric.area))
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
