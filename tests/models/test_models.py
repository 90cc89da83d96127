"""Detectors: torchvision's modules and names, parts that must fit, weights that must fit."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from omegaconf import DictConfig
from torch import nn
from torchvision.models.detection import fasterrcnn_resnet50_fpn, maskrcnn_resnet50_fpn

from detlab.config import build
from detlab.errors import UserError
from detlab.models.backbones import feature_maps, mobilenet_v2, resnet_fpn
from detlab.models.norms import norm_of_keys
from detlab.models.weights import check_frozen, load_weights

Composed = Callable[..., DictConfig]
PLAIN = {"maskrcnn": maskrcnn_resnet50_fpn, "fasterrcnn": fasterrcnn_resnet50_fpn}


def model_of(composed: Composed, *overrides: str) -> nn.Module:
    return build(composed(*overrides).model, group="model", num_classes=3)


@pytest.mark.parametrize("name", ["maskrcnn", "fasterrcnn"])
def test_names_and_shapes_are_torchvisions(composed: Composed, name: str) -> None:
    ours = model_of(composed, f"model={name}").state_dict()
    theirs = PLAIN[name](weights=None, weights_backbone=None, num_classes=3).state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}


def test_mobilenet_is_the_tutorials(composed: Composed) -> None:
    model = model_of(composed, "model=mobilenet", "model.anchor_generator.sizes=[[32,64,128,256,512]]")
    assert model.iou_types == ("bbox",)
    features = torchvision.models.mobilenet_v2(weights=None).features
    assert {k: v.shape for k, v in model.backbone.state_dict().items()} == {
        k: v.shape for k, v in features.state_dict().items()
    }
    assert model.rpn.head.cls_logits.out_channels == 15
    assert feature_maps(model.backbone) == {"0": (1280, 2, 2)}


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model.anchor_generator.sizes=[[32],[64]]", "2 tuples of sizes and 5 of aspect_ratios for the 5 maps"),
        ("model.anchor_generator.sizes=[[32,64],[64],[128],[256],[512]]", r"\[6, 3, 3, 3, 3\] anchors a cell"),
        ("model.box_roi_pool.featmap_names=[a]", r"model\.box_roi_pool\.featmap_names: no map 'a'"),
        ("model.mask_roi_pool.featmap_names=[a]", r"model\.mask_roi_pool\.featmap_names: no map 'a'"),
        ("model.backbone.name=resnet51", "resnet51"),
        ("model.trainable_backbone_layers=6", r"0\.\.5"),
        ("model.trainable_backbone_layers=3", "with model.norm=batch"),
        ("model.mask_hidden_channels=null", "a mask head needs both"),
        ("model.norm=layer", "batch, frozen, group"),
    ],
)
def test_parts_that_do_not_fit_are_refused_in_words(composed: Composed, override: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        model_of(composed, override)


@pytest.mark.parametrize(("norm", "kind"), [("batch", nn.BatchNorm2d), ("group", nn.GroupNorm)])
@pytest.mark.parametrize("make", [lambda norm: resnet_fpn(name="resnet18", norm=norm, trainable_layers=5),
                                  lambda norm: mobilenet_v2(norm=norm, trainable_layers=6)])  # fmt: skip
def test_the_norm_is_the_one_asked_for_and_its_names_tell_it(
    make: Callable[[str], nn.Module], norm: str, kind: type[nn.Module]
) -> None:
    backbone = make(norm)
    norms = {
        type(m) for m in backbone.modules() if "Norm" in type(m).__name__ and type(m).__name__ != "Conv2dNormActivation"
    }
    assert norms == {kind}
    assert norm_of_keys(backbone.state_dict()) == norm


def test_frozen_layers_are_counted_from_the_last_stage() -> None:
    backbone = resnet_fpn(name="resnet18", norm="frozen", trainable_layers=3)
    trained = {name.split(".")[1] for name, p in backbone.body.named_parameters(prefix="body") if p.requires_grad}
    assert trained == {"layer2", "layer3", "layer4"}
    assert all(p.requires_grad for p in backbone.fpn.parameters())


def test_frozen_parts_without_weights_are_refused() -> None:
    for norm, layers in (("frozen", 5), ("group", 3)):
        backbone = resnet_fpn(name="resnet18", norm=norm, trainable_layers=layers)
        with pytest.raises(UserError, match="would stay random"):
            check_frozen(backbone, "none")
        check_frozen(backbone, "some.pt")


def test_weights_load_with_three_lines_and_replaced_heads_are_skipped_for_their_shape(
    composed: Composed, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    small = ("model=fasterrcnn", "model.backbone.name=resnet18")
    path = tmp_path / "four_classes.pt"
    donor = build(composed(*small).model, group="model", num_classes=5)
    torch.save(donor.state_dict(), path)
    with caplog.at_level(logging.INFO):
        model = model_of(composed, *small, f"model.weights={path}")
    assert torch.equal(model.backbone.body.conv1.weight, donor.backbone.body.conv1.weight)
    assert model.roi_heads.box_predictor.cls_score.out_features == 3
    said = [record.message for record in caplog.records]
    assert len(said) == 3
    assert "skipped for their shape 4" in said[1]
    assert "missing in the file 0" in said[2]


def test_a_state_dict_does_not_load_into_other_norms(tmp_path: Path) -> None:
    kinds = {norm: resnet_fpn(name="resnet18", norm=norm, trainable_layers=5) for norm in ("batch", "frozen", "group")}
    for norm, model in kinds.items():
        torch.save(model.state_dict(), tmp_path / f"{norm}.pt")
    load_weights(kinds["frozen"], tmp_path / "batch.pt")
    for file, into in (("frozen", "batch"), ("group", "batch"), ("batch", "group"), ("frozen", "group")):
        with pytest.raises(UserError, match=f"trained with {file} norms, but model.norm={into}"):
            load_weights(kinds[into], tmp_path / f"{file}.pt")


def test_under_autocast_maps_anchors_and_losses_are_float32(composed: Composed) -> None:
    model = model_of(composed, "model.backbone.name=resnet18", "image_size.min=64", "image_size.max=64")
    target = {
        "boxes": torch.tensor([[5.0, 5, 40, 60]]), "labels": torch.tensor([1]), "masks": torch.ones(1, 64, 64, dtype=torch.uint8)
    }  # fmt: skip
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model([torch.rand(3, 64, 64)], [target])
        maps = model.backbone(torch.rand(1, 3, 64, 64))
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    assert {value.dtype for value in maps.values()} == {torch.float32}
    assert {cell.dtype for cell in model.rpn.anchor_generator.cell_anchors} == {torch.float32}
