"""Detectors: torchvision's modules and names, parts that must fit, models of torchvision's own builders."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torchvision.models.detection import (
    fasterrcnn_resnet50_fpn,
    fcos_resnet50_fpn,
    maskrcnn_resnet50_fpn,
    retinanet_resnet50_fpn,
    ssdlite320_mobilenet_v3_large,
)
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign

from detlab.config import build
from detlab.errors import UserError
from detlab.models.backbones import feature_maps
from detlab.models.detectors import wrapped
from detlab.models.weights import check_frozen, settle

Composed = Callable[..., DictConfig]
PLAIN = {"maskrcnn": maskrcnn_resnet50_fpn, "fasterrcnn": fasterrcnn_resnet50_fpn}
WRAPPER = "detlab.models.detectors.wrapped"


pytestmark = pytest.mark.usefixtures("torchvision_offline")


def model_of(composed: Composed, *overrides: str) -> nn.Module:
    cfg = composed(*overrides)
    settle(cfg.model)
    return build(cfg.model, group="model", num_classes=4)


def batch(*labels: int, size: int = 64) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Two images, each with an object of each label."""
    count, step = len(labels), size // (2 * len(labels))
    corners = torch.arange(count, dtype=torch.float32)[:, None] * step
    target = {
        "boxes": torch.cat([corners, corners, corners + size / 2, corners + size / 2], 1),
        "labels": torch.tensor(labels),
        "masks": torch.ones(count, size, size, dtype=torch.uint8),
    }
    return [torch.rand(3, size, size) for _ in range(2)], [dict(target) for _ in range(2)]


@pytest.mark.parametrize("name", ["maskrcnn", "fasterrcnn"])
def test_names_and_shapes_are_torchvisions(composed: Composed, name: str) -> None:
    with torch.device("meta"):
        ours = model_of(composed, f"model={name}").state_dict()
        theirs = PLAIN[name](weights=None, weights_backbone=None, num_classes=4).state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}


@pytest.mark.parametrize("name", ["maskrcnn", "fasterrcnn"])
def test_anchors_and_pools_are_those_that_torchvisions_coco_weights_were_trained_with(
    composed: Composed, name: str
) -> None:
    ours = model_of(composed, f"model={name}", "model.backbone.name=resnet18")
    with torch.device("meta"):
        theirs = PLAIN[name](weights=None, weights_backbone=None)
    mine, plain = ours.rpn.anchor_generator, theirs.rpn.anchor_generator
    assert [list(sizes) for sizes in mine.sizes] == [list(sizes) for sizes in plain.sizes]
    assert [list(ratios) for ratios in mine.aspect_ratios] == [list(ratios) for ratios in plain.aspect_ratios]
    for pool in ("box_roi_pool", "mask_roi_pool"):
        mine, plain = getattr(ours.roi_heads, pool), getattr(theirs.roi_heads, pool)
        assert (mine is None) == (plain is None)
        if plain is not None:
            settings = ("featmap_names", "output_size", "sampling_ratio", "canonical_scale", "canonical_level")
            assert [getattr(mine, key) for key in settings] == [getattr(plain, key) for key in settings]
    for key in ("image_mean", "image_std", "size_divisible"):
        assert getattr(ours.transform, key) == getattr(theirs.transform, key)
    assert ours.roi_heads.box_coder.weights == theirs.roi_heads.box_coder.weights


def test_a_batch_is_padded_to_multiples_of_what_is_asked_for(composed: Composed) -> None:
    images = [torch.zeros(3, 70, 90), torch.zeros(3, 64, 64)]
    shapes = []
    for more in ([], ["model.size_divisible=128"]):
        model = model_of(
            composed, "model=mobilenet", "model.enlarge_to=64", "image_size.min=64", "image_size.max=200", *more
        )
        padded, _ = model.transform(images)
        assert padded.image_sizes == [(64, 82), (64, 64)]
        shapes.append(tuple(padded.tensors.shape[2:]))
    assert shapes == [(64, 96), (128, 128)]


def test_mobilenet_is_the_tutorials(composed: Composed) -> None:
    model = model_of(composed, "model=mobilenet", "model.anchor_generator.sizes=[[32,64,128,256,512]]")
    assert model.iou_types == ("bbox",)
    features = torchvision.models.mobilenet_v2(weights=None).features
    assert {k: v.shape for k, v in model.backbone.state_dict().items()} == {
        k: v.shape for k, v in features.state_dict().items()
    }
    assert model.rpn.head.cls_logits.out_channels == 15
    assert feature_maps(model.backbone) == {"0": (1280, 2, 2)}


QUICK = {
    "mobilenet": ["model.enlarge_to=null"],
    "mobilenet_fpn": [],
    "maskrcnn_mobilenet": ["model.box_detections_per_img=5"],
    "retinanet": [],
}
FIELDS = {("bbox",): {"boxes", "labels", "scores"}, ("bbox", "segm"): {"boxes", "labels", "scores", "masks"}}


@pytest.mark.parametrize("name", QUICK)
def test_each_model_trains_a_step_and_predicts(composed: Composed, name: str) -> None:
    torch.manual_seed(0)
    model = model_of(composed, f"model={name}", "image_size.min=64", "image_size.max=64", *QUICK[name])
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    images, targets = batch(1, 2, 3)
    loss = torch.stack(list(model(images, targets).values())).sum()
    loss.backward()
    optimizer.step()
    assert torch.isfinite(loss)
    assert any(not torch.equal(value, before[key]) for key, value in model.state_dict().items())
    predictions = model.eval()(images)
    assert [set(p) for p in predictions] == [FIELDS[model.iou_types]] * 2
    check_frozen(model, "none")


@pytest.mark.parametrize("name", ["mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "resnext50_32x4d"])
def test_the_same_anchors_and_pools_fit_any_backbone_with_a_pyramid(composed: Composed, name: str) -> None:
    model = model_of(composed, "model=fasterrcnn", f"model.backbone.name={name}")
    assert list(feature_maps(model.backbone)) == ["0", "1", "2", "3", "pool"]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model.anchor_generator.sizes=[[32],[64]]", "2 tuples of sizes and 5 of aspect_ratios for the 5 maps"),
        ("model.anchor_generator.sizes=[[32,64],[64],[128],[256],[512]]", r"\[6, 3, 3, 3, 3\] anchors a cell"),
        ("model.box_roi_pool.featmap_names=[a]", r"model\.box_roi_pool\.featmap_names: no map 'a'"),
        ("model.mask_roi_pool.featmap_names=[a]", r"model\.mask_roi_pool\.featmap_names: no map 'a'"),
        ("model.backbone.name=resnet51", "resnet51"),
        ("model.backbone.fpn=false", "5 tuples of sizes and 5 of aspect_ratios for the 1 maps"),
        ("model.trainable_backbone_layers=6", r"0\.\.5"),
        ("model.trainable_backbone_layers=3", "with model.norm=batch"),
        ("model.mask_hidden_channels=null", "a mask head needs both"),
        ("model.norm=layer", "batch, frozen, group"),
    ],
)
def test_parts_that_do_not_fit_are_refused_in_words(composed: Composed, override: str, said: str) -> None:
    small = () if "backbone.name" in override else ("model.backbone.name=resnet18",)
    with pytest.raises(UserError, match=said):
        model_of(composed, *small, override)


def test_an_unsettled_auto_does_not_reach_a_detector(composed: Composed) -> None:
    with pytest.raises(UserError, match=r"model\.backbone: .*call detlab\.models\.weights\.settle"):
        build(composed().model, group="model", num_classes=4)


def test_frozen_parts_without_weights_are_refused(composed: Composed) -> None:
    for overrides in (["model.norm=frozen"], ["model.norm=group", "model.trainable_backbone_layers=3"]):
        model = model_of(composed, "model=fasterrcnn", "model.backbone.name=resnet18", *overrides)
        with pytest.raises(UserError, match="would stay random"):
            check_frozen(model, "none")
        check_frozen(model, "imagenet")


def assert_float32_under_autocast(model: nn.Module, *, maps_too: bool) -> None:
    images, targets = batch(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(images, targets)
        maps = model.backbone(torch.rand(1, 3, 64, 64))
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    # Whose anchors are made in the maps' type must have them precise.
    assert {value.dtype for value in maps.values()} == {torch.float32 if maps_too else torch.bfloat16}


def test_under_autocast_anchors_and_losses_are_float32(composed: Composed) -> None:
    model = model_of(composed, "model.backbone.name=resnet18", "image_size.min=64", "image_size.max=64")
    heads: list[torch.dtype] = []
    for head in (model.rpn.head, model.roi_heads.box_predictor, model.roi_heads.mask_predictor):
        head.register_forward_hook(lambda _module, _inputs, output: heads.extend(dtypes(output)))
    assert_float32_under_autocast(model, maps_too=False)
    assert {cell.dtype for cell in model.rpn.anchor_generator.cell_anchors} == {torch.float32}
    # Three outputs: RPN's two for each of five maps, the box predictor's two, the mask predictor's.
    assert heads == [torch.float32] * 13


def test_under_autocast_a_wrapped_models_maps_and_losses_are_float32() -> None:
    assert_float32_under_autocast(wrap(retinanet_resnet50_fpn, min_size=64, max_size=64), maps_too=True)


def dtypes(output: Any) -> list[torch.dtype]:
    if isinstance(output, Tensor):
        return [output.dtype]
    return [dtype for part in (output.values() if isinstance(output, dict) else output) for dtype in dtypes(part)]


def wrap(
    builder: Callable[..., nn.Module], *, num_classes: int = 4, weights: str = "none", **arguments: Any
) -> nn.Module:
    model = functools.partial(builder, **arguments)
    return wrapped(num_classes=num_classes, model=model, iou_types=["bbox"], weights=weights)


@pytest.mark.parametrize(
    ("builder", "arguments"),
    [
        (retinanet_resnet50_fpn, {"min_size": 64, "max_size": 64, "score_thresh": 0.0}),
        (fcos_resnet50_fpn, {"min_size": 64, "max_size": 64, "score_thresh": 0.0}),
        (ssdlite320_mobilenet_v3_large, {"score_thresh": 0.0}),
        (fasterrcnn_resnet50_fpn, {"min_size": 64, "max_size": 64, "box_score_thresh": 0.0, "weights_backbone": None}),
    ],
)
def test_a_raw_model_learns_labels_1_to_k_and_predicts_no_other(
    builder: Callable[..., nn.Module], arguments: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    model = wrap(builder, **arguments)
    images, targets = batch(1, 2, 3)
    assert torch.isfinite(torch.stack(list(model(images, targets).values())).sum())
    with torch.no_grad():
        predictions = model.eval()(images)
    # RetinaNet and FCOS score class 0 as well, which no target has.
    labels = set(torch.cat([prediction["labels"] for prediction in predictions]).tolist())
    assert labels
    assert labels <= {1, 2, 3}
    for prediction in predictions:
        assert {len(value) for value in prediction.values()} == {len(prediction["labels"])}
    assert model.iou_types == ("bbox",)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"weights": "DEFAULT"}, r"model\.model\.weights: 'DEFAULT' would make torchvision download"),
        ({"weights_backbone": "IMAGENET1K_V1"}, r"model\.model\.weights_backbone: 'IMAGENET1K_V1' would make"),
        ({"pretrained": True}, r"model\.model\.pretrained: True would make"),
        ({"pretrained_backbone": True}, r"model\.model\.pretrained_backbone: True would make"),
        ({"num_classes": 9}, r"model\.model\.num_classes: each run passes it; leave it out"),
        (
            {"trainable_backbone_layers": 3},
            r"model\.model\.trainable_backbone_layers: retinanet_resnet50_fpn would ignore it",
        ),
        ({"nms_tresh": 0.3}, r"model\.model\.nms_tresh: retinanet_resnet50_fpn would ignore it; it takes .*nms_thresh"),
    ],
)
def test_what_a_builder_would_download_or_ignore_is_refused(arguments: dict[str, Any], said: str) -> None:
    model = functools.partial(retinanet_resnet50_fpn, **arguments)
    with pytest.raises(UserError, match=said):
        wrapped(num_classes=4, model=model, iou_types=["bbox"], weights="none")


def test_a_builder_of_ones_own_may_take_any_argument() -> None:
    class Mine(nn.Module):
        def __init__(self, num_classes: int, **settings: Any) -> None:
            super().__init__()
            self.num_classes, self.settings = num_classes, settings

    model = wrap(Mine, depth=3)
    assert (model.num_classes, model.settings) == (4, {"depth": 3})


def test_a_builder_that_is_no_partial_or_has_arguments_by_place_is_refused() -> None:
    with pytest.raises(UserError, match=r"model\.model: needs _partial_: true"):
        wrapped(num_classes=2, model=retinanet_resnet50_fpn, iou_types=["bbox"], weights="none")
    by_place = functools.partial(retinanet_resnet50_fpn, None)
    with pytest.raises(UserError, match=r"model\.model\._args_: retinanet_resnet50_fpn is given its arguments by name"):
        wrapped(num_classes=2, model=by_place, iou_types=["bbox"], weights="none")


@pytest.mark.parametrize("iou_types", [[], ["box"], ["bbox", "mask"]])
def test_an_unknown_type_of_prediction_is_refused(iou_types: list[Any]) -> None:
    with pytest.raises(UserError, match=r"model\.iou_types: .* allowed: some of bbox, segm, keypoints"):
        wrapped(num_classes=2, model=functools.partial(nn.Identity), iou_types=iou_types, weights="none")


@pytest.mark.parametrize("weights", ["imagenet", "coco"])
def test_a_raw_model_starts_from_a_file_or_from_nothing(weights: str) -> None:
    node = {"_target_": WRAPPER, "iou_types": ["bbox"], "weights": weights, "model": {
        "_target_": "torchvision.models.detection.ssdlite320_mobilenet_v3_large", "_partial_": True}}  # fmt: skip
    with pytest.raises(UserError, match=rf"model\.weights: {weights} needs a backbone by .*; take none or a file"):
        build(OmegaConf.create(node), group="model", num_classes=2)


def test_a_raw_model_loads_a_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    donor = wrap(ssdlite320_mobilenet_v3_large, num_classes=3)
    torch.save(donor.state_dict(), tmp_path / "donor.pt")
    model = wrap(ssdlite320_mobilenet_v3_large, num_classes=2, weights=str(tmp_path / "donor.pt"))
    assert torch.equal(next(model.backbone.parameters()), next(donor.backbone.parameters()))


def test_parts_of_torchvisions_own_stand_in_for_a_backbone(composed: Composed) -> None:
    node = composed("model=mobilenet").model
    settle(node)
    OmegaConf.set_struct(node, False)
    node.backbone = {"_target_": "torch.nn.Conv2d", "in_channels": 3, "out_channels": 8, "kernel_size": 3, "stride": 32}
    model = build(node, group="model", num_classes=2)
    assert isinstance(model.backbone, nn.Conv2d)
    assert isinstance(model.rpn.anchor_generator, AnchorGenerator)
    assert isinstance(model.roi_heads.box_roi_pool, MultiScaleRoIAlign)
    node.weights = "imagenet"
    with pytest.raises(UserError, match="and this model has another; take none or a file"):
        build(node, group="model", num_classes=2)
