"""Keypoint R-CNN: torchvision's modules and names, any number of points, on data sets that have some."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from torchvision.models.detection import keypointrcnn_resnet50_fpn

from detlab import parts
from detlab.config import build, rule_fault
from detlab.engine import Device
from detlab.errors import UserError
from detlab.models.detectors import wrapped
from detlab.models.weights import check_frozen, settle
from detlab.structures import ClassMap, learnable_iou_types

Composed = Callable[..., DictConfig]
SMALL = (
    "image_size.min=64",
    "image_size.max=64",
    "model.backbone.name=mobilenet_v3_small",
    "model.keypoint_layers=[16,16]",
)

pytestmark = pytest.mark.usefixtures("torchvision_offline")


def model_of(composed: Composed, *overrides: str, points: int | None) -> Any:
    cfg = composed(*overrides)
    settle(cfg.model)
    return build(cfg.model, group="model", num_classes=3, num_keypoints=points)


def batch(points: int, objects: int = 2) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """An image with `objects` objects, whose points lie on a diagonal, and one without any."""
    along = torch.linspace(10, 50, points)
    one = torch.stack([along, along, torch.full_like(along, 2)], 1)
    boxes = torch.tensor([[4.0, 4, 60, 60]]).expand(objects, 4)
    full = {"boxes": boxes, "labels": torch.ones(objects).long(), "keypoints": one.expand(objects, points, 3)}
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long(), "keypoints": torch.zeros(0, points, 3)}
    return [torch.rand(3, 64, 64) for _ in range(2)], [full, empty]


@pytest.mark.parametrize("points", [17, 5])
def test_names_and_shapes_are_torchvisions(composed: Composed, points: int) -> None:
    with torch.device("meta"):
        ours = model_of(composed, "model=keypointrcnn", points=points).state_dict()
        theirs = keypointrcnn_resnet50_fpn(
            weights=None, weights_backbone=None, num_classes=3, num_keypoints=points
        ).state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}


def test_pools_are_those_that_torchvisions_coco_weights_were_trained_with(composed: Composed) -> None:
    with torch.device("meta"):
        ours = model_of(composed, "model=keypointrcnn", points=17).roi_heads
        theirs: Any = keypointrcnn_resnet50_fpn(weights=None, weights_backbone=None).roi_heads
    assert not ours.has_mask()
    for pool in ("box_roi_pool", "keypoint_roi_pool"):
        mine, plain = getattr(ours, pool), getattr(theirs, pool)
        settings = ("featmap_names", "output_size", "sampling_ratio", "canonical_scale", "canonical_level")
        assert [getattr(mine, key) for key in settings] == [getattr(plain, key) for key in settings]


@pytest.mark.parametrize("points", [1, 5, 17])
def test_it_trains_a_step_and_predicts_as_many_points_as_the_data_set_has(composed: Composed, points: int) -> None:
    torch.manual_seed(0)
    model = model_of(composed, "model=keypointrcnn_mobilenet", *SMALL, "model.box_score_thresh=0", points=points)
    assert model.iou_types == ("bbox", "keypoints")
    images, targets = batch(points)
    losses = model(images, targets)
    assert set(losses) == {"loss_classifier", "loss_box_reg", "loss_keypoint", "loss_objectness", "loss_rpn_box_reg"}
    # An even guess over the 56 x 56 places of a region.
    assert float(losses["loss_keypoint"].detach()) == pytest.approx(math.log(56 * 56), abs=0.05)
    before = model.roi_heads.keypoint_predictor.kps_score_lowres.weight.detach().clone()
    torch.stack(list(losses.values())).sum().backward()
    torch.optim.SGD(model.parameters(), lr=1e-2).step()
    assert not torch.equal(before, model.roi_heads.keypoint_predictor.kps_score_lowres.weight)
    with torch.no_grad():
        prediction = model.eval()([torch.rand(3, 128, 100)])[0]  # resized to 64 pixels, and back
    count = len(prediction["labels"])
    assert count > 0
    assert prediction["keypoints"].shape == (count, points, 3)
    assert prediction["keypoints_scores"].shape == (count, points)
    x, y, visibility = prediction["keypoints"].unbind(2)
    x0, y0, x1, y1 = (edge[:, None] for edge in prediction["boxes"].unbind(1))
    assert ((x0 - 2 <= x) & (x <= x1 + 2) & (y0 - 2 <= y) & (y <= y1 + 2)).all()
    assert (visibility == 1).all()
    check_frozen(model, "none")


def test_no_detections_have_no_keypoints(composed: Composed) -> None:
    model = model_of(composed, "model=keypointrcnn_mobilenet", *SMALL, "model.box_score_thresh=1", points=5)
    with torch.no_grad():
        prediction = model.eval()([torch.rand(3, 64, 64)])[0]
    assert prediction["keypoints"].shape == (0, 5, 3)


def test_objects_without_a_labelled_point_teach_no_place(composed: Composed) -> None:
    model = model_of(composed, "model=keypointrcnn_mobilenet", *SMALL, points=5)
    images, targets = batch(5)
    targets[0]["keypoints"] = targets[0]["keypoints"] * torch.tensor([1.0, 1, 0])
    assert float(model(images, targets)["loss_keypoint"].detach()) == 0
    images, targets = batch(5, objects=0)
    losses = model(images, targets)
    assert float(losses["loss_keypoint"].detach()) == 0
    assert all(torch.isfinite(loss) for loss in losses.values())


def test_under_autocast_keypoints_are_float32_in_the_memory_order_that_goes_with_it(composed: Composed) -> None:
    model = model_of(composed, "model=keypointrcnn_mobilenet", *SMALL, points=5)
    device = Device(torch.device("cpu"), "bf16")
    device.place(model)
    logits: list[Tensor] = []
    model.roi_heads.keypoint_predictor.register_forward_hook(lambda _module, _inputs, output: logits.append(output))
    with device.autocast():
        losses = model(*batch(5))
    torch.stack(list(losses.values())).sum().backward()
    assert logits[0].dtype == torch.float32
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    assert torch.isfinite(losses["loss_keypoint"])


def test_masks_and_keypoints_go_together(composed: Composed) -> None:
    cfg = composed("model=maskrcnn_mobilenet", "model.backbone.name=mobilenet_v3_small")
    settle(cfg.model)
    cfg.model.keypoint_roi_pool = composed("model=keypointrcnn").model.keypoint_roi_pool
    cfg.model.keypoint_layers = [16]
    model = build(cfg.model, group="model", num_classes=3, num_keypoints=5)
    assert model.iou_types == ("bbox", "segm", "keypoints")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model.keypoint_layers=null", "a keypoint head needs both"),
        ("model.keypoint_roi_pool=null", "a keypoint head needs both"),
        ("model.keypoint_roi_pool.featmap_names=[a]", r"model\.keypoint_roi_pool\.featmap_names: no map 'a'"),
    ],
)
def test_parts_that_do_not_fit_are_refused_in_words(composed: Composed, override: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        model_of(composed, "model=keypointrcnn", "model.backbone.name=resnet18", override, points=17)


@pytest.mark.parametrize("model", ["keypointrcnn", "keypointrcnn_mobilenet"])
def test_a_data_set_without_keypoints_is_told_in_a_line(composed: Composed, model: str) -> None:
    cfg = composed(f"model={model}", "model.backbone.name=mobilenet_v3_small")
    settle(cfg.model)
    with pytest.raises(UserError) as error:
        parts.detector(cfg, ClassMap(("pedestrian",)), None)
    said = "model: it learns keypoints, but the data set has none; take another model or add the missing annotations."
    assert str(error.value) == said


def test_other_models_take_data_sets_with_keypoints_and_without(composed: Composed) -> None:
    for points in (None, 17):
        model = model_of(composed, "model=fasterrcnn", "model.backbone.name=mobilenet_v3_small", points=points)
        assert model.iou_types == ("bbox",)


@pytest.mark.parametrize(
    ("good", "bad"), [([None, [512] * 8, [1]], [[], 8, [0], [1.5], "512", [True, "a"]])], ids=["keypoint_layers"]
)
def test_the_layers_of_the_head_have_a_rule(good: list[Any], bad: list[Any]) -> None:
    assert [rule_fault("model.keypoint_layers", value) for value in good] == [None] * len(good)
    for value in bad:
        assert str(rule_fault("model.keypoint_layers", value)).startswith("model.keypoint_layers: ")


def test_a_config_of_before_there_were_keypoints_still_builds(composed: Composed) -> None:
    node = composed("model=fasterrcnn", "model.backbone.name=mobilenet_v3_small").model
    settle(node)
    OmegaConf.set_struct(node, False)
    for key in ("keypoint_roi_pool", "keypoint_layers"):
        del node[key]
    assert build(node, group="model", num_classes=3, num_keypoints=None).iou_types == ("bbox",)


def wrap(num_keypoints: int | None) -> Any:
    model = functools.partial(keypointrcnn_resnet50_fpn)
    return wrapped(
        num_classes=2, num_keypoints=num_keypoints, model=model, iou_types=["bbox", "keypoints"], weights="none"
    )


def test_a_raw_keypoint_model_is_given_the_number_of_points() -> None:
    with torch.device("meta"):
        assert wrap(5).roi_heads.keypoint_predictor.out_channels == 5
        given = functools.partial(keypointrcnn_resnet50_fpn, num_keypoints=5)
        with pytest.raises(UserError, match=r"model\.model\.num_keypoints: each run passes it; leave it out"):
            wrapped(num_classes=2, num_keypoints=5, model=given, iou_types=["keypoints"], weights="none")
        without = wrap(None)  # torchvision takes 17
    with pytest.raises(UserError, match="it learns bbox, keypoints, but the data set has only bbox, segm"):
        learnable_iou_types(without, ("bbox", "segm"), "keypoints/AP")


@pytest.mark.slow
def test_torchvisions_keypoint_rcnn_computes_the_same(composed: Composed) -> None:
    torch.manual_seed(0)
    theirs = keypointrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=3, num_keypoints=17).eval()
    settings = (
        "model.box_score_thresh=0",
        "model.rpn_post_nms_top_n_test=1000",
        "image_size.min=96",
        "image_size.max=128",
        "model.backbone.fold_norms=false",
        "model.box_roi_pool.method=torchvision",
        "model.keypoint_roi_pool.method=torchvision",
    )
    ours = model_of(composed, "model=keypointrcnn", *settings, points=17).eval()
    theirs.roi_heads.score_thresh = 0.0
    theirs.transform.min_size, theirs.transform.max_size = (96,), 128
    ours.load_state_dict(theirs.state_dict())
    images = [torch.rand(3, 100, 120)]
    with torch.no_grad():
        mine, plain = ours(images)[0], theirs(images)[0]
    assert len(plain["labels"]) > 10
    assert mine.keys() == plain.keys()
    assert all(torch.equal(mine[key], plain[key]) for key in plain)


def test_the_installed_torchvisions_points_are_cocos() -> None:
    from detlab.structures import PERSON

    names = torchvision.models.detection.KeypointRCNN_ResNet50_FPN_Weights.DEFAULT.meta["keypoint_names"]
    assert tuple(names) == PERSON.names
