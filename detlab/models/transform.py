"""Between images and the batch that a detector sees: torchvision's transform, which may leave masks in their boxes."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torchvision.models.detection.transform import GeneralizedRCNNTransform


class BoxMaskTransform(GeneralizedRCNNTransform):
    """torchvision's `GeneralizedRCNNTransform`, which pastes masks into images only where it is asked to.

    Attributes:
        pastes_masks: whether a prediction has `masks` `[M, 1, H, W]`, as torchvision's have; else `masks_in_boxes` `[M, 1, S, S]`,
            what the mask head gave, and `image_size`.
    """

    pastes_masks: bool = True

    def postprocess(
        self,
        result: list[dict[str, Tensor]],
        image_shapes: list[tuple[int, int]],
        original_image_sizes: list[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        """See torchvision's."""
        if self.training or self.pastes_masks:
            return super().postprocess(result, image_shapes, original_image_sizes)
        in_boxes = [prediction.pop("masks", None) for prediction in result]
        found: list[dict[str, Any]] = super().postprocess(result, image_shapes, original_image_sizes)
        for prediction, masks, size in zip(found, in_boxes, original_image_sizes, strict=True):
            if masks is not None:
                prediction["masks_in_boxes"], prediction["image_size"] = masks, size
        return found
