"""COCO's numbers by pycocotools: the plain way, which `detlab.evaluation.scoring` must equal."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import Any

import numpy as np
from pycocotools.cocoeval import COCOeval

from detlab.evaluation.ground_truth import GroundTruth
from detlab.evaluation.metrics import METRICS


def numbers_of(truth: GroundTruth, detections: list[dict[str, Any]], sigmas: Sequence[float]) -> dict[str, float]:
    """The numbers of `detlab.evaluation.coco.score`.

    Args:
        truth: what is to be found.
        detections: rows of COCO results with `area`, which are given ids.
        sigmas: one standard deviation for each keypoint.
    """
    # pycocotools prints its progress. A buffer rather than None, which a live progress bar could not write to.
    with redirect_stdout(io.StringIO()):
        evaluation = COCOeval(truth.index, truth.indexed(detections), truth.iou_type)
        if truth.iou_type == "keypoints":
            evaluation.params.kpt_oks_sigmas = np.asarray(sigmas)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    metrics = METRICS[truth.iou_type]
    values = {f"{truth.iou_type}/{m.name}": float(v) for m, v in zip(metrics, evaluation.stats, strict=True)}
    if len(truth.category_names) > 1:
        # [thresholds, recalls, classes, areas, limits]: all areas stand first, the highest limit last.
        precision = evaluation.eval["precision"][:, :, :, 0, -1]
        for k, category_id in enumerate(evaluation.params.catIds):
            # A class has ground truth, and so a precision everywhere, or -1 everywhere.
            values[f"{truth.iou_type}/AP/{truth.category_names[category_id]}"] = float(precision[:, :, k].mean())
    # Its -1 says that there is nothing to measure.
    return {name: math.nan if value < 0 else value for name, value in values.items()}
