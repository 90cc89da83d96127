"""Can two detectors be told apart with this many images: the paired bootstrap over images.

The images are what was drawn from the world, so that they are what is drawn again: as many as there are, some several times, some
not at all, and both detectors are scored on the same draw. What the two have in common, hard images above all, cancels in the
difference. (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapters 8 and 13.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from detlab.evaluation.metrics import Metric
from detlab.evaluation.scoring import Matched, numbers_by_weight

LEVEL = 0.95
# The chance with which the number of images that `images_needed` names tells a difference of this size apart.
POWER = 0.8


@dataclass(frozen=True)
class Difference:
    """One number of two detectors, A and B, on the same images."""

    a: float
    b: float
    low: float  # of the interval of b - a, which holds the true difference in LEVEL of all cases
    high: float
    images: int
    resampled: np.ndarray  # float64 [R], b - a on each resample in which there was something to measure

    @property
    def difference(self) -> float:
        """How much better B is."""
        return self.b - self.a

    @property
    def told_apart(self) -> bool:
        """Whether the interval leaves no room for "no difference"."""
        return self.low > 0 or self.high < 0

    @property
    def images_needed(self) -> int | None:
        """About how many images would tell such a difference apart in `POWER` of all cases; None where there is none.

        The spread of a mean over images falls with the root of their number.
        """
        spread = float(self.resampled.std(ddof=1)) if len(self.resampled) > 1 else math.nan
        if not self.difference or not spread > 0:
            return None
        normal = NormalDist()
        errors = normal.inv_cdf((1 + LEVEL) / 2) + normal.inv_cdf(POWER)
        return math.ceil(self.images * (errors * spread / self.difference) ** 2)


def paired(
    a: Matched, b: Matched, metrics: Sequence[Metric], *, images: int, resamples: int, seed: int
) -> dict[str, Difference]:
    """Resample the images, the same for both, and score both on each resample.

    Args:
        a: what the first found in the images.
        b: what the second found in the same images.
        metrics: which numbers.
        images: I, all of them, those without objects too.
        resamples: how many, 2 at least.
        seed: of the draws; the same one gives the same intervals.

    Returns:
        For each number `<iou_type>/<metric>`; one that has no objects is left out.
    """
    weights = drawn(images, resamples, seed)
    numbers = [numbers_by_weight(side, weights, metrics, by_class=False) for side in (a, b)]
    return {name: _difference(numbers[0][name], numbers[1][name], images) for name in _measured(*numbers)}


def drawn(images: int, resamples: int, seed: int) -> np.ndarray:
    """How often each of I images occurs: once, then in each of R draws with replacement; float64 `[1 + R, I]`."""
    draws = np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), resamples).astype(np.float64)
    return np.concatenate([np.ones((1, images)), draws])


def _measured(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> list[str]:
    return [name for name in a if not math.isnan(a[name][0]) and not math.isnan(b[name][0])]


def _difference(a: np.ndarray, b: np.ndarray, images: int) -> Difference:
    """Float64 `[1 + R]` of each: on the images themselves, then on the resamples."""
    resampled = (b - a)[1:]
    resampled = resampled[~np.isnan(resampled)]
    low, high = interval(resampled, images)
    return Difference(float(a[0]), float(b[0]), low, high, images, resampled)


def interval(resampled: np.ndarray, images: int) -> tuple[float, float]:
    """The expanded percentile interval: wider than the plain one by what a sample of this size is too narrow.

    The plain one takes the quantiles 0.025 and 0.975. It is that of a normal distribution with the sample's own spread, divided by
    n instead of n - 1 and known instead of estimated; the quantiles taken here mend both (Hesterberg, What Teachers Should Know
    About the Bootstrap, The American Statistician 69, 2015, section 3.3). With 50 images they are 0.021 and 0.979.
    tests/analysis/test_bootstrap.py holds it against simulated detectors whose true difference is known.

    Args:
        resampled: float64 `[R]`; without any, both ends are nan.
        images: n, 2 at least; with one image nothing is known, and both ends are infinite.
    """
    if not len(resampled):
        return math.nan, math.nan
    if images < 2:
        return -math.inf, math.inf
    tail = NormalDist().cdf(-students_quantile(images - 1) * math.sqrt(images / (images - 1)))
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return float(low), float(high)


def students_quantile(freedom: int) -> float:
    """The quantile (1 + LEVEL) / 2 of Student's t, of one degree of freedom at least.

    By the expansion in 1 / freedom (Abramowitz and Stegun, 26.7.5): right to 0.001 from 6 degrees of freedom on, to 1 % from 2 on.
    """
    if freedom == 1:
        return math.tan(math.pi * LEVEL / 2)  # Cauchy's distribution
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, 1))


# What the interval does not know of; said beside every verdict.
CAVEAT = (
    "This is the images' chance, for these two models; training's chance is not in it: another seed may end elsewhere, so compare "
    "settings over several seeds."
)

# The same for means over seeds.
CAVEAT_OF_GROUPS = "Both chances are in it, the images' and training's, the latter as far as so few seeds show it."


def in_words(name: str, found: Difference, *, seeds_alone: bool = False) -> str:
    """Whether the two can be told apart, as one says it.

    Args:
        name: of the number.
        found: its difference.
        seeds_alone: A and B have the same settings; then their weights may be told apart, but nothing that one could choose.
    """
    images = f"{found.images} image{'s' if found.images != 1 else ''}"
    said = f"{name}: B - A is {found.difference:+.4f}, between {found.low:+.4f} and {found.high:+.4f} with {LEVEL:.0%} confidence"
    if found.told_apart and seeds_alone:
        return (
            f"{said}: the runs' settings cannot be told apart, being the same but for the seed; training's chance alone moved "
            f"these weights further than the chance of {images}."
        )
    if found.told_apart:
        better = "B" if found.difference > 0 else "A"
        return f"{said}: the runs can be told apart with {images}; {better} is better."
    needed = found.images_needed
    if needed is None:
        return f"{said}: the runs cannot be told apart with {images}."
    return (
        f"{said}: the runs cannot be told apart with {images}; if the difference is really that large, about {_rounded(needed)} "
        "would be needed."
    )


def _rounded(number: int) -> str:
    """Two digits of a number, since no more of them are known."""
    digits = len(str(number)) - 2
    return f"{round(number, -digits) if digits > 0 else number:,}"
