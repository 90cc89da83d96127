"""Does an exported model see in images what detlab's own sees?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

# What two programs that add in different orders may differ by: boxes in pixels, or in parts of a coordinate above 1; scores.
BOX_TOLERANCE, SCORE_TOLERANCE = 1e-3, 1e-4


@dataclass
class Agreement:
    """What was compared, and the largest differences."""

    images: int = 0
    objects: int = 0
    pixels: float = 0.0  # of a box's side
    relative: float = 0.0  # the same, by the larger of 1 and the coordinate
    score: float = 0.0
    unmatched: int = 0  # objects that only one of both reports

    @property
    def holds(self) -> bool:
        """Whether something was compared, and all of it agrees."""
        within = self.relative <= BOX_TOLERANCE and self.score <= SCORE_TOLERANCE
        return self.objects > 0 and not self.unmatched and within

    def __str__(self) -> str:
        only = f", {self.unmatched} object(s) that only one of both reports" if self.unmatched else ""
        return (
            f"{self.images} image(s), {self.objects} object(s): boxes differ by {self.pixels:.1e} pixels ({self.relative:.1e} "
            f"relative) at most, scores by {self.score:.1e}{only}"
        )

    def add(self, ours: Mapping[str, Any], theirs: Mapping[str, Any], *, least: float, most: int) -> None:
        """Compare two predictions of one image, box by box: each object with the nearest unused one of its label.

        An object whose score is within the tolerance of where a model stops reporting may be lacking on the other side.

        Args:
            ours: `boxes`, `labels`, `scores`, tensors or arrays.
            theirs: the same.
            least: the score below which the model reports nothing.
            most: how many objects it reports at most.
        """
        (boxes, labels, scores), (their_boxes, their_labels, their_scores) = (
            [_array(prediction[field]) for field in ("boxes", "labels", "scores")] for prediction in (ours, theirs)
        )
        self.images += 1
        free = np.ones(len(their_scores), bool)
        lacking: list[float] = []
        for box, label, score in zip(boxes, labels, scores, strict=True):
            alike = np.flatnonzero(free & (their_labels == label) & (np.abs(their_scores - score) <= 0.01))
            far = np.abs(their_boxes[alike] - box).max(1, initial=0)
            if not len(alike) or far.min() > 1:
                lacking.append(float(score))
                continue
            nearest = int(alike[far.argmin()])
            free[nearest] = False
            self._measure(box, their_boxes[nearest], float(abs(their_scores[nearest] - score)))
        cuts = [least, *(float(s.min()) for s in (scores, their_scores) if len(s) >= most)]
        lone = [*lacking, *their_scores[free].tolist()]
        self.unmatched += sum(score > max(cuts) + SCORE_TOLERANCE for score in lone)

    def _measure(self, box: np.ndarray, their_box: np.ndarray, score: float) -> None:
        apart = np.abs(box - their_box)
        self.objects += 1
        self.pixels = max(self.pixels, float(apart.max()))
        self.relative = max(self.relative, float((apart / np.maximum(1, np.abs(box))).max()))
        self.score = max(self.score, score)


def _array(value: Any) -> np.ndarray:
    return (value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)).astype(np.float64)


def limits(model: nn.Module) -> tuple[float, int]:
    """The score below which one of torchvision's detectors reports nothing, and how many objects it reports at most."""
    heads: Any = getattr(model, "roi_heads", model)
    return float(heads.score_thresh), int(heads.detections_per_img)
