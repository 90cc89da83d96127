"""In what do two runs differ: number by number, and image by image?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from detlab.analysis.bootstrap import CAVEAT, Difference, in_words, paired
from detlab.evaluation.metrics import METRICS
from detlab.evaluation.scoring import AREAS, THRESHOLDS, Matched, numbers_once
from detlab.structures import IouType

# The numbers that get an interval.
RESAMPLED = ("AP", "AP50")


@dataclass(frozen=True)
class ErrorCounts:
    """What a detector gets wrong in each of I images, of detections scored at least a threshold; int64 `[I]` each."""

    right: np.ndarray  # objects found, at an IoU of 0.5
    missed: np.ndarray  # objects not found, at 0.5
    wrong: np.ndarray  # detections that found nothing, at 0.5
    mean: np.ndarray  # float64 [I], missed and wrong together, averaged over COCO's ten thresholds


@dataclass(frozen=True)
class Compared:
    """Two detectors on the same images, for one type.

    Args:
        numbers: A's and B's of each of COCO's numbers and of AP by class.
        intervals: of the numbers that were resampled.
        errors: A's and B's.
        seeds_alone: they are runs with the same settings but for the seed.
    """

    numbers: dict[str, tuple[float, float]]
    intervals: dict[str, Difference]
    errors: tuple[ErrorCounts, ErrorCounts]
    seeds_alone: bool = False

    @property
    def verdicts(self) -> list[str]:
        """A sentence for each number that was resampled."""
        return [in_words(name, found, seeds_alone=self.seeds_alone) for name, found in self.intervals.items()]


def compared(
    a: Matched,
    b: Matched,
    iou_type: IouType,
    *,
    images: int,
    resamples: int,
    seed: int,
    threshold: float,
    seeds_alone: bool = False,
) -> Compared:
    """Compare what two detectors found in the same images.

    Args:
        a: the first one's.
        b: the second one's.
        iou_type: what is compared.
        images: how many there are.
        resamples: of the bootstrap.
        seed: of the bootstrap.
        threshold: least score of a detection that counts as right or wrong in an image.
        seeds_alone: whether they are runs with the same settings but for the seed.
    """
    numbers = [numbers_once(side) for side in (a, b)]
    metrics = [metric for metric in METRICS[iou_type] if metric.name in RESAMPLED]
    return Compared(
        numbers={name: (numbers[0][name], numbers[1][name]) for name in numbers[0] if name in numbers[1]},
        intervals=paired(a, b, metrics, images=images, resamples=resamples, seed=seed),
        errors=(errors_by_image(a, images, threshold), errors_by_image(b, images, threshold)),
        seeds_alone=seeds_alone,
    )


def errors_by_image(matched: Matched, images: int, threshold: float) -> ErrorCounts:
    """Count what is right, missed and wrong in each image, of objects and detections of any size.

    Detections choose by falling score, so that those below a threshold take nothing away from those above it.
    """
    every = list(AREAS).index("all")
    detections, matches = matched.detections, matched.matches
    counts = detections.scores >= threshold
    found = np.zeros((len(detections), len(THRESHOLDS)), bool)
    neither = np.zeros_like(found)
    found[matches.detections] = matches.found[:, every] & ~matches.ignored[:, every]
    neither[matches.detections] = matches.found[:, every] & matches.ignored[:, every]
    to_be_found = np.bincount(matched.objects.images[~matched.ignored[:, every]], minlength=images)
    right, wrong = (
        np.stack([np.bincount(detections.images[counts & of], minlength=images) for of in what.T], 1)
        for what in (found, ~found & ~neither)
    )
    missed = to_be_found[:, None] - right
    return ErrorCounts(right[:, 0], missed[:, 0], wrong[:, 0], (missed + wrong).mean(1))


def most_different(comparisons: Sequence[Compared], count: int) -> list[int]:
    """The indices of the images, in the order of the ids, in which A and B make the most unequal number of errors, `count` at most.

    Images in which they make as many are left out.
    """
    unequal = sum(np.abs(c.errors[0].mean - c.errors[1].mean) for c in comparisons)
    order = np.argsort(-np.asarray(unequal), kind="stable")
    return [int(i) for i in order[:count] if np.asarray(unequal)[i] > 0]


def as_plain(comparisons: Mapping[IouType, Compared]) -> dict[str, Any]:
    """All numbers as JSON has them; null for what is not measured."""
    numbers = {name: pair for c in comparisons.values() for name, pair in c.numbers.items()}
    intervals = {name: found for c in comparisons.values() for name, found in c.intervals.items()}
    seeds_alone = any(c.seeds_alone for c in comparisons.values())
    return {
        "verdicts": [said for c in comparisons.values() for said in c.verdicts],
        "caveat": CAVEAT,
        "seeds_alone": seeds_alone,
        "metrics": {
            name: {"a": _finite(a), "b": _finite(b), "difference": _finite(b - a)} for name, (a, b) in numbers.items()
        },
        "intervals": {
            name: {
                "difference": found.difference,
                "low": _finite(found.low),
                "high": _finite(found.high),
                "told_apart": found.told_apart and not seeds_alone,
                "images": found.images,
                "images_needed": found.images_needed,
                "resamples": len(found.resampled),
            }
            for name, found in intervals.items()
        },
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
