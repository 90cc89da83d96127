"""Backbones: torchvision's modules and names, maps that fit the same anchors and pools, stages that freeze."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models import get_model
from torchvision.models.detection.backbone_utils import mobilenet_backbone, resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d

from detlab.errors import UserError
from detlab.models.backbones import NAMES, backbone, feature_maps
from detlab.models.norms import norm_of_keys

SMALL = ("resnet18", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0")
# Channels of the last map, from the papers' tables (He et al., Xie et al., Zagoruyko, Sandler et al., Howard et al., Tan and Le).
LAST_CHANNELS = {
    "resnet18": 512, "resnet34": 512, "resnet50": 2048, "resnet101": 2048, "resnet152": 2048, "resnext50_32x4d": 2048,
    "wide_resnet50_2": 2048, "mobilenet_v2": 1280, "mobilenet_v3_small": 576, "mobilenet_v3_large": 960,
    "efficientnet_b0": 1280,
}  # fmt: skip


pytestmark = pytest.mark.usefixtures("torchvision_offline")


def built(name: str = "resnet18", **changed: Any) -> nn.Module:
    settings = {"fpn": True, "norm": "batch", "norm_eps": 1e-5, "trainable_layers": "all"}
    return backbone(name=name, **{**settings, **changed})


def shapes(module: nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in module.state_dict().items()}


def test_a_download_by_torchvision_would_fail_these_tests() -> None:
    with pytest.raises(AssertionError, match="torchvision downloads https"):
        get_model("mobilenet_v3_small", weights="DEFAULT")


@pytest.mark.parametrize("name", NAMES)
def test_with_a_pyramid_every_backbone_has_the_same_five_maps(name: str) -> None:
    with torch.device("meta"):  # shapes without values
        model = built(name).eval()
        maps = model(torch.zeros(2, 3, 256, 320))
    sides = {"0": (64, 80), "1": (32, 40), "2": (16, 20), "3": (8, 10), "pool": (4, 5)}
    assert {key: tuple(value.shape) for key, value in maps.items()} == {k: (2, 256, *s) for k, s in sides.items()}
    assert (model.out_channels, model.name) == (256, name)


@pytest.mark.parametrize("name", NAMES)
def test_without_a_pyramid_a_backbone_has_its_last_map(name: str) -> None:
    with torch.device("meta"):
        model = built(name, fpn=False).eval()
        features = model(torch.zeros(2, 3, 256, 320))
    assert features.shape == (2, LAST_CHANNELS[name], 8, 10)
    assert (model.out_channels, model.name) == (LAST_CHANNELS[name], name)


@pytest.mark.parametrize("fpn", [True, False])
@pytest.mark.parametrize("name", SMALL)
def test_gradients_reach_every_parameter(name: str, fpn: bool) -> None:
    torch.manual_seed(0)
    model = built(name, fpn=fpn)
    maps = model(torch.rand(2, 3, 64, 64))
    outputs = list(maps.values()) if fpn else [maps]
    torch.stack([output.square().sum() for output in outputs]).sum().backward()
    assert all(torch.isfinite(output).all() for output in outputs)
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("name", [name for name in NAMES if "resne" in name])
def test_a_resnets_names_are_those_of_torchvisions_detectors(name: str) -> None:
    with torch.device("meta"):
        theirs = resnet_fpn_backbone(backbone_name=name, weights=None, norm_layer=nn.BatchNorm2d)
        assert shapes(built(name)) == shapes(theirs)


@pytest.mark.parametrize("name", [name for name in NAMES if "mobilenet" in name])
def test_a_mobilenets_body_is_named_as_in_torchvisions_detectors(name: str) -> None:
    with torch.device("meta"):
        theirs = mobilenet_backbone(backbone_name=name, weights=None, fpn=True, norm_layer=nn.BatchNorm2d)
        assert shapes(built(name).body) == shapes(theirs.body)


@pytest.mark.parametrize("name", NAMES)
def test_without_a_pyramid_the_names_are_those_of_the_classification_model(name: str) -> None:
    with torch.device("meta"):
        ours, theirs = built(name, fpn=False), get_model(name, weights=None)
    expected = theirs.features if hasattr(theirs, "features") else theirs
    kept = {key: shape for key, shape in shapes(expected).items() if not key.startswith("fc.")}
    assert shapes(ours) == kept


@pytest.mark.parametrize("name", SMALL)
def test_a_classification_models_weights_give_its_features(name: str) -> None:
    torch.manual_seed(0)
    theirs, ours = get_model(name, weights=None, norm_layer=nn.BatchNorm2d).eval(), built(name, fpn=False).eval()
    state = {key.removeprefix("features."): value for key, value in theirs.state_dict().items()}
    ours.load_state_dict({key: value for key, value in state.items() if not key.startswith(("fc.", "classifier."))})
    seen: list[torch.Tensor] = []
    pool = theirs.avgpool if hasattr(theirs, "avgpool") else theirs.classifier
    pool.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        theirs(image)
        features = ours(image)
    expected = seen[0]
    # MobileNetV2 pools by a function: its classifier sees the pooled map.
    features = features if expected.ndim == 4 else features.mean((2, 3))
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize(("name", "stages"), [("resnet18", 5), *((name, 6) for name in SMALL[1:])])
def test_trainable_layers_count_the_stages_from_the_last(name: str, stages: int) -> None:
    with torch.device("meta"):
        models = [built(name, norm="frozen", trainable_layers=layers) for layers in range(stages + 1)]
        everything = trained_names(built(name, norm="frozen").body)
        with pytest.raises(UserError, match=rf"{stages + 1} is neither all nor in 0\.\.{stages}"):
            built(name, norm="frozen", trainable_layers=stages + 1)
    trained = [trained_names(model.body) for model in models]
    assert trained[0] == set()
    assert trained[-1] == everything
    assert all(fewer < more for fewer, more in itertools.pairwise(trained))
    assert all(p.requires_grad for p in models[0].fpn.parameters())


@pytest.mark.parametrize("layers", range(6))
def test_a_resnets_stages_are_torchvisions(layers: int) -> None:
    with torch.device("meta"):
        theirs = resnet_fpn_backbone(backbone_name="resnet50", weights=None, trainable_layers=layers)
        ours = built("resnet50", norm="frozen", trainable_layers=layers)
    assert trained_names(ours) == trained_names(theirs)


@pytest.mark.parametrize("layers", range(7))
def test_a_mobilenets_stages_are_torchvisions(layers: int) -> None:
    with torch.device("meta"):
        theirs = mobilenet_backbone(
            backbone_name="mobilenet_v3_large",
            weights=None,
            fpn=True,
            norm_layer=FrozenBatchNorm2d,
            trainable_layers=layers,
        )
        ours = built("mobilenet_v3_large", norm="frozen", trainable_layers=layers)
    assert trained_names(ours.body) == trained_names(theirs.body)


def trained_names(module: nn.Module) -> set[str]:
    return {name for name, parameter in module.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize(
    ("norm", "kind"), [("batch", nn.BatchNorm2d), ("frozen", FrozenBatchNorm2d), ("group", nn.GroupNorm)]
)
@pytest.mark.parametrize("name", SMALL)
def test_the_norm_is_the_one_asked_for_and_its_names_tell_it(name: str, norm: str, kind: type[nn.Module]) -> None:
    with torch.device("meta"):
        model = built(name, norm=norm, norm_eps=0.25)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d | FrozenBatchNorm2d | nn.GroupNorm)]
    assert norms
    assert all(isinstance(m, kind) for m in norms)
    assert {m.eps for m in norms} == {0.25}
    assert norm_of_keys(model.state_dict()) == norm


def test_a_resnet_begins_as_identity_but_where_its_norms_are_frozen() -> None:
    def last_weights(norm: str) -> set[float]:
        return {float(block.bn2.weight.detach().abs().sum()) for block in built(norm=norm).body.layer1}

    assert last_weights("batch") == {0.0}
    assert last_weights("group") == {0.0}
    assert last_weights("frozen") == {64.0}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"name": "resnet51"}, r"model\.backbone\.name: 'resnet51' is not one of resnet18, .*efficientnet_b0"),
        ({"norm": "layer"}, "model.norm: 'layer' is not one of batch, frozen, group"),
        ({"trainable_layers": "some"}, "'some' is neither all nor in"),
        ({"trainable_layers": 2.5, "norm": "frozen"}, "2.5 is neither all nor in"),
        ({"trainable_layers": -1, "norm": "frozen"}, "-1 is neither all nor in"),
        ({"trainable_layers": 3}, "3 of 5 with model.norm=batch"),
    ],
)
def test_what_cannot_be_built_is_refused_in_words(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        built(**changed)


@pytest.mark.parametrize("key", ["norm", "norm_eps", "trainable_layers"])
def test_an_auto_that_nobody_settled_is_an_internal_error(key: str) -> None:
    with pytest.raises(ValueError, match=r"call detlab\.models\.weights\.settle"):
        built(**{key: "auto"})


def test_looking_at_the_maps_changes_nothing() -> None:
    model = built("mobilenet_v2", fpn=False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(0)
    state = torch.get_rng_state()
    assert feature_maps(model) == {"0": (1280, 2, 2)}
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_pyramid_has_the_levels_and_the_channels_that_are_asked_for() -> None:
    maps = feature_maps(built(returned_layers=[2, 4], fpn_channels=32))
    assert maps == {"0": (32, 8, 8), "1": (32, 2, 2), "pool": (32, 1, 1)}
    whole = shapes(built())
    assert all(whole[name] == shape for name, shape in shapes(built(returned_layers=[1, 2, 3, 4])).items())


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"returned_layers": []}, r"returned_layers: \[\] is not allowed; allowed: some of 1, 2, 3, 4"),
        ({"returned_layers": [3, 2]}, r"returned_layers: \[3, 2\] is not allowed"),
        ({"returned_layers": [4, 5]}, r"returned_layers: \[4, 5\] is not allowed"),
        ({"fpn_channels": 0}, r"fpn_channels: 0 is not allowed; allowed: whole numbers from 1"),
        ({"fpn": False, "returned_layers": [4]}, r"a pyramid's; leave them out, or add fpn=true"),
    ],
)
def test_levels_that_there_are_not_are_refused(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        built(**changed)
