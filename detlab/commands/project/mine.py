"""A data set and a model of your own: two small examples that work, to be changed into what you need."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import mobilenet_backbone

CLASSES = ("disc", "square")


class Shapes(Dataset[tuple[Tensor, dict[str, Any]]]):
    """Bright discs and squares on noise, drawn from the index: `conf/dataset/shapes.yaml` builds it.

    Put your own files in its place: `__getitem__` returns an image (PIL, or uint8 `[3, H, W]`) and its objects. `image_id` is a
    whole number, another one for each image; a box encloses its object, `x1` is the last column + 1; labels begin with 1.

    Args:
        count: number of images.
        height: of an image, in pixels.
        width: of an image, in pixels.
    """

    def __init__(self, *, count: int, height: int, width: int) -> None:
        self.count, self.height, self.width = count, height, width

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        chance = torch.Generator().manual_seed(index)
        image = torch.randint(0, 90, (3, self.height, self.width), generator=chance, dtype=torch.uint8)
        side = min(self.height, self.width) // 3
        y, x = torch.meshgrid(torch.arange(self.height), torch.arange(self.width), indexing="ij")
        masks, labels = [], []
        # One in each half, so that no shape covers another.
        for left in (0, self.width // 2):
            label = int(torch.randint(1, 3, (), generator=chance))
            x0 = left + int(torch.randint(0, self.width // 2 - side, (), generator=chance))
            y0 = int(torch.randint(0, self.height - side, (), generator=chance))
            mask = (x >= x0) & (x < x0 + side) & (y >= y0) & (y < y0 + side)
            if CLASSES[label - 1] == "disc":
                mask &= (x - x0 - side / 2 + 0.5) ** 2 + (y - y0 - side / 2 + 0.5) ** 2 <= (side / 2) ** 2
            image[:, mask] = torch.tensor([230, 180, 60], dtype=torch.uint8)[:, None]
            masks.append(mask)
            labels.append(label)
        target = {
            "boxes": torch.stack([enclosing_box(mask) for mask in masks]),
            "labels": torch.tensor(labels),
            "masks": torch.stack(masks).to(torch.uint8),
            "image_id": index + 1,
        }
        return image, target


def enclosing_box(mask: Tensor) -> Tensor:
    """The box x0, y0, x1, y1 of a mask `[H, W]`, float32 `[4]`."""
    rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
    return torch.stack([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]).float()


def detector(*, num_classes: int, min_size: int, max_size: int, anchor_sizes: Sequence[int]) -> FasterRCNN:
    """Faster R-CNN on MobileNetV3 Small with a feature pyramid: `conf/model/mine.yaml` builds it.

    Any module will do that keeps torchvision's contract: `model(images, targets)` gives a dict of losses in training,
    `model(images)` a list of dicts (`boxes`, `labels`, `scores`) in evaluation; `iou_types` says what it predicts.

    Args:
        num_classes: with the background; a run passes it, from the classes of the data.
        min_size: shorter side of the images as the model sees them, in pixels.
        max_size: longest side.
        anchor_sizes: three, one for each map of the pyramid, in pixels.
    """
    backbone = mobilenet_backbone(backbone_name="mobilenet_v3_small", weights=None, fpn=True, trainable_layers=6)
    anchors = AnchorGenerator(tuple((size,) for size in anchor_sizes), ((0.5, 1.0, 2.0),) * len(anchor_sizes))
    model = FasterRCNN(
        backbone,
        num_classes,
        min_size=min_size,
        max_size=max_size,
        rpn_anchor_generator=anchors,
        box_detections_per_img=100,
    )
    model.iou_types = ("bbox",)  # type: ignore[assignment]
    return model
