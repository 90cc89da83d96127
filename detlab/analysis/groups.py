"""Which of two settings is better, each tried with several seeds: the chance of the images and that of training together.

The images are drawn again as in `detlab.analysis.bootstrap`, the same for all runs, which gives the variance of the difference of
the two means over the images; what the runs of a group differ by gives that over trainings. Both are added, and Student's t has
the degrees of freedom of Welch and Satterthwaite. (Welch, The Generalization of "Student's" Problem, Biometrika 34, 1947.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, variance
from typing import Any

import numpy as np

from detlab.analysis.bootstrap import LEVEL, drawn, students_quantile
from detlab.evaluation.metrics import Metric
from detlab.evaluation.scoring import Matched, numbers_by_weight


@dataclass(frozen=True)
class GroupDifference:
    """One number of the runs of two groups, A's and B's, on the same images."""

    a: tuple[float, ...]  # of each run
    b: tuple[float, ...]
    low: float  # of the interval of the difference of the means, which holds the true one in LEVEL of all cases
    high: float
    images: int
    by_images: float  # standard error of the difference for the images' chance alone
    by_training: float  # for training's

    @property
    def difference(self) -> float:
        """How much better B's mean is."""
        return fmean(self.b) - fmean(self.a)

    @property
    def told_apart(self) -> bool:
        """Whether the interval leaves no room for "no difference"."""
        return self.low > 0 or self.high < 0

    def in_words(self, name: str) -> str:
        """Whether the settings can be told apart, as one says it."""
        said = (
            f"{name}: the mean of B's {len(self.b)} runs less that of A's {len(self.a)} is {self.difference:+.4f}, between "
            f"{self.low:+.4f} and {self.high:+.4f} with {LEVEL:.0%} confidence"
        )
        if self.told_apart:
            return f"{said}: the settings can be told apart; {'B' if self.difference > 0 else 'A'} is better."
        errors = f"training's part of the standard error is {self.by_training:.4f}, the images' {self.by_images:.4f}"
        more = "seeds" if self.by_training > self.by_images else "images"
        return f"{said}: the settings cannot be told apart; {errors}, so that more {more} would help most."

    def as_plain(self) -> dict[str, Any]:
        """As JSON has it; null for an end that is infinite."""
        ends = {
            name: value if math.isfinite(value) else None for name, value in (("low", self.low), ("high", self.high))
        }
        return {
            "a": list(self.a),
            "b": list(self.b),
            "mean_a": fmean(self.a),
            "mean_b": fmean(self.b),
            "difference": self.difference,
            **ends,
            "told_apart": self.told_apart,
            "images": self.images,
            "standard_error_of_images": self.by_images,
            "standard_error_of_training": self.by_training,
        }


def compared_groups(
    a: Sequence[Matched], b: Sequence[Matched], metrics: Sequence[Metric], *, images: int, resamples: int, seed: int
) -> dict[str, GroupDifference]:
    """Compare the means of two groups of runs.

    Args:
        a: what each of A's runs, two at least, found in the images.
        b: what each of B's found in the same images.
        metrics: which numbers.
        images: I, all of them, those without objects too.
        resamples: of the images, 2 at least.
        seed: of the draws.

    Returns:
        For each number `<iou_type>/<metric>`; one that a run has not is left out.
    """
    weights = drawn(images, resamples, seed)
    numbers = [[numbers_by_weight(run, weights, metrics, by_class=False) for run in group] for group in (a, b)]
    names = [name for name in numbers[0][0] if all(name in run for group in numbers for run in group)]
    found: dict[str, GroupDifference] = {}
    for name in names:
        of_a, of_b = (np.stack([run[name] for run in group]) for group in numbers)
        found[name] = difference_of_means(of_a, of_b, images)
    return {name: each for name, each in found.items() if not math.isnan(each.difference)}


def difference_of_means(a: np.ndarray, b: np.ndarray, images: int) -> GroupDifference:
    """The interval from the numbers of each run.

    Args:
        a: float64 `[N, 1 + R]` of N runs, 2 at least: on the images themselves, then on R resamples of them.
        b: float64 `[M, 1 + R]`, on the same resamples.
        images: I; with one image nothing is known, and both ends are infinite.
    """
    resampled = b[:, 1:].mean(0) - a[:, 1:].mean(0)
    resampled = resampled[~np.isnan(resampled)]
    groups = tuple(map(float, a[:, 0])), tuple(map(float, b[:, 0]))
    center = fmean(groups[1]) - fmean(groups[0])
    if images < 2 or len(resampled) < 2:
        return GroupDifference(*groups, -math.inf, math.inf, images, math.nan, math.nan)
    # The bootstrap's variance is that of a sample divided by n, not by n - 1.
    parts = [(float(resampled.var(ddof=1)) * images / (images - 1), images - 1)]
    parts += [(variance(group) / len(group), len(group) - 1) for group in groups]
    whole = sum(part for part, _ in parts)
    half = 0.0
    if whole > 0:
        freedom = whole**2 / sum(part**2 / free for part, free in parts)
        half = students_quantile(math.floor(freedom + 1e-9)) * math.sqrt(whole)
    errors = math.sqrt(parts[0][0]), math.sqrt(parts[1][0] + parts[2][0])
    return GroupDifference(*groups, center - half, center + half, images, *errors)
