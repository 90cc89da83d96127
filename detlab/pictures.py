"""Pictures of predictions, alone or beside ground truth."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import ImageDraw, ImageFont
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as F
from torchvision.utils import draw_bounding_boxes, draw_keypoints, make_grid

from detlab.engine import Device, predict
from detlab.masks import decode
from detlab.storage import replacing
from detlab.structures import ClassMap, DetectionDataset, IouType, Keypoints, Prediction, Sample

Colour = tuple[int, int, int]

# Distinct on dark and light (Okabe and Ito's palette, safe for the colour-blind).
COLOURS: tuple[Colour, ...] = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167),
)  # fmt: skip


def draw(
    image: Tensor,
    objects: Mapping[str, Any],
    class_map: ClassMap,
    keypoints: Keypoints | None,
    *,
    threshold: float,
    shorter_side: int,
    colours: Sequence[Colour] | None = None,
) -> Tensor:
    """Boxes, masks, keypoints, names and scores on a picture; lines and letters grow with it.

    Args:
        image: uint8 `[3, H, W]`.
        objects: a target or a prediction: `boxes`, `labels`, optionally `scores`, `masks` (`[N, H, W]` of 0 and 1, or
            `[N, 1, H, W]` of probabilities) and `keypoints` (`[N, P, 3]`: x, y, visibility).
        class_map: for the names.
        keypoints: for the lines between the points; None where nobody knows them.
        threshold: objects with a lower score are left out.
        shorter_side: pixels that small pictures are enlarged to, so that the text can be read.
        colours: one for each object; by default those of `COLOURS` in turn.

    Returns:
        uint8 `[3, H', W']`.
    """
    keep = objects["scores"] >= threshold if "scores" in objects else torch.ones(len(objects["labels"])).bool()
    boxes, labels = objects["boxes"].as_subclass(Tensor)[keep].cpu(), objects["labels"][keep].tolist()
    names = [class_map.name(label) for label in labels]
    if "scores" in objects:
        names = [f"{name} {score:.2f}" for name, score in zip(names, objects["scores"][keep].tolist(), strict=True)]
    if colours is None:
        colours = [COLOURS[i % len(COLOURS)] for i in range(len(labels))]
    else:
        colours = [colour for colour, kept in zip(colours, keep.tolist(), strict=True) if kept]
    scale = max(1.0, shorter_side / min(image.shape[-2:]))
    size = [round(side * scale) for side in image.shape[-2:]]
    picture = F.resize(image.as_subclass(Tensor).cpu(), size, antialias=True)
    if not labels:
        return picture
    if "masks" in objects:
        masks = objects["masks"].as_subclass(Tensor)[keep].cpu().float().reshape(len(labels), 1, *image.shape[-2:])
        masks = F.resize(masks, size, antialias=True)[:, 0] >= 0.5
        picture = picture.clone()
        # Not by torchvision: it paints black where masks overlap, or goes over the whole picture for each of them.
        for mask, colour in zip(masks, colours, strict=True):
            mixed = torch.lerp(picture[:, mask].float(), torch.tensor(colour).float()[:, None], 0.45)
            picture[:, mask] = mixed.round().to(torch.uint8)
    unit = max(1, round(min(size) / 400))
    picture = draw_bounding_boxes(picture, boxes * scale, colors=list(colours), width=2 * unit)
    if "keypoints" in objects:
        limbs = list(keypoints.skeleton) if keypoints is not None else None
        for points, colour in zip(objects["keypoints"].as_subclass(Tensor)[keep].cpu(), colours, strict=True):
            picture = draw_keypoints(
                picture, points[None, :, :2] * scale, connectivity=limbs, colors=colour,
                visibility=points[None, :, 2] > 0, radius=2 * unit, width=unit,
            )  # fmt: skip
    return _labelled(picture, names, boxes * scale, colours, unit)


def _labelled(picture: Tensor, names: Sequence[str], boxes: Tensor, colours: Sequence[Colour], unit: int) -> Tensor:
    """Names in black on their colour, each inside its box at the upper left corner, or left of that where the picture ends.

    Not by torchvision's `labels`, whose letters stay at 10 pixels on a photograph of 4000.
    """
    canvas = F.to_pil_image(picture)
    pen, font, margin = ImageDraw.Draw(canvas), ImageFont.load_default(10 * unit), 3 * unit
    for name, (left, top, _, _), colour in zip(names, boxes.tolist(), colours, strict=True):
        room = canvas.width - pen.textlength(name, font=font) - margin
        corner = (max(0, min(left + margin, room)), top + margin)
        x0, y0, x1, y1 = pen.textbbox(corner, name, font=font)
        pen.rectangle((x0 - unit, y0 - unit, x1 + unit, y1 + unit), fill=colour)
        pen.text(corner, name, fill="black", font=font)
    return F.pil_to_tensor(canvas)


def of_rows(
    rows: Sequence[Mapping[str, Any]], labels: Mapping[Any, int], iou_types: Sequence[IouType]
) -> dict[str, Any]:
    """COCO results or annotations of one image as `draw` takes them.

    Args:
        rows: with `bbox` and `category_id`; results also with `score`.
        labels: by category id.
        iou_types: what is drawn beside boxes: masks in compressed run lengths (polygons are left out), keypoints.
    """
    boxes = torch.tensor([row["bbox"] for row in rows], dtype=torch.float32).reshape(-1, 4)
    objects: dict[str, Any] = {
        "boxes": torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1),
        "labels": torch.tensor([labels[row["category_id"]] for row in rows], dtype=torch.int64),
    }
    if all("score" in row for row in rows):
        objects["scores"] = torch.tensor([row["score"] for row in rows], dtype=torch.float32)
    if "segm" in iou_types and rows and all(_is_compressed(row["segmentation"]) for row in rows):
        masks = [row["segmentation"] for row in rows]
        objects["masks"] = decode(masks, *masks[0]["size"])[:, None]
    if "keypoints" in iou_types and rows:
        points = torch.tensor([row["keypoints"] for row in rows], dtype=torch.float32)
        objects["keypoints"] = points.reshape(len(rows), -1, 3)
    return objects


def _is_compressed(segmentation: Any) -> bool:
    """Whether a mask is as a run writes it; polygons are scored, but not drawn."""
    return isinstance(segmentation, dict) and isinstance(segmentation["counts"], str | bytes)


def jpeg(picture: Tensor, *, longer_side: int | None = None) -> bytes:
    """A picture, uint8 `[3, H, W]`, as a JPEG file for a page; no side longer than `longer_side`."""
    image = F.to_pil_image(picture)
    if longer_side is not None:
        image.thumbnail((longer_side, longer_side))
    file = io.BytesIO()
    image.save(file, format="JPEG", quality=85)
    return file.getvalue()


def save(picture: Tensor, path: Path) -> None:
    """Write a picture, uint8 `[3, H, W]`, whole or not at all: as JPEG where its name says so, else as PNG.

    Raises:
        OSError: it cannot be written.
    """
    jpeg = path.suffix.lower() in (".jpg", ".jpeg")
    settings: dict[str, Any] = {"format": "JPEG", "quality": 95} if jpeg else {"format": "PNG"}
    with replacing(path) as file:
        F.to_pil_image(picture).save(file, **settings)


def comparison(
    samples: Sequence[Sample],
    predictions: Sequence[Prediction],
    class_map: ClassMap,
    keypoints: Keypoints | None,
    *,
    threshold: float,
) -> Tensor:
    """A grid of pictures, two samples a row: of each the prediction on the left, the ground truth on the right.

    Of the ground truth only what is predicted is shown: no keypoints beside boxes.

    Returns:
        uint8 `[3, H, W]`.
    """
    pictures = []
    for (image, target), prediction in zip(samples, predictions, strict=True):
        truth = {field: value for field, value in target.items() if field in prediction}
        pictures += [
            draw(image, objects, class_map, keypoints, threshold=threshold, shorter_side=288)
            for objects in (prediction, truth)
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
    return comparison(samples, predictions, dataset.class_map, dataset.keypoints, threshold=0.5)
