"""What turns an image into feature maps."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.models import mobilenet, resnet
from torchvision.models.detection.backbone_utils import BackboneWithFPN

from detlab.errors import UserError
from detlab.models.norms import norm_layer

_RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")


def _freeze_first(stages: list[list[nn.Module]], trainable_layers: int, norm: str) -> None:
    """Leave only the last `trainable_layers` of the stages trainable."""
    if not 0 <= trainable_layers <= len(stages):
        raise UserError(
            f"model.trainable_backbone_layers: {trainable_layers} is not in 0..{len(stages)}, the stages of this backbone."
        )
    if trainable_layers < len(stages) and norm == "batch":
        raise UserError(
            f"model.trainable_backbone_layers: {trainable_layers} of {len(stages)} with model.norm=batch: the statistics of frozen "
            "layers would go on changing; take norm frozen or group, or train all layers."
        )
    for stage in stages[: len(stages) - trainable_layers]:
        for module in stage:
            module.requires_grad_(False)


def _start_as_identity(body: resnet.ResNet) -> None:
    """Let each residual branch begin at zero (Goyal et al., 2017): training from scratch starts sooner."""
    for module in body.modules():
        last = {resnet.Bottleneck: "bn3", resnet.BasicBlock: "bn2"}.get(type(module))
        if last is not None:
            nn.init.zeros_(getattr(module, last).weight)


def resnet_fpn(*, name: str, norm: str, trainable_layers: int) -> BackboneWithFPN:
    """A ResNet with a feature pyramid of 256 channels on its four stages and a pooled fifth map.

    The modules and their names are those of torchvision's `resnet_fpn_backbone`, so state dicts go both ways; nothing is
    downloaded.

    Args:
        name: `resnet18`, `34`, `50`, `101` or `152`.
        norm: `batch`, `frozen` or `group`, in the ResNet; the pyramid has none.
        trainable_layers: 0..5, counted from the last stage; 5 trains all.

    Returns:
        A module: `[B, 3, H, W]` to the maps "0".."3" and "pool", each `[B, 256, H / s, W / s]` with s = 4, 8, 16, 32, 64.

    Raises:
        UserError: an unknown name or norm, or a number of layers out of range.
    """
    if name not in _RESNETS:
        raise UserError(f"model.backbone.name: {name!r} is not one of {', '.join(_RESNETS)}.")
    body: resnet.ResNet = getattr(resnet, name)(weights=None, norm_layer=norm_layer(norm))
    if norm != "frozen":
        _start_as_identity(body)
    stages = [[body.conv1, body.bn1], [body.layer1], [body.layer2], [body.layer3], [body.layer4]]
    _freeze_first([list(stage) for stage in stages], trainable_layers, norm)
    channels = body.inplanes // 8
    return BackboneWithFPN(
        body,
        return_layers={f"layer{i + 1}": str(i) for i in range(4)},
        in_channels_list=[channels * 2**i for i in range(4)],
        out_channels=256,
    )


def mobilenet_v2(*, norm: str, trainable_layers: int) -> nn.Sequential:
    """MobileNetV2's `features`: one map of 1280 channels at a 32nd of the size, as in torchvision's fine-tuning tutorial.

    Args:
        norm: `batch`, `frozen` or `group`.
        trainable_layers: 0..6, counted from the last stage; 6 trains all. A stage begins where the resolution halves.

    Returns:
        A module: `[B, 3, H, W]` to `[B, 1280, H / 32, W / 32]`; the map is called "0".

    Raises:
        UserError: an unknown norm, or a number of layers out of range.
    """
    features: nn.Sequential = mobilenet.mobilenet_v2(weights=None, norm_layer=norm_layer(norm)).features
    blocks = list(features)
    starts = [0] + [i for i, block in enumerate(blocks) if getattr(block, "_is_cn", False)] + [len(blocks) - 1]
    stages = [blocks[a:b] for a, b in zip(starts, [*starts[1:], len(blocks)], strict=True)]
    _freeze_first(stages, trainable_layers, norm)
    features.out_channels = 1280  # type: ignore[assignment]
    return features


@torch.no_grad()
def feature_maps(backbone: nn.Module) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the maps that a backbone makes of a 64 x 64 image, found by running it once."""
    training = backbone.training
    maps: Tensor | dict[str, Tensor] = backbone.eval()(torch.zeros(1, 3, 64, 64))
    backbone.train(training)
    maps = {"0": maps} if isinstance(maps, Tensor) else maps
    return {name: tuple(value.shape[1:]) for name, value in maps.items()}
