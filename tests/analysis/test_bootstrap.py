"""The paired bootstrap: a resample is a data set, and the interval holds the truth as often as it says."""

from __future__ import annotations

import copy
import math
import random
from typing import Any

import numpy as np
import pytest
from evaluation.test_scoring import SIGMAS, random_results, random_truth  # the hard cases, made there
from simulation import Simulated, detectors_on

from detlab.analysis.bootstrap import Difference, in_words, interval, paired, students_quantile
from detlab.evaluation import scoring
from detlab.evaluation.coco import matched, score
from detlab.evaluation.metrics import DETECTION_METRICS, METRICS
from detlab.evaluation.scoring import numbers_by_weight, numbers_once
from detlab.structures import IOU_TYPES, IouType

AP, AP_AND_AP50 = DETECTION_METRICS[:1], DETECTION_METRICS[:2]


def repeated(truth: dict[str, Any], results: list[dict[str, Any]], times: list[int]) -> tuple[Any, Any]:
    """The data set and its results with each image as often as said (in the order of the ids), under new ids."""
    images, annotations, rows = [], [], []
    for image, count in zip(sorted(truth["images"], key=lambda i: i["id"]), times, strict=True):
        for copied in range(count):
            new = image["id"] * 10 + copied
            images.append({**image, "id": new})
            annotations += [
                {**copy.deepcopy(a), "image_id": new} for a in truth["annotations"] if a["image_id"] == image["id"]
            ]
            rows += [{**row, "image_id": new} for row in results if row["image_id"] == image["id"]]
    return {**truth, "images": images, "annotations": annotations}, rows


def with_scores_of_its_own(results: list[dict[str, Any]], dice: random.Random) -> list[dict[str, Any]]:
    """No two of an image with one score, but of different images."""
    seen: dict[int, int] = {}
    for row in results:
        seen[row["image_id"]] = seen.get(row["image_id"], 0) + 1
    values = {image: dice.sample(range(300), count) for image, count in seen.items()}
    return [{**row, "score": values[row["image_id"]].pop() / 300} for row in results]


@pytest.mark.parametrize("iou_type", IOU_TYPES)
@pytest.mark.parametrize("seed", range(8))
def test_a_resample_is_scored_as_a_data_set_in_which_the_images_are_repeated(iou_type: IouType, seed: int) -> None:
    dice = random.Random(seed)
    truth = random_truth(dice)
    results = with_scores_of_its_own(random_results(truth, dice, [0.5]), dice)
    weights = np.array([[dice.choice([0, 1, 1, 2, 3]) for _ in truth["images"]] for _ in range(4)], np.float64)
    sides = matched(truth, results, iou_type, sigmas=SIGMAS)
    numbers = numbers_by_weight(sides, weights, METRICS[iou_type], by_class=len(truth["categories"]) > 1)
    for b, times in enumerate(weights.astype(int).tolist()):
        expected = score(*repeated(truth, results, times), iou_type, sigmas=SIGMAS, backend="pycocotools")
        assert {n: v[b] for n, v in numbers.items()} == pytest.approx(expected, abs=1e-10, rel=0, nan_ok=True), times
        own = score(*repeated(truth, results, times), iou_type, sigmas=SIGMAS)
        assert {n: v[b] for n, v in numbers.items()} == pytest.approx(own, abs=0, rel=0, nan_ok=True), times


@pytest.mark.parametrize("iou_type", IOU_TYPES)
def test_with_every_image_once_the_numbers_are_exactly_those_of_score(iou_type: IouType) -> None:
    for seed in range(10):
        dice = random.Random(seed)
        truth = random_truth(dice)
        results = random_results(truth, dice, [0.5, 0.75, 1.0])
        sides = matched(truth, results, iou_type, sigmas=SIGMAS)
        by_class = len(truth["categories"]) > 1
        weights = np.ones((3, len(truth["images"])))
        numbers = numbers_by_weight(sides, weights, METRICS[iou_type], by_class=by_class)
        expected = score(truth, results, iou_type, sigmas=SIGMAS)
        for b in range(3):
            assert {n: v[b] for n, v in numbers.items()} == pytest.approx(expected, abs=0, rel=0, nan_ok=True)
        assert numbers_once(sides) == pytest.approx(expected, abs=0, rel=0, nan_ok=True)


def test_how_many_data_sets_are_scored_at_once_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = detectors_on(12, (Simulated(1, 0.07, 1), Simulated(1, 0.07, 1)), classes=2, seed=0)
    whole = paired(a, b, AP, images=12, resamples=20, seed=0)["bbox/AP"]
    monkeypatch.setattr(scoring, "_NUMBERS_AT_ONCE", 1)
    assert (paired(a, b, AP, images=12, resamples=20, seed=0)["bbox/AP"].resampled == whole.resampled).all()


def test_the_same_detections_twice_differ_by_nothing_on_every_resample() -> None:
    a, _ = detectors_on(12, (Simulated(1, 0.07, 1), Simulated(1, 0.07, 1)), classes=2, seed=0)
    found = paired(a, a, AP, images=12, resamples=30, seed=0)["bbox/AP"]
    assert not found.resampled.any()
    assert (found.low, found.high, found.told_apart, found.images_needed) == (0, 0, False, None)


def test_the_seed_alone_decides_what_is_drawn() -> None:
    a, b = detectors_on(20, (Simulated(1, 0.07, 1), Simulated(2, 0.05, 1)), classes=1, seed=0)
    one, same, other = (paired(a, b, AP, images=20, resamples=30, seed=s)["bbox/AP"] for s in (5, 5, 6))
    assert (one.low, one.high) == (same.low, same.high) != (other.low, other.high)


def test_a_data_set_without_objects_gives_no_number() -> None:
    truth: dict[str, Any] = {
        "images": [{"id": 1}, {"id": 2}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [],
    }
    nothing = matched(truth, [], "bbox")
    assert paired(nothing, nothing, AP, images=2, resamples=5, seed=0) == {}


def test_of_one_image_nothing_is_known() -> None:
    assert interval(np.array([0.1, 0.1]), 1) == (-math.inf, math.inf)
    assert all(math.isnan(end) for end in interval(np.zeros(0), 5))


@pytest.mark.parametrize(("freedom", "quantile"), [(1, 12.7062), (9, 2.2622), (49, 2.0096), (4999, 1.9604)])
def test_the_quantiles_are_those_of_students_tables(freedom: int, quantile: float) -> None:
    assert students_quantile(freedom) == pytest.approx(quantile, abs=2e-4)


def test_what_is_said_names_the_better_one_or_how_many_images_it_takes() -> None:
    spread = np.array([-0.01, 0.01] * 50)
    apart = Difference(0.3, 0.4, 0.05, 0.15, 50, spread + 0.1)
    assert "can be told apart with 50 images; B is better" in in_words("bbox/AP", apart)
    assert "settings cannot be told apart, being the same but for the seed" in in_words("AP", apart, seeds_alone=True)
    alike = Difference(0.3, 0.302, -0.02, 0.02, 50, spread)
    # (1.960 + 0.842)^2 = 7.849 times (0.01005 / 0.002)^2 = 25.25 times 50 images, which is 9909.
    assert alike.images_needed == pytest.approx(9909, abs=15)
    assert "cannot be told apart with 50 images" in in_words("bbox/AP", alike)
    assert "about 9,900 would be needed" in in_words("bbox/AP", alike)


PAIRS = {
    "one class, the second a little better": ((Simulated(1.0, 0.07, 1.0), Simulated(1.3, 0.06, 0.8)), 1),
    "three classes, equally good": ((Simulated(1.0, 0.07, 1.0), Simulated(1.0, 0.07, 1.0)), 3),
    "two classes, the second far worse": ((Simulated(1.5, 0.05, 0.5), Simulated(-0.5, 0.12, 2.0)), 2),
}


def coverage(which: str, *, trials: int, resamples: int, images: int, world: int) -> dict[str, float]:
    """For AP and AP50 the share of data sets whose interval holds the true difference, that of `world` images."""
    pair, classes = PAIRS[which]
    whole = np.ones((1, world))
    a, b = (
        numbers_by_weight(side, whole, AP_AND_AP50, by_class=False)
        for side in detectors_on(world, pair, classes, seed=10**6)
    )
    true = {name: b[name][0] - a[name][0] for name in a}
    assert set(true) == {"bbox/AP", "bbox/AP50"}
    held = dict.fromkeys(true, 0)
    for trial in range(trials):
        sides = detectors_on(images, pair, classes, seed=trial)
        found = paired(*sides, AP_AND_AP50, images=images, resamples=resamples, seed=trial)
        for name, difference in true.items():
            held[name] += bool(found[name].low <= difference <= found[name].high)
    return {name: count / trials for name, count in held.items()}


@pytest.mark.slow
def test_most_intervals_of_a_few_data_sets_hold_the_truth() -> None:
    shares = coverage("one class, the second a little better", trials=60, resamples=200, images=50, world=3000)
    # Of 60 at 0.95, fewer than 51 hold it in 2 of 1000 cases.
    assert min(shares.values()) >= 51 / 60


@pytest.mark.long
@pytest.mark.parametrize("which", PAIRS)
def test_intervals_with_50_images_hold_the_truth_in_93_to_97_percent(which: str) -> None:
    shares = coverage(which, trials=400, resamples=400, images=50, world=30000)
    print(f"{which}: {shares}")
    assert all(0.93 <= share <= 0.97 for share in shares.values())
