"""COCO's numbers: those that the COCO API gives, and cases small enough to do by hand."""

from __future__ import annotations

import copy
import functools
import json
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as rle

from detlab.errors import UserError
from detlab.evaluation.coco import CocoEvaluator, score
from detlab.evaluation.metrics import METRICS
from detlab.evaluation.results import prediction_to_results, run_lengths
from detlab.structures import ClassMap, IouType, Prediction

SHARED = Path(__file__).parents[2] / "../shared"
INSTANCES = "coco_val2014_100/instances_val2014_100.json"
FAKE_BOXES = "coco_val2014_100/instances_val2014_fakebbox100_results.json"
FAKE_MASKS = "coco_val2014_100/instances_val2014_fakesegm100_results.json"
KEYPOINTS = "coco_keypoints_139099/gt_dataset.json"
DETECTED_KEYPOINTS = "coco_keypoints_139099/dt_dataset.json"

# ../shared/README.md, "Reference numbers": pycocotools 2.0.11.
REFERENCE: dict[IouType, list[float]] = {
    "bbox": [0.5045806987, 0.6969727247, 0.5729816670, 0.5856257209, 0.5193996948, 0.5013978986, 0.3868127796,
             0.5936795763, 0.5953529829, 0.6398109626, 0.5664205979, 0.5642905983],
    "segm": [0.3195452759, 0.5622883973, 0.2989265341, 0.3873740316, 0.3101827240, 0.3269339071, 0.2682297226,
             0.4154486811, 0.4168394992, 0.4694498623, 0.3767592267, 0.3814715100],
    "keypoints": [0.5048844884, 0.7227722772, 0.6336633663, 0.4663366337, 0.7504950495, 0.5181818182, 0.7272727273,
                  0.6363636364, 0.4666666667, 0.75],
}  # fmt: skip


@pytest.fixture(autouse=True, params=["pycocotools", "faster"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """All that is said here is said of both backends."""
    for name, of_any in (("score", score), ("CocoEvaluator", CocoEvaluator)):
        monkeypatch.setattr(request.module, name, functools.partial(of_any, backend=request.param))
    return request.param


# pycocotools' decode, which only these tests call, is not written for numpy 2.
decodes_masks = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def shared(name: str) -> Any:
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"needs ../shared/{name}, which this checkout lacks")
    return json.loads(path.read_text())


def summary(numbers: dict[str, float], iou_type: IouType) -> list[float]:
    return [numbers[f"{iou_type}/{metric.name}"] for metric in METRICS[iou_type]]


def truth(*boxes: list[float], crowd: tuple[int, ...] = (), images: int = 1, classes: int = 1) -> dict[str, Any]:
    """Objects of class 1 (boxes xywh) in image 1, of 100 x 120 pixels (height x width)."""
    return {
        "images": [{"id": i, "height": 100, "width": 120} for i in range(1, images + 1)],
        "categories": [{"id": i, "name": f"class{i}"} for i in range(1, classes + 1)],
        "annotations": [
            {"id": i + 1, "image_id": 1, "category_id": 1, "bbox": box, "area": box[2] * box[3], "iscrowd": i in crowd}
            for i, box in enumerate(boxes)
        ],
    }


def detection(box_xywh: list[float], confidence: float = 0.9, **fields: Any) -> dict[str, Any]:
    return {"image_id": 1, "category_id": 1, "bbox": box_xywh, "score": confidence, **fields}


def ap(ground_truth: dict[str, Any], *detections: dict[str, Any]) -> float:
    return score(ground_truth, list(detections), "bbox")["bbox/AP"]


def exactly(value: float) -> Any:
    # pycocotools divides by (hits + misses + 2e-16), so 1 is 1 - 2e-16.
    return pytest.approx(value, abs=1e-12)


HERE, THERE, NOWHERE = [10.0, 10.0, 40.0, 40.0], [60.0, 50.0, 40.0, 40.0], [70.0, 0.0, 20.0, 20.0]


# The reference files


@pytest.mark.parametrize(
    ("iou_type", "ground_truth", "results"),
    [("bbox", INSTANCES, FAKE_BOXES), ("segm", INSTANCES, FAKE_MASKS), ("keypoints", KEYPOINTS, DETECTED_KEYPOINTS)],
)
def test_the_reference_files_give_the_numbers_that_coco_publishes(
    iou_type: IouType, ground_truth: str, results: str
) -> None:
    numbers = score(shared(ground_truth), shared(results), iou_type)
    assert summary(numbers, iou_type) == pytest.approx(REFERENCE[iou_type], abs=1e-9)


def test_a_box_beside_a_mask_does_not_change_the_numbers_for_masks() -> None:
    ground_truth, results = shared(INSTANCES), shared(FAKE_MASKS)
    for row in results:
        row["bbox"] = [0.0, 0.0, 1.0, 1.0]
    numbers = score(ground_truth, results, "segm")
    assert summary(numbers, "segm") == pytest.approx(REFERENCE["segm"], abs=1e-9)


def test_ap_is_the_mean_of_the_ap_by_class() -> None:
    numbers = score(shared(INSTANCES), shared(FAKE_BOXES), "bbox")
    by_class = [v for name, v in numbers.items() if name.startswith("bbox/AP/")]
    assert len(by_class) == 80
    assert sum(math.isnan(v) for v in by_class) == 10  # 70 of the 80 classes have objects
    assert np.nanmean(by_class) == pytest.approx(REFERENCE["bbox"][0], abs=1e-9)


def fed_as_tensors(ground_truth: dict[str, Any], results: list[dict[str, Any]], iou_type: IouType) -> CocoEvaluator:
    """An evaluator that was given a results file the way a model gives predictions: float32, image by image."""
    categories = ground_truth["categories"]
    ids = tuple(category["id"] for category in categories)
    class_map = ClassMap(tuple(category["name"] for category in categories), ids)
    evaluator = CocoEvaluator(ground_truth=ground_truth, class_map=class_map, iou_types=[iou_type])
    for image in ground_truth["images"]:
        rows = [row for row in results if row["image_id"] == image["id"]]
        xywh = (
            torch.tensor([row["bbox"] if iou_type == "bbox" else [0, 0, 1, 1] for row in rows]).float().reshape(-1, 4)
        )
        prediction: Prediction = {
            "boxes": torch.cat([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], dim=1),
            "labels": torch.tensor([ids.index(row["category_id"]) + 1 for row in rows], dtype=torch.int64),
            "scores": torch.tensor([row["score"] for row in rows], dtype=torch.float32),
        }
        if iou_type == "segm":
            masks = np.zeros((len(rows), 1, image["height"], image["width"]), dtype=np.float32)
            for mask, row in zip(masks, rows, strict=True):
                mask[0] = rle.decode(row["segmentation"]) * 0.8
            prediction["masks"] = torch.from_numpy(masks)
        if iou_type == "keypoints":
            prediction["keypoints"] = torch.tensor([row["keypoints"] for row in rows]).reshape(len(rows), -1, 3)
        evaluator.update([image["id"]], [prediction])
    return evaluator


@decodes_masks
@pytest.mark.parametrize(
    ("iou_type", "ground_truth", "results"),
    [("bbox", INSTANCES, FAKE_BOXES), ("segm", INSTANCES, FAKE_MASKS), ("keypoints", KEYPOINTS, DETECTED_KEYPOINTS)],
)
def test_the_evaluator_fed_with_tensors_gives_the_reference_numbers(
    iou_type: IouType, ground_truth: str, results: str
) -> None:
    evaluator = fed_as_tensors(shared(ground_truth), shared(results), iou_type)
    assert summary(evaluator.compute(), iou_type) == pytest.approx(REFERENCE[iou_type], abs=1e-3)


# Cases by hand


def test_a_perfect_detector_scores_one() -> None:
    assert ap(truth(HERE, THERE), detection(HERE), detection(THERE)) == exactly(1.0)


def test_annotation_ids_from_zero_change_nothing() -> None:
    ground_truth = truth(HERE, THERE)
    for number, annotation in enumerate(ground_truth["annotations"]):
        annotation["id"] = number
    assert ap(ground_truth, detection(HERE), detection(THERE)) == exactly(1.0)


def test_annotation_ids_that_stand_twice_or_are_missing_change_nothing() -> None:
    ground_truth = truth(HERE, THERE)
    ground_truth["annotations"][0]["id"] = 2
    assert ap(ground_truth, detection(HERE), detection(THERE)) == exactly(1.0)
    for annotation in ground_truth["annotations"]:
        del annotation["id"]
    assert ap(ground_truth, detection(HERE), detection(THERE)) == exactly(1.0)


def test_no_detections_score_zero() -> None:
    numbers = score(truth(HERE), [], "bbox")
    assert [numbers[f"bbox/{name}"] for name in ("AP", "AP50", "AP75", "APm", "AR100")] == [0.0] * 5
    assert math.isnan(numbers["bbox/APs"])  # no small object to be found


def test_a_class_without_ground_truth_is_left_out_of_the_mean() -> None:
    numbers = score(truth(HERE, classes=2), [detection(HERE), detection(THERE, category_id=2)], "bbox")
    assert numbers["bbox/AP"] == exactly(1.0)
    assert numbers["bbox/AP/class1"] == exactly(1.0)
    assert math.isnan(numbers["bbox/AP/class2"])


def test_one_class_has_no_ap_by_class() -> None:
    assert list(score(truth(HERE), [], "bbox")) == [f"bbox/{metric.name}" for metric in METRICS["bbox"]]


def test_one_of_two_objects_found_scores_51_of_101() -> None:
    assert ap(truth(HERE, THERE), detection(HERE)) == exactly(51 / 101)


def test_a_false_positive_costs_half_above_the_true_one_and_nothing_below_it() -> None:
    assert ap(truth(HERE), detection(HERE, 0.8), detection(NOWHERE, 0.9)) == exactly(0.5)
    assert ap(truth(HERE), detection(HERE, 0.8), detection(NOWHERE, 0.7)) == exactly(1.0)


def test_hit_miss_hit_on_two_objects_scores_0_834983() -> None:
    detections = [detection(HERE, 0.9), detection(NOWHERE, 0.8), detection(THERE, 0.7)]
    value = ap(truth(HERE, THERE), *detections)
    assert value == pytest.approx(0.834983, abs=5e-7)
    assert value == exactly((51 + 50 * 2 / 3) / 101)


def test_a_box_iou_of_0_72_passes_half_of_the_thresholds() -> None:
    numbers = score(truth([10, 10, 50, 50]), [detection([10, 10, 50, 36])], "bbox")
    assert [numbers[f"bbox/{name}"] for name in ("AP", "AP50", "AP75")] == [exactly(0.5), exactly(1.0), 0.0]


def test_a_duplicate_below_the_true_positive_costs_nothing() -> None:
    assert ap(truth(HERE), detection(HERE, 0.9), detection(HERE, 0.8)) == exactly(1.0)


def test_detections_inside_a_crowd_region_are_no_false_positives() -> None:
    inside = [detection([62, 52, 5, 9], 0.99), detection([80, 60, 10, 10], 0.98)]
    assert ap(truth(HERE, THERE, crowd=(1,)), detection(HERE), *inside) == exactly(1.0)
    assert ap(truth(HERE), detection(HERE), *inside) < 0.5  # the same detections without the crowd


def test_an_area_just_below_the_bound_stays_small() -> None:
    ground_truth = truth([10, 10, 32, 32])
    ground_truth["annotations"][0]["area"] = 1023.99999  # float32 would round it up to 1024, medium too
    numbers = score(ground_truth, [detection([10, 10, 32, 32])], "bbox")
    assert numbers["bbox/APs"] == exactly(1.0)
    assert math.isnan(numbers["bbox/APm"])


# What files leave out, and what is empty


def test_objects_without_area_crowd_flag_or_info_are_scored() -> None:
    ground_truth = truth(HERE)
    del ground_truth["annotations"][0]["area"], ground_truth["annotations"][0]["iscrowd"]
    numbers = score(ground_truth, [detection(HERE)], "bbox")
    assert numbers["bbox/AP"] == numbers["bbox/APm"] == exactly(1.0)


@pytest.mark.parametrize("iou_type", ["bbox", "segm", "keypoints"])
@pytest.mark.parametrize("emptied", [(), ("annotations",), ("annotations", "images"), tuple(truth())])
def test_without_ground_truth_every_number_is_nan(iou_type: IouType, emptied: tuple[str, ...]) -> None:
    ground_truth = truth(classes=2)
    for part in emptied:
        ground_truth[part] = []
    numbers = score(ground_truth, [], iou_type)
    assert [f"{iou_type}/{metric.name}" for metric in METRICS[iou_type]] == list(numbers)[: len(METRICS[iou_type])]
    assert all(math.isnan(value) for value in numbers.values())


def test_detections_without_ground_truth_are_nan_too() -> None:
    assert math.isnan(ap(truth(), detection(HERE)))


def test_objects_of_images_that_are_not_listed_are_left_out() -> None:
    ground_truth = truth(HERE, THERE)
    ground_truth["annotations"][1]["image_id"] = 7
    assert ap(ground_truth, detection(HERE)) == exactly(1.0)


def polygon(box_xywh: list[float]) -> list[list[float]]:
    x, y, w, h = box_xywh
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def test_polygons_and_both_kinds_of_run_lengths_score_alike() -> None:
    mask = np.zeros((100, 120), dtype=np.uint8, order="F")
    mask[10:50, 10:50] = 1
    compressed = rle.encode(mask)
    columns = [10 * 100 + 10] + [40, 60] * 39 + [40, 100 * 120 - 49 * 100 - 50]
    forms = [polygon(HERE), {"size": [100, 120], "counts": columns}, {**compressed, "counts": compressed["counts"]}]
    for expected in forms:
        for found in forms:
            ground_truth = truth(HERE)
            ground_truth["annotations"][0]["segmentation"] = expected
            del ground_truth["annotations"][0]["area"]
            numbers = score(ground_truth, [{**detection(NOWHERE), "segmentation": found}], "segm")
            assert numbers["segm/AP"] == numbers["segm/APm"] == exactly(1.0)


def test_run_lengths_are_read_back_as_they_were_written() -> None:
    runs = [0, 3, 7000, 1, 17, 900, 2, 900, 12000 - 8823]
    uncompressed: Any = {"size": [100, 120], "counts": runs}
    compressed: Any = rle.frPyObjects(uncompressed, 100, 120)
    assert run_lengths(compressed["counts"]).tolist() == runs
    assert run_lengths(compressed["counts"].decode()).tolist() == runs


# Keypoints


def pose(points: int, x: float = 20.0) -> list[float]:
    return [v for p in range(points) for v in (x + p, 30.0 + 2 * p, 2)]


def posed_truth(points: int) -> dict[str, Any]:
    ground_truth = truth(HERE)
    ground_truth["annotations"][0]["keypoints"] = pose(points)
    return ground_truth


def test_num_keypoints_is_counted_where_it_is_missing() -> None:
    ground_truth = posed_truth(17)
    assert score(ground_truth, [detection(HERE, keypoints=pose(17))], "keypoints")["keypoints/AP"] == exactly(1.0)
    ground_truth["annotations"][0]["keypoints"] = [0] * 51  # none labelled: nothing to measure
    assert math.isnan(score(ground_truth, [], "keypoints")["keypoints/AP"])


def test_five_keypoints_are_scored_with_five_sigmas() -> None:
    # The distance d = 2 of each point gives exp(-d^2 / (2 s^2 k^2)), s^2 = area = 1600 and k = 2 sigma
    # (https://cocodataset.org/#keypoints-eval): 0.82 for sigma 0.04, which passes 0.50 to 0.80, 7 of 10 thresholds.
    found = [detection(HERE, keypoints=pose(5, 22.0))]
    numbers = score(posed_truth(5), found, "keypoints", sigmas=[0.04] * 5)
    assert 0.80 < math.exp(-(2**2) / (2 * 1600 * 0.08**2)) < 0.85
    assert numbers["keypoints/AP"] == exactly(0.7)


def test_objects_without_keypoints_are_neither_found_nor_missed() -> None:
    ground_truth = truth(HERE, THERE)
    ground_truth["annotations"][0]["keypoints"] = pose(17)
    numbers = score(ground_truth, [detection(HERE, keypoints=pose(17))], "keypoints")
    assert numbers["keypoints/AP"] == exactly(1.0)


@pytest.mark.parametrize("sigmas", [None, [0.05] * 4])
def test_sigmas_that_are_not_as_many_as_keypoints_are_refused(sigmas: list[float] | None) -> None:
    with pytest.raises(UserError, match=r"hold 15 numbers, but the \d+ sigmas"):
        score(posed_truth(5), [], "keypoints", sigmas=sigmas)


@pytest.mark.parametrize("sigmas", [[], [0.0], [math.nan], [-0.1]])
def test_sigmas_that_are_not_above_zero_are_refused(sigmas: list[float]) -> None:
    with pytest.raises(UserError, match="keypoint sigmas"):
        score(truth(), [], "keypoints", sigmas=sigmas)


def test_keypoints_cannot_be_scored_on_boxes_alone() -> None:
    with pytest.raises(UserError, match="no object has keypoints"):
        score(truth(HERE), [], "keypoints")


# Wrong input


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"image_id": 1, "category_id": 1, "score": 0.5}, r"row 1 \(image 1\) lacks bbox"),
        ({"category_id": 1, "bbox": HERE}, "row 1 lacks image_id, score"),
        (detection([1, 2, math.nan, 4]), r"row 1 \(image 1\) has a bbox that is not finite"),
        (detection([1, 2, 3]), "expected a list of 4 numbers"),
        (detection(HERE, math.nan), r"row 1 \(image 1\) has a score that is not finite"),
        (detection(HERE, "high"), "has a score that is"),  # pyright: ignore[reportArgumentType]
        (detection(HERE, category_id=9), r"row 1 \(image 1\) has category_id 9"),
        (detection(HERE, category_id=[1]), "is no number"),
        (detection(HERE, image_id=77), "not in the ground truth: 77"),
        ([1, 2], "row 1 is no object"),
    ],
)
def test_a_row_that_cannot_be_scored_is_named(row: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        score(truth(HERE), [detection(HERE), row], "bbox")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"category_id": 5}, r"annotations\[0\] \(image 1\) has category_id 5"),
        ({"bbox": None}, r"annotations\[0\] \(image 1\) has a bbox"),
        ({"bbox": [0, 0, math.inf, 1]}, "not finite"),
        ({"area": math.nan}, "has area nan"),
    ],
)
def test_an_object_that_cannot_be_scored_is_named(change: dict[str, Any], said: str) -> None:
    ground_truth = truth(HERE)
    ground_truth["annotations"][0] |= change
    with pytest.raises(UserError, match=said):
        score(ground_truth, [], "bbox")


@pytest.mark.parametrize("part", ["images", "annotations", "categories"])
def test_a_ground_truth_without_one_of_its_lists_is_refused(part: str) -> None:
    ground_truth = truth(HERE)
    del ground_truth[part]
    with pytest.raises(UserError, match=f"no list '{part}'"):
        score(ground_truth, [], "bbox")


def test_two_classes_of_one_name_are_refused() -> None:
    ground_truth = truth(HERE, classes=2)
    ground_truth["categories"][1]["name"] = "class1"
    with pytest.raises(UserError, match="two categories are called 'class1'"):
        score(ground_truth, [], "bbox")


@pytest.mark.parametrize(
    ("segmentation", "said"),
    [
        ({"size": [120, 100], "counts": [0, 12000]}, r"has size \[120, 100\] in an image of \[100, 120\]"),
        ([], "neither polygons nor run lengths"),
        ([[1, 2, math.nan, 4, 5, 6]], "a polygon is not finite"),
        ("mask.png", "neither polygons nor run lengths"),
        ({"counts": [0, 12000]}, "neither polygons nor run lengths"),
        ({"size": [100, 120], "counts": 5}, "expected run lengths"),
        ({"size": [100, 120], "counts": ""}, "no compressed run lengths"),
        ({"size": [100, 120], "counts": "zzzz"}, "no compressed run lengths"),
        ({"size": [100, 120], "counts": [0, 11999]}, "cover 11999 of 12000 pixels"),  # pycocotools hangs on these two
        ({"size": [100, 120], "counts": [0, 10**7]}, "cover 10000000 of"),
    ],
)
def test_a_mask_that_cannot_be_read_is_named(segmentation: Any, said: str) -> None:
    ground_truth = truth(HERE)
    ground_truth["annotations"][0]["segmentation"] = polygon(HERE)
    with pytest.raises(UserError, match=f"results: image 1 .*{said}"):
        score(ground_truth, [detection(HERE, segmentation=segmentation)], "segm")


# The evaluator


def prediction(*boxes_xyxy: list[float], labels: list[int] | None = None) -> Prediction:
    return {
        "boxes": torch.tensor(boxes_xyxy, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels or [1] * len(boxes_xyxy), dtype=torch.int64),
        "scores": torch.linspace(0.9, 0.8, len(boxes_xyxy)),
    }


def masked(box_xyxy: list[int], *, probability: float) -> Prediction:
    x0, y0, x1, y1 = box_xyxy
    masks = torch.zeros(1, 1, 100, 120)
    masks[0, 0, y0:y1, x0:x1] = probability
    return {**prediction([float(v) for v in box_xyxy]), "masks": masks}


def evaluator_of(ground_truth: dict[str, Any], *iou_types: IouType, sigmas: list[float] | None = None) -> CocoEvaluator:
    names = tuple(category["name"] for category in ground_truth["categories"])
    ids = tuple(category["id"] for category in ground_truth["categories"])
    class_map = ClassMap(names, ids)
    return CocoEvaluator(ground_truth=ground_truth, class_map=class_map, iou_types=iou_types, keypoint_sigmas=sigmas)


def test_boxes_and_masks_are_scored_together() -> None:
    ground_truth = truth(HERE)
    ground_truth["annotations"][0]["segmentation"] = polygon(HERE)
    evaluator = evaluator_of(ground_truth, "bbox", "segm")
    evaluator.update([1], [masked([10, 10, 50, 50], probability=0.6)])
    numbers = evaluator.compute()
    assert numbers["bbox/AP"] == numbers["segm/AP"] == exactly(1.0)
    assert len(numbers) == 24
    evaluator.reset()
    evaluator.update([1], [masked([10, 10, 50, 50], probability=0.4)])
    assert evaluator.compute()["segm/AP"] == 0.0


def test_computing_twice_gives_the_same_and_leaves_the_ground_truth_alone() -> None:
    ground_truth = truth(HERE, THERE, crowd=(1,), classes=2)
    for annotation in ground_truth["annotations"]:
        annotation["segmentation"] = polygon(annotation["bbox"])
    before = copy.deepcopy(ground_truth)
    evaluator = evaluator_of(ground_truth, "bbox", "segm")
    evaluator.update([1], [masked([10, 10, 50, 40], probability=0.9)])
    rows = copy.deepcopy(evaluator.results())
    first, second = evaluator.compute(), evaluator.compute()
    assert first == pytest.approx(second, abs=0, nan_ok=True)
    assert ground_truth == before
    assert evaluator.results() == rows


def test_the_callers_results_are_not_changed() -> None:
    results = [detection(HERE)]
    before = copy.deepcopy(results)
    score(truth(HERE), results, "bbox")
    assert results == before


@decodes_masks
def test_results_are_plain_numbers_with_the_files_own_category_ids() -> None:
    ground_truth = truth(images=2, classes=2)
    ground_truth["categories"] = [{"id": 90, "name": "b"}, {"id": 7, "name": "a"}]
    evaluator = evaluator_of(ground_truth, "bbox", "segm", "keypoints", sigmas=[0.1])
    keypoints = torch.tensor([[[20.0, 30.0, 1.0]]])
    first: Prediction = {**masked([10, 20, 50, 80], probability=0.9), "keypoints": keypoints}
    first["labels"] = torch.tensor([2])
    nothing: Prediction = {**prediction(), "masks": torch.zeros(0, 1, 100, 120), "keypoints": torch.zeros(0, 1, 3)}
    evaluator.update([2, 1], [first, nothing])
    rows = json.loads(json.dumps(evaluator.results(), allow_nan=False))
    assert rows == evaluator.results()
    assert rows == [
        {
            "image_id": 2,
            "category_id": 7,
            "bbox": [10.0, 20.0, 40.0, 60.0],
            "score": pytest.approx(0.9),
            "segmentation": {"size": [100, 120], "counts": rows[0]["segmentation"]["counts"]},
            "keypoints": [20.0, 30.0, 1.0],
        }
    ]
    assert rle.decode(rows[0]["segmentation"])[20:80, 10:50].sum() == rle.area(rows[0]["segmentation"]) == 40 * 60


def test_the_order_in_which_images_come_changes_nothing() -> None:
    ground_truth = truth(HERE, images=3)
    ground_truth["annotations"].append({**ground_truth["annotations"][0], "image_id": 3})
    there, back = evaluator_of(ground_truth, "bbox"), evaluator_of(ground_truth, "bbox")
    predictions = {1: prediction([10, 10, 50, 45]), 2: prediction(), 3: prediction([60, 0, 90, 30])}
    there.update(list(predictions), list(predictions.values()))
    for image_id in (3, 2, 1):
        back.update([image_id], [predictions[image_id]])
    assert there.results() == back.results()
    assert there.compute() == pytest.approx(back.compute(), abs=0, nan_ok=True)


def test_an_image_that_was_never_evaluated_counts_as_missed() -> None:
    ground_truth = truth(HERE, images=2)
    ground_truth["annotations"].append({**ground_truth["annotations"][0], "image_id": 2})
    evaluator = evaluator_of(ground_truth, "bbox")
    evaluator.update([1], [prediction([10, 10, 50, 50])])
    assert evaluator.compute()["bbox/AP"] == exactly(51 / 101)


def test_an_evaluator_without_predictions_scores_zero_and_forgets_on_reset() -> None:
    evaluator = evaluator_of(truth(HERE), "bbox")
    assert evaluator.compute()["bbox/AP"] == 0.0
    evaluator.update([1], [prediction([10, 10, 50, 50])])
    assert evaluator.compute()["bbox/AP"] == exactly(1.0)
    evaluator.reset()
    assert evaluator.results() == []
    assert evaluator.compute()["bbox/AP"] == 0.0


@pytest.mark.parametrize("iou_type", ["bbox", "segm", "keypoints"])
def test_an_evaluator_that_was_given_nothing_or_empty_predictions_scores_zero(iou_type: IouType) -> None:
    ground_truth = posed_truth(5)
    ground_truth["annotations"][0]["segmentation"] = polygon(HERE)
    evaluator = evaluator_of(ground_truth, iou_type, sigmas=[0.1] * 5)
    assert evaluator.compute()[f"{iou_type}/AP"] == 0.0
    nothing: Prediction = {**prediction(), "masks": torch.zeros(0, 1, 100, 120), "keypoints": torch.zeros(0, 5, 3)}
    evaluator.update([1], [nothing])
    assert evaluator.compute()[f"{iou_type}/AP"] == 0.0
    assert evaluator.results() == []


def test_an_evaluator_keeps_what_it_was_given_when_the_tensors_change() -> None:
    evaluator = evaluator_of(truth(HERE), "bbox")
    given = prediction([10, 10, 50, 50])
    evaluator.update([1], [given])
    rows = evaluator.results()
    for values in (given["boxes"], given["labels"], given["scores"]):
        values.zero_()
    assert evaluator.results() == rows


def test_an_image_evaluated_twice_or_unknown_is_refused() -> None:
    evaluator = evaluator_of(truth(HERE), "bbox")
    evaluator.update([1], [prediction()])
    with pytest.raises(ValueError, match="image 1 was evaluated twice"):
        evaluator.update([1], [prediction()])
    with pytest.raises(ValueError, match="image 5 is not in the ground truth"):
        evaluator.update([5], [prediction()])


@pytest.mark.parametrize("label", [0, 2, -1])
def test_a_predicted_label_outside_the_class_map_is_refused(label: int) -> None:
    with pytest.raises(ValueError, match=rf"image 1: predicted label {label} is outside 1\.\.1"):
        evaluator_of(truth(HERE), "bbox").update([1], [prediction([1, 2, 3, 4], labels=[label])])


@pytest.mark.parametrize(("iou_type", "said"), [("segm", "no masks"), ("keypoints", "has none")])
def test_a_prediction_that_lacks_what_is_scored_is_refused(iou_type: IouType, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        evaluator_of(truth(HERE), iou_type).update([1], [prediction([1, 2, 3, 4])])


def test_predicted_keypoints_are_scored_with_the_evaluators_sigmas() -> None:
    # As in `test_five_keypoints_are_scored_with_five_sigmas`: of a point that is 2 pixels off the similarity is 0.82.
    evaluator = evaluator_of(posed_truth(5), "bbox", "keypoints", sigmas=[0.04] * 5)
    points = torch.tensor(pose(5, 22.0)).reshape(1, 5, 3)
    evaluator.update([1], [{**prediction([10, 10, 50, 50]), "keypoints": points}])
    numbers = evaluator.compute()
    assert numbers["keypoints/AP"] == exactly(0.7)
    assert len([name for name in numbers if name.startswith("keypoints/")]) == 10


@pytest.mark.parametrize(("sigmas", "expected"), [([0.04] * 5, 5), (None, 17)])
def test_a_model_that_predicts_another_number_of_keypoints_is_refused(
    sigmas: list[float] | None, expected: int
) -> None:
    evaluator = evaluator_of(posed_truth(5), "keypoints", sigmas=sigmas)
    with pytest.raises(
        UserError, match=f"^model: it predicts 6 keypoints of an object, but the data set has {expected}"
    ):
        evaluator.update([1], [{**prediction(), "keypoints": torch.zeros(0, 6, 3)}])


def test_an_evaluator_refuses_unknown_types_and_foreign_classes() -> None:
    with pytest.raises(ValueError, match="iou_types"):
        evaluator_of(truth(HERE), "boxes")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="category ids"):
        CocoEvaluator(ground_truth=truth(HERE), class_map=ClassMap(("a", "b")), iou_types=["bbox"])


def test_scoring_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    score(truth(HERE), [detection(HERE)], "bbox")
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("field", ["boxes", "scores"])
def test_predictions_that_are_not_finite_are_named_as_rows_are(field: str) -> None:
    evaluator = evaluator_of(truth(HERE, images=2), "bbox")
    damaged = prediction([10, 10, 50, 50], [20, 20, 30, 30])
    damaged[field][1] = math.nan
    evaluator.update([1, 2], [prediction([10, 10, 50, 50]), damaged])
    with pytest.raises(UserError, match=r"results: row 2 \(image 2\) has a .* that is not finite"):
        evaluator.compute()


def test_predicted_masks_of_another_size_than_the_image_are_named() -> None:
    ground_truth = truth(HERE)
    ground_truth["annotations"][0]["segmentation"] = polygon(HERE)
    evaluator = evaluator_of(ground_truth, "segm")
    evaluator.update([1], [{**prediction([10, 10, 50, 50]), "masks": torch.ones(1, 1, 50, 60)}])
    said = r"image 1 has a mask that has size \[50, 60\] in an image of \[100, 120\]"
    with pytest.raises(UserError, match=said):
        evaluator.compute()


def test_a_ground_truth_that_cannot_be_scored_is_named_by_compute() -> None:
    ground_truth = truth(HERE)
    ground_truth["annotations"][0]["area"] = math.nan
    with pytest.raises(UserError, match="has area nan"):
        evaluator_of(ground_truth, "bbox").compute()


def test_what_an_evaluator_holds_can_be_sent_to_another_process() -> None:
    ground_truth = truth(HERE)
    ground_truth["annotations"][0]["segmentation"] = polygon(HERE)
    here, there = evaluator_of(ground_truth, "bbox", "segm"), evaluator_of(ground_truth, "bbox", "segm")
    here.update([1], [masked([10, 10, 50, 50], probability=0.6)])
    there.merge(pickle.loads(pickle.dumps(here.held())))
    assert there.results() == here.results()
    assert there.compute() == pytest.approx(here.compute(), abs=0, nan_ok=True)
    with pytest.raises(ValueError, match=r"images \[1\] were evaluated twice"):
        there.merge(here.held())


def test_masks_in_their_boxes_are_scored_as_pasted_ones() -> None:
    from torchvision.models.detection.roi_heads import paste_masks_in_image

    generator = torch.Generator().manual_seed(0)
    boxes = torch.tensor([[5.0, 5.0, 40.0, 30.0], [50.0, 10.0, 80.0, 58.0]])
    probabilities = torch.rand(2, 1, 28, 28, generator=generator)
    common = {"boxes": boxes, "labels": torch.tensor([1, 1]), "scores": torch.tensor([0.9, 0.8])}
    pasted = paste_masks_in_image(probabilities, boxes, (60, 90))
    whole = prediction_to_results(1, {**common, "masks": pasted}, ClassMap(("a",)), ("bbox", "segm"))  # pyright: ignore
    in_boxes = {**common, "masks_in_boxes": probabilities, "image_size": (60, 90)}
    assert prediction_to_results(1, in_boxes, ClassMap(("a",)), ("bbox", "segm")) == whole  # pyright: ignore
