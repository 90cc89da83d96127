"""Anchors that are laid out once for each shape."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection import anchor_utils
from torchvision.models.detection.image_list import ImageList

_SHAPES = 32  # so many are remembered


class AnchorGenerator(anchor_utils.AnchorGenerator):
    """torchvision's `AnchorGenerator`, with its arguments and results, which remembers what it laid over maps of the same shapes.

    The anchors are float32 whatever the type of the maps: torchvision's follow the maps, and in bfloat16 would be off by pixels.
    All images of a batch are given the same tensor, which nobody may change.

    Args:
        sizes: in pixels of the resized image, one tuple a map.
        aspect_ratios: height / width, one tuple a map.
    """

    def __init__(self, sizes: Any, aspect_ratios: Any) -> None:
        super().__init__(tuple(map(tuple, sizes)), tuple(map(tuple, aspect_ratios)))  # pyright: ignore[reportArgumentType]
        self._laid: OrderedDict[tuple[Any, ...], Tensor] = OrderedDict()

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """Anchors of each image, `[A, 4]` xyxy in pixels, for images `[B, 3, H, W]` and their maps."""
        grids = [tuple(feature_map.shape[-2:]) for feature_map in feature_maps]
        device = feature_maps[0].device
        key = (tuple(image_list.tensors.shape[-2:]), *grids, str(device))
        if key not in self._laid:
            shapes = [torch.empty(1, device=device).expand(1, 1, *grid) for grid in grids]
            with torch.inference_mode(False):  # they serve training too
                one = ImageList(image_list.tensors[:1], image_list.image_sizes[:1])
                self._laid[key] = super().forward(one, shapes)[0]
            while len(self._laid) > _SHAPES:
                self._laid.popitem(last=False)
        return [self._laid[key]] * len(image_list.image_sizes)
