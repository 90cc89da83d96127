"""Pictures of predictions beside ground truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as F
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks, make_grid

from detlab.engine import Device, predict
from detlab.structures import ClassMap, DetectionDataset, Prediction, Sample

# Distinct on dark and light (Okabe and Ito's palette, safe for the colour-blind).
COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167))


def draw(
    image: Tensor, objects: Mapping[str, Any], class_map: ClassMap, *, threshold: float, shorter_side: int
) -> Tensor:
    """Boxes, masks, names and scores on a picture.

    Args:
        image: uint8 `[3, H, W]`.
        objects: a target or a prediction: `boxes`, `labels`, optionally `scores` and `masks` (`[N, H, W]` of 0 and 1, or
            `[N, 1, H, W]` of probabilities).
        class_map: for the names.
        threshold: objects with a lower score are left out.
        shorter_side: pixels that small pictures are enlarged to, so that the text can be read.

    Returns:
        uint8 `[3, H', W']`.
    """
    keep = objects["scores"] >= threshold if "scores" in objects else torch.ones(len(objects["labels"])).bool()
    boxes, labels = objects["boxes"].as_subclass(Tensor)[keep].cpu(), objects["labels"][keep].tolist()
    names = [class_map.name(label) for label in labels]
    if "scores" in objects:
        names = [f"{name} {score:.2f}" for name, score in zip(names, objects["scores"][keep].tolist(), strict=True)]
    colours = [COLOURS[i % len(COLOURS)] for i in range(len(labels))]
    scale = max(1.0, shorter_side / min(image.shape[-2:]))
    size = [round(side * scale) for side in image.shape[-2:]]
    picture = F.resize(image.as_subclass(Tensor).cpu(), size, antialias=True)
    if not labels:
        return picture
    if "masks" in objects:
        masks = objects["masks"].as_subclass(Tensor)[keep].cpu().float().reshape(len(labels), 1, *image.shape[-2:])
        masks = F.resize(masks, size, antialias=True)[:, 0] >= 0.5
        # One by one: given together, torchvision paints black where masks overlap.
        for mask, colour in zip(masks, colours, strict=True):
            picture = draw_segmentation_masks(picture, mask, alpha=0.45, colors=colour)
    return draw_bounding_boxes(
        picture, boxes * scale, labels=names, colors=list(colours), width=2, label_colors="black", fill_labels=True
    )


def comparison(
    samples: Sequence[Sample], predictions: Sequence[Prediction], class_map: ClassMap, *, threshold: float
) -> Tensor:
    """A grid of pictures, two samples a row: of each the prediction on the left, the ground truth on the right.

    Returns:
        uint8 `[3, H, W]`.
    """
    pictures = [
        draw(image, objects, class_map, threshold=threshold, shorter_side=288)
        for (image, target), prediction in zip(samples, predictions, strict=True)
        for objects in (prediction, target)
    ]
    height, width = (max(picture.shape[side] for picture in pictures) for side in (1, 2))
    padded = [F.pad(p, [0, 0, width - p.shape[2], height - p.shape[1]]) for p in pictures]
    return make_grid(padded, nrow=4, padding=4, pad_value=255)


def comparison_of(model: nn.Module, dataset: DetectionDataset, device: Device) -> Tensor | None:
    """The grid for the first images of a data set that have objects, up to six, with predictions scored 0.5 and more.

    None where no image has any.
    """
    samples: list[Sample] = []
    for index in range(len(dataset)):
        image, target = dataset[index]
        if len(target["labels"]):
            samples.append((image, target))
        if len(samples) == 6:
            break
    if not samples:
        return None
    predictions = [prediction for image, _ in samples for prediction in predict(model, [image], device)]
    return comparison(samples, predictions, dataset.class_map, threshold=0.5)
