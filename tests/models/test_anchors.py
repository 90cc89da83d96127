"""Anchors: their reach is that of torchvision's own anchors laid out in full, and proposals fit the detector."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torchvision.models.detection import fcos_resnet50_fpn, ssdlite320_mobilenet_v3_large
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import box_iou

from detlab.config import build
from detlab.models.anchors import (
    LARGEST_CHANGE,
    AnchorModel,
    Anchors,
    Floats,
    Grids,
    anchor_model,
    best_iou,
    grids,
    merit,
    propose,
    reach,
    resized,
    thresholds_of,
)
from detlab.models.weights import settle

Composed = Callable[..., DictConfig]
pytestmark = pytest.mark.usefixtures("torchvision_offline")

SMALL = ("image_size.min=96", "image_size.max=200")
# A pyramid whose last map has no whole stride, one map, and torchvision's own model with nine anchors a cell.
MODELS = (
    ("model=fasterrcnn", "model.backbone.name=resnet18", *SMALL),
    ("model=mobilenet", "model.enlarge_to=130", *SMALL),
    ("model=retinanet", *SMALL),
)
# Height and width; resized they end between, at and just above multiples of 32.
IMAGES = ((60, 80), (81, 60), (96, 96), (33, 150), (100, 105))


def model_of(composed: Composed, *overrides: str) -> nn.Module:
    cfg = composed(*overrides)
    settle(cfg.model)
    return build(cfg.model, group="model", num_classes=2, num_keypoints=None)


def parts_of(model: nn.Module) -> AnchorModel:
    found = anchor_model(model)
    assert found is not None
    return found


def random_boxes(sizes: np.ndarray, count: int) -> tuple[Floats, np.ndarray]:
    """Boxes of all sizes and shapes in images of these sizes, and their images."""
    random = np.random.default_rng(0)
    image_of = np.repeat(np.arange(len(sizes)), count)
    corners = np.sort(random.random((len(image_of), 2, 2)), axis=1) * sizes[image_of][:, None, ::-1]
    boxes = corners.reshape(-1, 4)
    boxes[:, 2:] += 1
    return boxes, image_of


def laid_out(model: Any, image: Tensor) -> Tensor:
    """All anchors that the detector itself makes for an image, `[A, 4]`."""
    images: ImageList = model.transform([image])[0]
    features = model.backbone(images.tensors)
    features = [features] if isinstance(features, Tensor) else list(features.values())
    generator = model.rpn.anchor_generator if hasattr(model, "rpn") else model.anchor_generator
    return generator(images, features)[0]


@pytest.mark.parametrize("overrides", MODELS, ids=lambda overrides: overrides[0])
def test_the_best_overlap_is_that_with_every_anchor_that_torchvision_lays_out(
    composed: Composed, overrides: tuple[str, ...]
) -> None:
    model = model_of(composed, *overrides).eval()
    found = parts_of(model)
    sizes = resized(np.array(IMAGES), found.transform)
    boxes, image_of = random_boxes(sizes, 40)
    laid = grids(found.backbone, sizes, divisor=found.transform.size_divisible)
    ious = best_iou(boxes, image_of, laid, found.anchors.cells())
    with torch.no_grad():
        for i, size in enumerate(IMAGES):
            anchors = laid_out(model, torch.zeros(3, *size))
            expected = box_iou(torch.from_numpy(boxes[image_of == i]).float(), anchors).max(1).values
            assert ious[image_of == i] == pytest.approx(expected.numpy(), abs=1e-5)
    assert 0 < ious.min() < 0.3
    assert ious.max() > 0.7


def test_a_last_map_without_a_whole_stride_is_met_in_these_tests(composed: Composed) -> None:
    found = parts_of(model_of(composed, *MODELS[0]))
    laid = grids(found.backbone, resized(np.array(IMAGES), found.transform), divisor=32)
    assert laid.cells.shape == laid.strides.shape == (len(IMAGES), 5, 2)
    assert {16, 32, 48, 64} & set(laid.strides[:, 4].ravel().tolist()) > {48}
    assert set(laid.strides[:, 0].ravel().tolist()) == {4}


def test_finding_the_grids_leaves_the_model_as_it_was(composed: Composed) -> None:
    model = model_of(composed, *MODELS[0]).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    grids(parts_of(model).backbone, np.array([[64, 96]]), divisor=32)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    "settings", [{"min_size": 96, "max_size": 160}, {"min_size": (64, 97), "max_size": 333}, {"fixed_size": (70, 50)}]
)
def test_resized_sizes_are_those_of_torchvisions_resize(settings: dict[str, Any]) -> None:
    defaults: dict[str, Any] = {"min_size": 1, "max_size": 1, "image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    transform = GeneralizedRCNNTransform(**{**defaults, **settings}).eval()
    sizes = np.random.default_rng(0).integers(20, 400, (60, 2))
    expected = [list(transform.resize(torch.zeros(3, *size))[0].shape[1:]) for size in sizes.tolist()]
    assert resized(sizes, transform).tolist() == expected


def test_what_has_no_anchors_matched_by_overlap_is_told_apart(composed: Composed) -> None:
    nothing: dict[str, Any] = {"weights": None, "weights_backbone": None}
    for model in (
        nn.Linear(1, 1),
        fcos_resnet50_fpn(**nothing),
        ssdlite320_mobilenet_v3_large(**nothing),
    ):
        assert anchor_model(model) is None
    found = parts_of(model_of(composed, *MODELS[0], "model.rpn_fg_iou_thresh=0.6"))
    assert found.fg_iou_thresh == 0.6
    assert found.anchors.sizes == ((32,), (64,), (128,), (256,), (512,))
    assert thresholds_of(found.fg_iou_thresh) == (0.5, 0.6)
    assert thresholds_of(0.5) == (0.5,)


def test_recall_is_the_part_of_the_boxes_that_reach_a_threshold() -> None:
    found = reach(np.array([0.2, 0.5, 0.7, 1.0]), (0.5, 0.7))
    assert (found.objects, found.recall, found.mean_iou) == (4, (0.75, 0.5), 0.6)
    none = reach(np.zeros(0), (0.5, 0.7))
    assert none.objects == 0
    assert np.isnan([*none.recall, none.mean_iou]).all()


def grid_of_one_map(stride: int, cells: int, levels: int) -> Grids:
    """One image with as many equal maps."""
    shape = (1, levels, 2)
    return Grids(np.full(shape, cells), np.full(shape, stride))


def boxes_like(sizes: list[float], ratios: list[float]) -> Floats:
    """Boxes of these shapes around many centres of one image."""
    random = np.random.default_rng(1)
    shapes = np.array([(s / r**0.5, s * r**0.5) for s, r in itertools.product(sizes, ratios)])
    shapes = np.repeat(shapes, 20, 0) * random.uniform(0.97, 1.03, (20 * len(shapes), 2))
    centres = random.uniform(100, 400, shapes.shape)
    return np.concatenate((centres - shapes / 2, centres + shapes / 2), 1)


@pytest.mark.parametrize(
    ("sizes", "ratios", "wanted"),
    [
        (((32, 64, 128),), ((0.5, 1.0, 2.0),), ([20, 45, 100], [0.8, 2.2, 4.5])),
        (((32,), (64,), (128,)), ((0.5, 1.0, 2.0),) * 3, ([25, 75, 200], [1.0, 1.8, 3.2])),
    ],
    ids=["one map", "three maps"],
)
def test_a_proposal_finds_anchors_that_fit_and_keeps_the_structure(
    sizes: Any, ratios: Any, wanted: tuple[list[float], list[float]]
) -> None:
    boxes, laid = boxes_like(*wanted), grid_of_one_map(4, 128, len(sizes))
    image_of, configured = np.zeros(len(boxes), np.int64), Anchors(sizes, ratios)
    proposal = propose(boxes, image_of, laid, configured, (0.5, 0.7))
    assert [len(level) for level in proposal.sizes] == [len(level) for level in sizes]
    assert [len(level) for level in proposal.aspect_ratios] == [len(level) for level in ratios]
    assert len(set(proposal.aspect_ratios)) == 1
    for old, new in zip(sizes, proposal.sizes, strict=True):
        assert min(old) / LARGEST_CHANGE <= min(new)
        assert max(new) <= max(old) * LARGEST_CHANGE
        assert all(isinstance(size, int) for size in new)
    flat = [size for level in proposal.sizes for size in level]
    assert flat == sorted(flat)
    each = [[size] for size in wanted[0]] if len(sizes) > 1 else [wanted[0]]
    made_of: Any = Anchors(tuple(map(tuple, each)), (tuple(wanted[1]),) * len(each))
    before, after, known = (
        reach(best_iou(boxes, image_of, laid, a.cells()), (0.5, 0.7)) for a in (configured, proposal, made_of)
    )
    assert before.recall[1] < 0.4
    assert known.recall[1] > 0.9
    assert after.recall == pytest.approx(known.recall, abs=0.02)
    assert flat == pytest.approx(wanted[0], rel=0.1)
    assert proposal == propose(boxes, image_of, laid, configured, (0.5, 0.7))


def test_a_proposal_is_never_worse_on_what_it_was_searched_for() -> None:
    boxes = boxes_like([32, 64], [0.5, 1, 2])
    laid, image_of = grid_of_one_map(4, 128, 1), np.zeros(len(boxes), np.int64)
    configured = Anchors(((32, 64),), ((0.5, 1.0, 2.0),))
    proposal = propose(boxes, image_of, laid, configured, (0.5, 0.7))
    before, after = (
        merit(reach(best_iou(boxes, image_of, laid, a.cells()), (0.5, 0.7))) for a in (configured, proposal)
    )
    assert before > 0.9
    assert before <= after < before + 0.05


def test_sizes_stay_within_a_factor_of_those_of_their_map_and_rise_from_map_to_map() -> None:
    boxes = boxes_like([200], [1.0])
    laid, image_of = grid_of_one_map(4, 128, 3), np.zeros(len(boxes), np.int64)
    proposal = propose(boxes, image_of, laid, Anchors(((8,), (16,), (64,)), ((1.0,),) * 3), (0.5, 0.7))
    assert proposal.sizes[0][0] <= 32
    assert proposal.sizes[1][0] <= 64
    assert proposal.sizes[2][0] == pytest.approx(200, rel=0.05)


def test_without_boxes_the_proposal_is_what_was_configured() -> None:
    configured = Anchors(((32,),), ((1.0,),))
    nothing: Floats = np.zeros((0, 4))
    assert propose(nothing, np.zeros(0, np.int64), grid_of_one_map(4, 8, 1), configured, (0.5,)) is configured
