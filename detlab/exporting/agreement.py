"""Does an exported model see in images what detlab's own sees?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

# What two programs that add in different orders may differ by: boxes and points in parts of a coordinate, or in pixels below 1;
# scores (a point's in parts of it, since it has no unit); a mask's probabilities.
BOX_TOLERANCE, SCORE_TOLERANCE, MASK_TOLERANCE = 1e-3, 1e-4, 1e-3
# A point is the highest of several thousand places: of two that are equally high, rounding chooses. So many of them may be.
TIED_POINTS = 0.01
# torchvision pastes a mask into the whole pixels of its box, which it has made larger by the cell that it put around the mask, and
# cuts the sides' fractions off: of two sides that rounding alone tells apart, it may make two pixels. So many masks' may be.
CUT_MASKS = 0.05


@dataclass
class Agreement:
    """What was compared, and the largest differences."""

    images: int = 0
    objects: int = 0
    pixels: float = 0.0  # of a box's side
    relative: float = 0.0  # the same, by the larger of 1 and the coordinate
    score: float = 0.0
    masks: int = 0
    mask: float = 0.0  # of a pixel's probability, of those whose boxes were cut to the same pixels
    cut: int = 0  # masks that differ more, whose boxes were cut to other pixels
    points: int = 0
    point: float = 0.0  # relative, as of boxes, of those that are not tied
    point_score: float = 0.0  # by the larger of 1 and the score
    tied: int = 0  # points that are elsewhere, with the same score
    at_the_end: int = 0  # objects that only one of both reports, with a score where a model stops reporting
    unmatched: int = 0  # other objects that only one of both reports

    @property
    def holds(self) -> bool:
        """Whether something was compared, and all of it agrees."""
        boxes = self.objects > 0 and not self.unmatched and self.relative <= BOX_TOLERANCE
        points = max(self.point / BOX_TOLERANCE, self.point_score / SCORE_TOLERANCE) <= 1
        tied = self.tied <= TIED_POINTS * self.points
        masks = self.mask <= MASK_TOLERANCE and self.cut <= max(1, CUT_MASKS * self.masks)
        return boxes and self.score <= SCORE_TOLERANCE and masks and points and tied

    def __str__(self) -> str:
        parts = [
            f"boxes differ by {self.pixels:.1e} pixels ({self.relative:.1e} relative) at most, scores by {self.score:.1e}",
            f"masks by {self.mask:.1e}" if self.masks else "",
            f"{self.cut} of {self.masks} masks are put a pixel further, their boxes' sides being cut to whole pixels"
            if self.cut
            else "",
            f"points by {self.point:.1e} relative and their scores by {self.point_score:.1e}" if self.points else "",
            f"{self.tied} of {self.points} points lie elsewhere with the same score" if self.tied else "",
            f"{self.at_the_end} object(s) at the least score reported by only one of both" if self.at_the_end else "",
            f"{self.unmatched} object(s) that only one of both reports" if self.unmatched else "",
        ]
        return f"{self.images} image(s), {self.objects} object(s): " + ", ".join(part for part in parts if part)

    def add(
        self, ours: Mapping[str, Any], theirs: Mapping[str, Any], *, least: float, most: int, cells: int | None = None
    ) -> None:
        """Compare two predictions of one image: each object with the nearest unused one of its label.

        An object whose score is within the tolerance of where a model stops reporting may be lacking on the other side; such
        are counted.

        Args:
            ours: `boxes`, `labels`, `scores`, and `masks`, `keypoints`, `keypoints_scores` where both have them; tensors or arrays.
            theirs: the same.
            least: the score below which the model reports nothing.
            most: how many objects it reports at most.
            cells: how many a mask's side has before it is pasted into its box's pixels; None for masks that are not.
        """
        (boxes, labels, scores), (their_boxes, their_labels, their_scores) = (
            [_array(prediction[field]) for field in ("boxes", "labels", "scores")] for prediction in (ours, theirs)
        )
        self.images += 1
        free = np.ones(len(their_scores), bool)
        lacking: list[float] = []
        for i, (box, label, score) in enumerate(zip(boxes, labels, scores, strict=True)):
            alike = np.flatnonzero(free & (their_labels == label) & (np.abs(their_scores - score) <= 0.01))
            far = np.abs(their_boxes[alike] - box).max(1, initial=0)
            if not len(alike) or far.min() > 1:
                lacking.append(float(score))
                continue
            nearest = int(alike[far.argmin()])
            free[nearest] = False
            self._measure(box, their_boxes[nearest], float(abs(their_scores[nearest] - score)))
            cut = cells is not None and _cut_apart(box, their_boxes[nearest], cells)
            self._measure_shape(_at(ours, i), _at(theirs, nearest), cut=cut)
        ends = [least, *(float(s.min()) for s in (scores, their_scores) if len(s) >= most)]
        lone = [*lacking, *their_scores[free].tolist()]
        beyond = sum(score > max(ends) + SCORE_TOLERANCE for score in lone)
        self.unmatched += beyond
        self.at_the_end += len(lone) - beyond

    def _measure(self, box: np.ndarray, their_box: np.ndarray, score: float) -> None:
        self.objects += 1
        self.pixels = max(self.pixels, float(np.abs(box - their_box).max()))
        self.relative = max(self.relative, float(_relative(box, their_box).max()))
        self.score = max(self.score, score)

    def _measure_shape(self, ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray], *, cut: bool) -> None:
        """Compare an object's mask and points, where both have them; `cut`: its boxes may have been cut to other pixels."""
        if "masks" in ours and "masks" in theirs:
            self.masks += 1
            apart = float(np.abs(ours["masks"] - theirs["masks"]).max())
            if cut and apart > MASK_TOLERANCE:
                self.cut += 1
            else:
                self.mask = max(self.mask, apart)
        if "keypoints" in ours and "keypoints" in theirs:
            apart = _relative(ours["keypoints"], theirs["keypoints"])[:, :2].max(1)
            scores = _relative(ours["keypoints_scores"], theirs["keypoints_scores"])
            tied = (apart > BOX_TOLERANCE) & (scores <= SCORE_TOLERANCE)
            self.points += len(apart)
            self.tied += int(tied.sum())
            self.point = max(self.point, float(apart[~tied].max(initial=0)))
            self.point_score = max(self.point_score, float(scores.max()))


def _at(prediction: Mapping[str, Any], i: int) -> dict[str, np.ndarray]:
    """The mask and the points of one object."""
    fields = ("masks", "keypoints", "keypoints_scores")
    return {field: _array(prediction[field][i]) for field in fields if field in prediction}


def _cut_apart(box: np.ndarray, their_box: np.ndarray, cells: int) -> bool:
    """Whether torchvision's `paste_masks_in_image` may put a mask of so many cells into other pixels for one box than the other.

    It makes the box larger by the cell that it puts around the mask, and cuts off what is behind the point.
    """
    sides = np.stack([box, their_box])
    half = (sides[:, 2:] - sides[:, :2]) * (cells + 2) / cells / 2
    centre = (sides[:, 2:] + sides[:, :2]) / 2
    larger = np.concatenate([centre - half, centre + half], axis=1)
    rounding = 1e-6 * np.maximum(1, np.abs(larger).max(0))  # of float32
    return bool((np.trunc(larger.min(0) - rounding) != np.trunc(larger.max(0) + rounding)).any())


def _relative(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    return np.abs(ours - theirs) / np.maximum(1, np.abs(ours))


def _array(value: Any) -> np.ndarray:
    return (value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)).astype(np.float64)


def limits(model: nn.Module) -> dict[str, Any]:
    """What `Agreement.add` asks of one of torchvision's detectors: the score below which it reports nothing, how many objects it
    reports at most, and how many cells a mask's side has before it is pasted.
    """
    heads: Any = getattr(model, "roi_heads", model)
    pool = getattr(heads, "mask_roi_pool", None)
    # The predictor's transposed convolution doubles the pool's.
    cells = None if pool is None else 2 * int(pool.output_size[0])
    return {"least": float(heads.score_thresh), "most": int(heads.detections_per_img), "cells": cells}
