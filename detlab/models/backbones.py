"""What turns an image into feature maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torchvision.models import get_model, resnet
from torchvision.models.detection.backbone_utils import BackboneWithFPN

from detlab.errors import UserError
from detlab.models import folding
from detlab.models.norms import norm_layer

NAMES = (
    "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d", "wide_resnet50_2",
    "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large", "efficientnet_b0",
)  # fmt: skip
FPN_LAYERS, FPN_CHANNELS = (1, 2, 3, 4), 256  # torchvision's


def _body(name: str, norm: str, norm_eps: float) -> nn.Sequential:
    """A classification model of torchvision's without its classifier; its modules keep their names."""
    classifier = get_model(name, weights=None, norm_layer=norm_layer(norm, norm_eps))
    if not isinstance(classifier, resnet.ResNet):
        return classifier.features  # type: ignore[return-value]
    body = nn.Sequential()
    for child_name, child in classifier.named_children():
        if child_name not in ("avgpool", "fc"):
            body.add_module(child_name, child)
    return body


def _start_as_identity(body: nn.Module) -> None:
    """Let each residual branch of a ResNet begin at zero (Goyal et al., 2017): training from scratch starts sooner."""
    for module in body.modules():
        last = {resnet.Bottleneck: "bn3", resnet.BasicBlock: "bn2"}.get(type(module))
        if last is not None:
            nn.init.zeros_(getattr(module, last).weight)


def _stages(body: nn.Sequential) -> list[dict[str, nn.Module]]:
    """The modules of a body by name, in stages: one begins where the resolution halves.

    As in torchvision, the widening 1 x 1 convolution that ends the MobileNets and EfficientNets is a stage of its own.
    """
    stages: list[dict[str, nn.Module]] = []
    for name, child in body.named_children():
        if any(getattr(module, "stride", None) in (2, (2, 2)) for module in child.modules()):
            stages.append({})
        stages[-1][name] = child
    if len(stages[-1]) > 1:
        stages.append(dict([stages[-1].popitem()]))
    return stages


def _freeze_first(stages: list[dict[str, nn.Module]], trainable_layers: int | Literal["all"], norm: str) -> None:
    """Leave only the last `trainable_layers` of the stages trainable."""
    trained = len(stages) if trainable_layers == "all" else trainable_layers
    if not isinstance(trained, int) or not 0 <= trained <= len(stages):
        raise UserError(
            f"model.trainable_backbone_layers: {trainable_layers!r} is neither all nor in 0..{len(stages)}, the stages of this "
            "backbone."
        )
    if trained < len(stages) and norm == "batch":
        raise UserError(
            f"model.trainable_backbone_layers: {trained} of {len(stages)} with model.norm=batch: the statistics of frozen "
            "layers would go on changing; take norm frozen or group, or train all layers."
        )
    for stage in stages[: len(stages) - trained]:
        for module in stage.values():
            module.requires_grad_(False)


def _out_channels(module: nn.Module) -> int:
    return [part.out_channels for part in module.modules() if isinstance(part, nn.Conv2d)][-1]


def _check_pyramid(fpn: bool, returned_layers: Sequence[int], fpn_channels: int) -> None:
    if list(returned_layers) != sorted(set(returned_layers) & set(FPN_LAYERS)) or not returned_layers:
        raise UserError(
            f"model.backbone.returned_layers: {list(returned_layers)} is not allowed; allowed: some of 1, 2, 3, 4, in this order."
        )
    if fpn_channels < 1:
        raise UserError(f"model.backbone.fpn_channels: {fpn_channels} is not allowed; allowed: whole numbers from 1.")
    if not fpn and (tuple(returned_layers), fpn_channels) != (FPN_LAYERS, FPN_CHANNELS):
        raise UserError(
            "model.backbone: returned_layers and fpn_channels are a pyramid's; leave them out, or add fpn=true."
        )


def backbone(
    *,
    name: str,
    fpn: bool,
    norm: str,
    norm_eps: float,
    trainable_layers: int | Literal["all"],
    returned_layers: Sequence[int] = FPN_LAYERS,
    fpn_channels: int = FPN_CHANNELS,
    fold_norms: bool = True,
) -> BackboneWithFPN | nn.Sequential:
    """A classification model of torchvision's as a backbone, with or without a feature pyramid (Lin et al., 2017).

    The modules and their names are torchvision's, so state dicts go both ways: with a pyramid those of `resnet_fpn_backbone`
    (for the others, `body` as in `mobilenet_backbone`), without one those of the classification model, of which MobileNets
    and EfficientNets keep the `features`. The weights are random; nothing is downloaded.

    Args:
        name: one of `NAMES`.
        fpn: whether the last maps of 4, 8, 16 and 32 pixels a cell go into a pyramid, which has no norms.
        norm: `batch`, `frozen` or `group`.
        norm_eps: what the norms add to the variance.
        trainable_layers: how many stages are trained, counted from the last; `all`, or a number up to 5 for the ResNets (as
            in torchvision) and up to 6 for the others. The pyramid is always trained.
        returned_layers: which of the maps of 4, 8, 16 and 32 pixels a cell, as 1 to 4, go into the pyramid. Without the finest
            one, most of a pyramid's cost, small objects are not found.
        fpn_channels: of the pyramid's maps; half as many are a quarter of its work.
        fold_norms: whether norms are one operation with their convolutions while they are fixed: frozen, or in evaluation.

    Returns:
        A module with `out_channels` and `name`. With a pyramid: `[B, 3, H, W]` to the maps "0".."3" (or as many as are returned)
        and "pool", each `[B, fpn_channels, H / s, W / s]` with s = 4, 8, 16, 32, 64. Without: to one map
        `[B, C, H / 32, W / 32]`, which torchvision calls "0".

    Raises:
        UserError: an unknown name or norm, layers or channels out of range or of a pyramid that there is not.
        ValueError: an `auto` that `detlab.models.weights.settle` should have replaced.
    """
    if "auto" in (norm, norm_eps, trainable_layers):
        raise ValueError(
            f"norm {norm}, norm_eps {norm_eps}, trainable_layers {trainable_layers}: an auto was not settled by the weights; "
            "call detlab.models.weights.settle on the model's node before building it"
        )
    if name not in NAMES:
        raise UserError(f"model.backbone.name: {name!r} is not one of {', '.join(NAMES)}.")
    body = _body(name, norm, norm_eps)
    if norm != "frozen":
        _start_as_identity(body)
    stages = _stages(body)
    _freeze_first(stages, trainable_layers, norm)
    _check_pyramid(fpn, returned_layers, fpn_channels)
    halvings = (*stages[1:4], stages[-1])
    ends = [list(halvings[layer - 1])[-1] for layer in returned_layers]
    channels = [_out_channels(body.get_submodule(end)) for end in ends]
    if fpn:
        built = BackboneWithFPN(body, {end: str(i) for i, end in enumerate(ends)}, channels, fpn_channels)
    else:
        built = body
        built.out_channels = channels[-1]  # type: ignore[assignment]
    if fold_norms:
        folding.fold_norms(built)
    built.name = name  # type: ignore[assignment]
    return built


@torch.no_grad()
def feature_maps(backbone: nn.Module) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the maps that a backbone makes of a 64 x 64 image, found by running it once."""
    training = backbone.training
    maps: Tensor | dict[str, Tensor] = backbone.eval()(torch.zeros(1, 3, 64, 64))
    backbone.train(training)
    maps = {"0": maps} if isinstance(maps, Tensor) else maps
    return {name: tuple(value.shape[1:]) for name, value in maps.items()}
