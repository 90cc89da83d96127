"""Random data sets, scored by us and by pycocotools alone: every number is equal."""

from __future__ import annotations

import copy
import io
import math
from contextlib import redirect_stdout
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detlab.evaluation.coco import CocoEvaluator
from detlab.evaluation.metrics import METRICS, Backend
from detlab.structures import ClassMap, IouType

SIDE = 128
# Among them the bounds between small, medium and large, and what float32 would round to them.
AREAS = st.sampled_from([1.0, 1023.99999, 1024.0, 1024.00001, 4000.0, 9215.99999, 9216.0, 9216.00001, 12000.0])
# Few, so that there are ties.
SCORES = st.sampled_from([0.25, 0.5, 0.5, 0.75, 1.0])


@st.composite
def box(draw: st.DrawFn) -> list[int]:
    """x0, y0, width, height: few places, so that boxes meet."""
    x, y = draw(st.sampled_from([0, 3, 5, 20, 60])), draw(st.sampled_from([0, 2, 30, 64]))
    return [x, y, draw(st.sampled_from([1, 4, 32, 60])), draw(st.sampled_from([1, 8, 32, 64]))]


@st.composite
def data_set(draw: st.DrawFn) -> tuple[dict[str, Any], dict[int, list[tuple[list[int], int, float]]]]:
    """Ground truth, and detections (box, label, score) by image."""
    classes = draw(st.integers(1, 12))
    ids = draw(st.permutations(range(1, 40)))[:classes]
    images = draw(st.lists(st.integers(0, 2**40), min_size=1, max_size=5, unique=True))
    rows, found = [], {}
    for image_id in images:
        for xywh in draw(st.lists(box(), max_size=5)):
            rows.append(
                {
                    "id": len(rows) + 1, "image_id": image_id, "category_id": draw(st.sampled_from(ids)),
                    "bbox": list(map(float, xywh)), "area": draw(AREAS), "iscrowd": int(draw(st.integers(0, 5)) == 0),
                    "segmentation": filled(xywh),
                }
            )  # fmt: skip
        near = [row["bbox"] for row in rows if row["image_id"] == image_id]
        found[image_id] = [
            (xywh, draw(st.integers(1, classes)), draw(SCORES))
            for xywh in draw(st.lists(st.one_of(box(), st.sampled_from(near) if near else box()), max_size=8))
        ]
    categories = [{"id": category, "name": f"class {category}"} for category in sorted(ids)]
    sizes = [{"id": i, "file_name": f"{i}.png", "height": SIDE, "width": SIDE} for i in images]
    return {"info": {}, "images": sizes, "annotations": rows, "categories": categories}, found


def filled(xywh: Any) -> dict[str, Any]:
    """The mask of a box, as COCO's run lengths."""
    encoded: Any = rle.encode(np.asfortranarray(mask_of(xywh)))
    return {"size": encoded["size"], "counts": encoded["counts"].decode("ascii")}


def mask_of(xywh: Any) -> np.ndarray:
    x, y, width, height = map(int, xywh)
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[y : y + height, x : x + width] = 1
    return mask


def by_pycocotools(truth: dict[str, Any], results: list[dict[str, Any]], iou_type: IouType) -> list[float]:
    """The numbers of pycocotools' own summary, called as its demo does; nan for its -1."""
    with redirect_stdout(io.StringIO()):
        ours = COCO()
        ours.dataset = copy.deepcopy(truth)
        ours.createIndex()
        rows = [{key: value for key, value in row.items() if iou_type == "bbox" or key != "bbox"} for row in results]
        if rows:
            theirs = ours.loadRes(copy.deepcopy(rows))
        else:  # loadRes fails on an empty list
            theirs = COCO()
            theirs.dataset = {**copy.deepcopy(truth), "annotations": []}
            theirs.createIndex()
        scored = COCOeval(ours, theirs, iou_type)
        scored.evaluate()
        scored.accumulate()
        scored.summarize()
    return [math.nan if value == -1 else float(value) for value in scored.stats]


def by_the_evaluator(
    truth: dict[str, Any], found: dict[int, list[tuple[list[int], int, float]]], parts: int, backend: Backend
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """The evaluator's numbers and results, fed with tensors, by several processes' evaluators that are merged."""
    ids = [category["id"] for category in truth["categories"]]
    class_map = ClassMap(tuple(category["name"] for category in truth["categories"]), tuple(ids))
    evaluators = [
        CocoEvaluator(
            ground_truth=truth, class_map=class_map, iou_types=("bbox", "segm"), keypoint_sigmas=None, backend=backend
        )
        for _ in range(parts)
    ]
    for number, (image_id, rows) in enumerate(found.items()):
        xywh = torch.tensor([row[0] for row in rows], dtype=torch.float32).reshape(-1, 4)
        masks = np.stack([mask_of(row[0]) for row in rows]) if rows else np.zeros((0, SIDE, SIDE))
        prediction: Any = {
            "boxes": torch.cat((xywh[:, :2], xywh[:, :2] + xywh[:, 2:]), 1),
            "labels": torch.tensor([row[1] for row in rows], dtype=torch.int64),
            "scores": torch.tensor([row[2] for row in rows], dtype=torch.float32),
            "masks": torch.from_numpy(masks)[:, None].float(),
        }
        evaluators[number % parts].update([image_id], [prediction])
    first, *others = evaluators
    for other in others:
        first.merge(other.held())
    return first.compute(), first.results()


@pytest.mark.slow
@settings(max_examples=500, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data_set(), st.integers(1, 3))
def test_every_number_is_that_of_pycocotools(
    drawn: tuple[dict[str, Any], dict[int, list[tuple[list[int], int, float]]]], parts: int
) -> None:
    truth, found = drawn
    plain, results = by_the_evaluator(truth, found, parts, "pycocotools")
    faster, same_results = by_the_evaluator(truth, found, parts, "faster")
    assert results == same_results
    assert faster == pytest.approx(plain, abs=1e-10, rel=0, nan_ok=True)
    for iou_type in ("bbox", "segm"):
        expected = by_pycocotools(truth, results, iou_type)
        names = [f"{iou_type}/{metric.name}" for metric in METRICS[iou_type]]
        assert [repr(plain[name]) for name in names] == [repr(value) for value in expected]
