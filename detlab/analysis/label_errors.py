"""Which annotations should somebody look at again: confident detections without an object, objects that are never found."""

from __future__ import annotations

from typing import Any

import numpy as np

from detlab.analysis.errors import KINDS, Errors
from detlab.analysis.judged import POSITIVE
from detlab.evaluation.matching import pairs_of
from detlab.evaluation.overlaps import overlap_of


def label_errors_of(
    errors: Errors, ground_truth: dict[str, Any], results: list[dict[str, Any]], thresholds: np.ndarray
) -> dict[str, Any]:
    """A COCO dict with the likely errors of a ground truth alone, to be opened in a labelling tool.

    Args:
        errors: of the results.
        ground_truth: COCO dict.
        results: COCO results rows.
        thresholds: float64 `[K]`, from which score on a detection is believed, in the order of the categories' ids.

    Returns:
        The images concerned, all categories, and annotations, ids from 1, with a `review`: `not annotated`, with its `score`, the
        most confident first, or `never found` by a detection of any class, at any score, with its `annotation_id`.
    """
    judged, truth = errors.judged, errors.judged.truth
    detections = judged.detections
    suspected = (errors.kinds == KINDS.index("background")) & (detections.scores >= thresholds[detections.classes])
    order = np.flatnonzero(suspected)
    rows = []
    for d in order[np.argsort(-detections.scores[order], kind="stable")].tolist():
        row = results[int(judged.rows[d])]
        kept = {key: row[key] for key in ("image_id", "category_id", "bbox", "segmentation", "score") if key in row}
        rows.append({**kept, "area": float(detections.areas[d]), "iscrowd": 0, "review": "not annotated"})
    for g in np.flatnonzero(_never_found(errors)).tolist():
        annotation = truth.annotations[int(judged.annotations[g])]
        kept = {
            key: annotation[key]
            for key in ("image_id", "category_id", "bbox", "segmentation", "area")
            if key in annotation
        }
        named = {"annotation_id": annotation["id"]} if "id" in annotation else {}
        rows.append({**kept, "iscrowd": 0, "review": "never found", **named})
    concerned = {row["image_id"] for row in rows}
    return {
        "info": {"description": "likely label errors, to be reviewed"},
        "images": [image for image in ground_truth["images"] if image["id"] in concerned],
        "categories": ground_truth["categories"],
        "annotations": [{"id": number, **row} for number, row in enumerate(rows, start=1)],
    }


def _never_found(errors: Errors) -> np.ndarray:
    """Bool `[G]`: the objects that no detection of any class overlaps by `POSITIVE`."""
    judged = errors.judged
    found = ~judged.counted
    order = np.argsort(judged.objects.images, kind="stable")
    overlap = overlap_of(
        judged.truth.iou_type, judged.detections, judged.objects, at_least=POSITIVE, sigmas=judged.sigmas
    )
    for d, position in pairs_of(judged.detections.images, judged.objects.images[order]):
        g = order[position]
        with np.errstate(all="ignore"):
            found[g[overlap(d, g) >= POSITIVE]] = True
    return ~found
