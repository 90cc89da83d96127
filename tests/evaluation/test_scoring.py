"""Our own scoring against pycocotools on random data sets: every number, AP by class included, is the same."""

from __future__ import annotations

import math
import random
from typing import Any, get_args

import numpy as np
import pytest
import torch
from pycocotools import mask as rle

from detlab.evaluation import matching
from detlab.evaluation.coco import CocoEvaluator, score
from detlab.evaluation.metrics import BACKENDS, METRICS, Backend
from detlab.evaluation.scoring import AREAS, THRESHOLDS
from detlab.structures import IOU_TYPES, ClassMap, IouType, Prediction

SIDE = 128
POINTS = 3
SIGMAS = [0.05, 0.1, 0.2]
# Among them the bounds between small, medium and large, and what lies next to them.
OBJECT_AREAS = [1.0, 1023.99999, 1024.0, 1024.00001, 4000.0, 9215.99999, 9216.0, 9216.00001, 12000.0]
PLACES, SIDES = [0, 3, 5, 20, 60], [1, 4, 30, 32, 60, 64]


def random_box(dice: random.Random) -> list[float]:
    """xywh; of few places and sizes, so that boxes meet, and overlap equally."""
    return [float(dice.choice(values)) for values in (PLACES, PLACES, SIDES, SIDES)]


def mask_in(box_xywh: list[float], dice: random.Random) -> dict[str, Any]:
    """The mask of a box, with a hole at times, and at times empty."""
    x, y, width, height = map(int, box_xywh)
    mask = np.zeros((SIDE, SIDE), np.uint8, order="F")
    if dice.random() > 0.05:
        mask[y : y + height, x : x + width] = 1
    if dice.random() < 0.3:
        mask[y + 1 : y + height // 2, x + 1 : x + width // 2] = 0
    encoded: Any = rle.encode(mask)
    return {"size": encoded["size"], "counts": encoded["counts"].decode("ascii")}


def points_in(box_xywh: list[float], dice: random.Random, visibilities: list[int]) -> list[float]:
    x, y, width, height = box_xywh
    values = [(x + dice.choice([0, 0.5, 1]) * width, y + dice.choice([0, 0.5, 1]) * height) for _ in range(POINTS)]
    return [v for px, py in values for v in (px, py, dice.choice(visibilities))]


def random_truth(dice: random.Random) -> dict[str, Any]:
    """Few images, of some without objects, and few classes, of some without any; ids have gaps and may be 0."""
    images = dice.sample(range(50), dice.randint(1, 6))
    classes = dice.sample(range(20), dice.randint(1, 5))
    annotations: list[dict[str, Any]] = []
    for image_id in images:
        for _ in range(dice.choice([0, 1, 3, 8])):
            box = random_box(dice)
            points = points_in(box, dice, dice.choice([[0, 1, 2], [2], [0]]))
            annotations.append(
                {
                    "id": len(annotations), "image_id": image_id, "category_id": dice.choice(classes[:3]), "bbox": box,
                    "area": dice.choice(OBJECT_AREAS), "iscrowd": int(dice.random() < 0.2),
                    "segmentation": mask_in(box, dice), "keypoints": points,
                    # At times it says that there are some where none is visible: the box is then what is compared.
                    "num_keypoints": dice.choice([1, sum(v > 0 for v in points[2::3])]),
                }
            )  # fmt: skip
    dice.shuffle(annotations)
    return {
        "images": [{"id": i, "height": SIDE, "width": SIDE} for i in images],
        "categories": [{"id": i, "name": f"class {i}"} for i in classes],
        "annotations": annotations,
    }


def random_results(truth: dict[str, Any], dice: random.Random, scores: list[float]) -> list[dict[str, Any]]:
    """Detections on and off the objects, in no order; in some images more of a class than count."""
    classes = [category["id"] for category in truth["categories"]]
    rows: list[dict[str, Any]] = []
    for image in truth["images"]:
        near = [a for a in truth["annotations"] if a["image_id"] == image["id"]]
        for _ in range(dice.choice([0, 3, 12, 30, 130])):
            like = dice.choice(near) if near and dice.random() < 0.7 else None
            box = random_box(dice) if like is None else [v + dice.choice([0, 0, 1, 3]) for v in like["bbox"]]
            points = points_in(box, dice, [1])
            if like is not None and dice.random() < 0.6:
                points = [v + dice.choice([0, 0, 1]) for v in like["keypoints"]]
            rows.append(
                {
                    "image_id": image["id"], "score": dice.choice(scores), "bbox": box, "keypoints": points,
                    "category_id": dice.choice(classes) if like is None else like["category_id"],
                    "segmentation": mask_in(box, dice) if like is None or dice.random() < 0.7 else like["segmentation"],
                }
            )  # fmt: skip
    dice.shuffle(rows)
    return rows


def assert_equal(numbers: dict[str, float], expected: dict[str, float]) -> None:
    assert list(numbers) == list(expected)
    assert numbers == pytest.approx(expected, abs=1e-10, rel=0, nan_ok=True)


@pytest.mark.parametrize("iou_type", IOU_TYPES)
@pytest.mark.parametrize("seed", range(25))
def test_every_number_of_random_rows_is_that_of_pycocotools(iou_type: IouType, seed: int) -> None:
    dice = random.Random(seed)
    truth = random_truth(dice)
    results = random_results(truth, dice, dice.choice([[0.5, 0.75, 1.0], [i / 997 for i in range(997)]]))
    if seed % 2 and iou_type == "keypoints":
        results = [{name: value for name, value in row.items() if name != "bbox"} for row in results]
    numbers = {b: score(truth, results, iou_type, sigmas=SIGMAS, backend=b) for b in get_args(Backend)}
    assert_equal(numbers["faster"], numbers["pycocotools"])
    assert_equal(numbers["auto"], numbers["pycocotools"])


def test_the_random_data_sets_have_what_is_hard() -> None:
    found = {"crowd": 0, "many": 0, "empty": 0, "unknown": 0, "measured": 0, "unmeasured": 0}
    for seed in range(25):
        dice = random.Random(seed)
        truth = random_truth(dice)
        results = random_results(truth, dice, [0.5])
        groups = [(row["image_id"], row["category_id"]) for row in results]
        found["crowd"] += any(a["iscrowd"] for a in truth["annotations"])
        found["many"] += any(groups.count(group) > 100 for group in set(groups))
        found["empty"] += any(rle.area(row["segmentation"]) == 0 for row in results)
        found["unknown"] += any(a["num_keypoints"] and not any(a["keypoints"][2::3]) for a in truth["annotations"])
        values = score(truth, results, "bbox").values()
        found["measured"] += any(0 < value < 1 for value in values)
        found["unmeasured"] += any(math.isnan(value) for value in values)
    assert min(found.values()) >= 3, found


def predictions_of(results: list[dict[str, Any]], truth: dict[str, Any]) -> dict[int, Prediction]:
    """The rows as a model gives them, by image."""
    ids = [category["id"] for category in truth["categories"]]
    predictions: dict[int, Prediction] = {}
    for image in truth["images"]:
        rows = [row for row in results if row["image_id"] == image["id"]]
        xywh = torch.tensor([row["bbox"] for row in rows], dtype=torch.float32).reshape(-1, 4)
        count = len(rows)
        generator = torch.Generator().manual_seed(count)
        predictions[image["id"]] = {
            "boxes": torch.cat((xywh[:, :2], (xywh[:, :2] + xywh[:, 2:]).clamp(max=SIDE)), 1),
            "labels": torch.tensor([ids.index(row["category_id"]) + 1 for row in rows], dtype=torch.int64),
            "scores": torch.tensor([row["score"] for row in rows], dtype=torch.float32),
            "masks_in_boxes": torch.rand(count, 1, 4, 4, generator=generator) + 0.2,
            "image_size": (SIDE, SIDE),
            "keypoints": torch.tensor([row["keypoints"] for row in rows]).float().reshape(count, POINTS, 3),
        }
    return predictions


@pytest.mark.parametrize("seed", range(6))
def test_evaluators_merged_in_any_order_give_the_numbers_of_their_rows(seed: int) -> None:
    dice = random.Random(seed)
    truth = random_truth(dice)
    predictions = predictions_of(random_results(truth, dice, [0.5, 0.75, 1.0]), truth)
    categories = truth["categories"]
    class_map = ClassMap(tuple(c["name"] for c in categories), tuple(c["id"] for c in categories))
    computed: list[dict[str, float]] = []
    rows: list[list[dict[str, Any]]] = []
    for backend in BACKENDS:
        parts = [
            CocoEvaluator(
                ground_truth=truth, class_map=class_map, iou_types=IOU_TYPES, keypoint_sigmas=SIGMAS, backend=backend
            )
            for _ in range(3)
        ]
        for image_id in dice.sample(list(predictions), len(predictions)):
            dice.choice(parts).update([image_id], [predictions[image_id]])
        dice.shuffle(parts)
        for other in parts[1:]:
            parts[0].merge(other.held())
        computed.append(parts[0].compute())
        rows.append(parts[0].results())
    expected: dict[str, float] = {}
    for iou_type in IOU_TYPES:
        expected |= score(truth, rows[0], iou_type, sigmas=SIGMAS, backend="pycocotools")
    assert rows[0] == rows[1] == rows[2]
    for numbers in computed:
        assert_equal(numbers, expected)


def test_how_many_pairs_are_compared_at_once_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    dice = random.Random(3)
    truth = random_truth(dice)
    results = random_results(truth, dice, [0.5, 0.75, 1.0])
    expected = {t: score(truth, results, t, sigmas=SIGMAS, backend="faster") for t in IOU_TYPES}
    for pairs in (1, 7, 100):
        monkeypatch.setattr(matching, "_PAIRS_AT_ONCE", pairs)
        for iou_type in IOU_TYPES:
            numbers = score(truth, results, iou_type, sigmas=SIGMAS, backend="faster")
            assert numbers == pytest.approx(expected[iou_type], abs=0, rel=0, nan_ok=True)


def test_two_objects_that_are_overlapped_equally_leave_one_for_the_next_detection() -> None:
    boxes = [[0.0, 0.0, 10.0, 10.0], [10.0, 0.0, 10.0, 10.0]]
    truth = {
        "images": [{"id": 0}],
        "categories": [{"id": 0, "name": "a"}],
        "annotations": [{"image_id": 0, "category_id": 0, "bbox": box} for box in boxes],
    }
    # Both detections overlap the first object alone by 0.5 or more; the second one comes too late.
    both = [{"image_id": 0, "category_id": 0, "bbox": boxes[0], "score": s} for s in (0.9, 0.8)]
    for backend in BACKENDS:
        assert score(truth, both, "bbox", backend=backend)["bbox/AR100"] == pytest.approx(0.5)
    # With two objects in one place each of them is found.
    truth["annotations"][1]["bbox"] = boxes[0]
    for backend in BACKENDS:
        assert score(truth, both, "bbox", backend=backend)["bbox/AR100"] == pytest.approx(1.0)


def test_the_areas_and_thresholds_are_those_of_the_metrics() -> None:
    assert {metric.area for table in METRICS.values() for metric in table} == set(AREAS)
    named = {float(metric.iou) for table in METRICS.values() for metric in table if ":" not in metric.iou}
    assert named <= set(THRESHOLDS.tolist())


def test_another_backend_is_refused() -> None:
    truth: dict[str, Any] = {"images": [], "categories": [{"id": 1, "name": "a"}], "annotations": []}
    unknown: Any = "fast"
    said = "backend: 'fast' is not allowed; allowed: auto, pycocotools, faster"
    with pytest.raises(ValueError, match=said):
        score(truth, [], "bbox", backend=unknown)
    with pytest.raises(ValueError, match=said):
        CocoEvaluator(ground_truth=truth, class_map=ClassMap(("a",)), iou_types=["bbox"], backend=unknown)
