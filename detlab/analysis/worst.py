"""In which images does it go wrong most, at the score from which on a detection is believed?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from detlab.analysis.errors import KINDS, Errors


@dataclass(frozen=True)
class Believed:
    """Detections with the score that their class needs, and what they find at IoU 0.5.

    Args:
        errors: of all detections.
        kept: bool `[D]`, the detections that are believed.
        found: bool `[G]`, the objects that these found.
    """

    errors: Errors
    kept: np.ndarray
    found: np.ndarray

    @classmethod
    def of(cls, errors: Errors, thresholds: np.ndarray) -> Believed:
        """By thresholds, float64 `[K]`, in the order of the categories' ids."""
        judged = errors.judged
        kept = judged.detections.scores >= thresholds[judged.detections.classes]
        # A detection chooses before all of lower score, so that leaving those out changes nothing for it.
        found = np.zeros(len(judged.objects), bool)
        found[judged.found[kept & judged.right]] = True
        return cls(errors, kept, found)

    def worst(self) -> list[dict[str, Any]]:
        """The images with an error, most errors first: believed detections that are wrong, and objects that none of them found.

        Returns:
            Of each `image_id`, `file_name` (None where the ground truth has none), `errors`, `wrong` (by kind) and `not_found`.
        """
        judged = self.errors.judged
        ids = list(judged.truth.image_numbers)
        wrong, lost = self.kept & judged.wrong, judged.counted & ~self.found
        by_kind = np.zeros((len(ids), len(KINDS)), np.int64)
        np.add.at(by_kind, (judged.detections.images[wrong], self.errors.kinds[wrong]), 1)
        not_found = np.bincount(judged.objects.images[lost], minlength=len(ids))
        totals = by_kind.sum(1) + not_found
        order = np.argsort(-totals, kind="stable")
        return [
            {
                "image_id": ids[i],
                "file_name": judged.truth.images[ids[i]].get("file_name"),
                "errors": int(totals[i]),
                "wrong": {kind: int(count) for kind, count in zip(KINDS, by_kind[i], strict=True) if count},
                "not_found": int(not_found[i]),
            }
            for i in order[totals[order] > 0].tolist()
        ]
