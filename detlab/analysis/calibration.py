"""Does a score of 0.8 mean that 8 of 10 are right: reliability bins and the expected calibration error of the scores."""

from __future__ import annotations

from typing import Any

import numpy as np

from detlab.analysis.judged import Judged

BINS = 10


def calibration_of(judged: Judged) -> dict[str, Any]:
    """How scores and precision agree, over all classes (Guo et al., On Calibration of Modern Neural Networks, ICML 2017).

    Returns:
        `error`, the mean over the detections of the difference between their bin's mean score and its part that is right; nan
        without detections. `bins`, ten of equal width: `from`, `to`, `count`, `score` (mean), `precision`; nan in an empty bin.
        A score of 0.1 belongs to the bin that begins there, one of 1 to the last.
    """
    counted = ~judged.excused
    scores, right = judged.detections.scores[counted], judged.right[counted]
    places = np.clip((scores * BINS).astype(np.int64), 0, BINS - 1)
    counts = np.bincount(places, minlength=BINS)
    with np.errstate(invalid="ignore"):
        means = np.bincount(places, scores, BINS) / counts
        precisions = np.bincount(places, right, BINS) / counts
    error = float(np.nansum(np.abs(means - precisions) * counts) / len(scores)) if len(scores) else float("nan")
    columns = zip(counts.tolist(), means.tolist(), precisions.tolist(), strict=True)
    bins = [
        {"from": i / BINS, "to": (i + 1) / BINS, "count": count, "score": mean, "precision": precision}
        for i, (count, mean, precision) in enumerate(columns)
    ]
    return {"error": error, "bins": bins}
