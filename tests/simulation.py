"""Pairs of detectors on synthetic ground truth, as many images of it as a truth needs: boxes, no pictures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from detlab.evaluation.instances import Detections, Objects
from detlab.evaluation.scoring import Matched, match_all


@dataclass(frozen=True)
class Simulated:
    """How good a detector is."""

    skill: float  # log odds of finding an object of mean difficulty
    blur: float  # standard deviation of its boxes' corners, by the side of the object
    false_alarms: float  # boxes around nothing, for each image


def detectors_on(images: int, pair: tuple[Simulated, Simulated], classes: int, seed: int) -> tuple[Matched, Matched]:
    """What both find in the same images: objects, and whole images, that are hard for the one are hard for the other."""
    random = np.random.default_rng(seed)
    counts = random.poisson(2.0, images)  # at times no object at all
    of_image = np.repeat(np.arange(images), counts)
    total = len(of_image)
    labels = random.choice(classes, total, p=np.arange(classes, 0, -1) / (classes * (classes + 1) / 2))
    sides = random.uniform(15, 150, (total, 2))
    # Far enough from each other that no object is taken for another.
    place = np.concatenate([np.arange(c) for c in counts]) if total else np.zeros(0)
    boxes = np.concatenate([place[:, None] * [400.0, 0.0], sides], 1)
    ease = random.normal(0, 1, total) + random.normal(0, 0.7, images)[of_image]
    objects = Objects(
        images=of_image, classes=labels, areas=boxes[:, 2] * boxes[:, 3], shapes=boxes, boxes=boxes,
        crowd=np.zeros(total, bool), ignored=np.zeros(total, bool),
    )  # fmt: skip
    first, second = (
        match_all(
            objects,
            _found(random, one, objects, ease, images, classes),
            "bbox",
            class_names=[f"class {k}" for k in range(classes)],
            sigmas=[],
        )
        for one in pair
    )
    return first, second


def _found(
    random: np.random.Generator, detector: Simulated, objects: Objects, ease: np.ndarray, images: int, classes: int
) -> Detections:
    seen = random.random(len(ease)) < 1 / (1 + np.exp(-detector.skill - ease))
    sides = objects.shapes[seen, 2:]
    spread = detector.blur * np.exp(-0.3 * ease[seen])[:, None]
    corners = objects.shapes[seen, :2] + random.normal(0, 1, sides.shape) * sides * spread
    sizes = sides * np.exp(random.normal(0, 1, sides.shape) * spread)
    false = np.repeat(np.arange(images), random.poisson(detector.false_alarms, images))
    nowhere = np.concatenate([np.full((len(false), 2), -500.0), random.uniform(15, 150, (len(false), 2))], 1)
    shapes = np.concatenate([np.concatenate([corners, sizes], 1), nowhere])
    of_image = np.concatenate([objects.images[seen], false])
    odds = np.concatenate([1 + ease[seen], np.full(len(false), -1.0)]) + random.normal(0, 1, len(shapes))
    found = Detections(
        images=of_image,
        classes=np.concatenate([objects.classes[seen], random.integers(0, classes, len(false))]),
        areas=shapes[:, 2] * shapes[:, 3],
        shapes=shapes,
        scores=1 / (1 + np.exp(-odds)),
    )
    return found.take(np.argsort(of_image, kind="stable"))
