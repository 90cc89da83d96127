"""Ground truth and detections as many and as large as those of COCO's val2017, made from a seed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from detlab.evaluation.results import run_lengths
from detlab.structures import ClassMap, Prediction

# Height and width of images, in pixels.
SIZES = ((480, 640), (640, 480), (427, 640), (640, 640))
# With these radii, uniform in their logarithm, 2 of 5 objects are small for COCO (below 32^2 pixels), 1 of 4 large (above 96^2).
RADII = (4.6, 117.0)
CORNERS = (20, 30)  # of an outline
# Of the detections an object has some in its place, and as many as this stand elsewhere.
NEAR, ASTRAY = 3.0, 2.0
LIMIT = 100  # detections of an image that count
MASK_SIDE = 28  # cells of a mask head's output
# Coordinates of detections are whole multiples of it, in pixels: float32 holds them and their differences exactly, so that
# whoever turns corners into widths, in whatever arithmetic, finds the same ones.
GRID = 1 / 64

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Density:
    """How full images are; by default as those of val2017 (its annotation file: 36,781 objects, 446 of them crowds).

    Args:
        objects: of an image, on average.
        classes: in all.
        crowds: share of the objects that are regions of many.
    """

    objects: float = 36_781 / 5_000
    classes: int = 80
    crowds: float = 446 / 36_781


@dataclass(frozen=True)
class _Places:
    """Where things of a kind stand: N of them, sorted by image."""

    images: Integers  # [N], index of the image
    labels: Integers  # [N], 1..K
    boxes: Floats  # [N, 4], xyxy in pixels


class MadeImages:
    """Images of which only the objects and the detections exist; image k has the id k + 1, a class its label.

    An object has about 3 detections with jittered boxes, most of its class, scored the higher the better they fit; 2 more for
    each object stand anywhere. The 100 best of an image are kept, which leaves about 36 on average with val2017's density.

    Args:
        images: how many.
        density: how full they are.
        seed: same numbers, same images.
    """

    keypoints = None

    def __init__(self, images: int, density: Density | None = None, *, seed: int = 0) -> None:
        self.density = Density() if density is None else density
        self.seed = seed
        self.class_map = ClassMap(tuple(f"class{k}" for k in range(1, self.density.classes + 1)))
        random = np.random.default_rng(seed)
        self.sizes: Integers = np.asarray(SIZES)[random.integers(len(SIZES), size=images)]
        self._corners, self._outlines, self._objects = self._make_objects(random, images)
        self._scores, self._detections = self._make_detections(random)
        self._ends = np.searchsorted(self._detections.images, np.arange(images + 1))

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def objects(self) -> int:
        """How many objects there are, crowds included."""
        return len(self._objects.images)

    @property
    def detections(self) -> int:
        """How many detections there are."""
        return len(self._detections.images)

    @property
    def crowds(self) -> int:
        """How many objects are crowds."""
        return math.ceil(self.objects * self.density.crowds)

    def image_size(self, index: int) -> tuple[int, int]:
        """Height and width of an image in pixels."""
        height, width = self.sizes[index].tolist()
        return height, width

    def _make_objects(self, random: np.random.Generator, images: int) -> tuple[Integers, Floats, _Places]:
        """Numbers of corners `[N]`, outlines `[N, 30, 2]` with the last corner repeated, and the objects."""
        count = round(images * self.density.objects)
        crowded = random.gamma(1.2, size=images)
        where = np.sort(random.choice(images, count, p=crowded / crowded.sum()))
        # Of all classes an image has two or three, as photographs do.
        classes = random.integers(1, self.density.classes + 1, (images, 3))
        labels = classes[where, random.integers(3, size=count)]
        corners = random.integers(CORNERS[0], CORNERS[1] + 1, count)
        middle, radius = self._somewhere(random, where)
        corner = np.minimum(np.arange(CORNERS[1]), corners[:, None] - 1)
        angles = 2 * np.pi * corner / corners[:, None]
        ragged = 1 + 0.15 * np.take_along_axis(random.standard_normal(corner.shape).clip(-2, 2), corner, 1)
        around = ragged[..., None] * np.stack([np.cos(angles), np.sin(angles)], 2)
        outlines = (middle[:, None] + radius[:, None] * around).clip(0, self._width_and_height(where)[:, None]).round(2)
        return corners, outlines, _Places(where, labels, np.concatenate([outlines.min(1), outlines.max(1)], 1))

    def _width_and_height(self, where: Integers) -> Integers:
        return self.sizes[where][:, ::-1]

    def _somewhere(self, random: np.random.Generator, where: Integers) -> tuple[Floats, Floats]:
        """Middles and half axes, `[N, 2]` each: x and y in pixels."""
        inside = self._width_and_height(where)
        middle = random.uniform(8, inside - 8)
        stretched = np.exp(random.uniform(-0.4, 0.4, len(where)))
        radius = np.exp(random.uniform(np.log(RADII[0]), np.log(RADII[1]), len(where)))
        return middle, radius[:, None] * np.stack([stretched, 1 / stretched], 1)

    def _make_detections(self, random: np.random.Generator) -> tuple[NDArray[np.float32], _Places]:
        """Scores `[D]`, and the detections; of an image the better ones first."""
        objects, classes = self._objects, self.density.classes
        near = np.repeat(np.arange(self.objects), random.poisson(NEAR, self.objects))
        amiss = np.exp(random.uniform(np.log(0.01), np.log(0.3), len(near)))  # of its width and height
        boxes = objects.boxes[near]
        extent = boxes[:, 2:] - boxes[:, :2]
        boxes = boxes + np.tile(extent * amiss[:, None], 2) * random.standard_normal((len(near), 4))
        right = random.random(len(near)) < 0.85
        labels = np.where(right, objects.labels[near], random.integers(1, classes + 1, len(near)))
        scores = 0.95 - 2 * amiss + 0.15 * random.standard_normal(len(near))

        alone = random.integers(len(self), size=random.poisson(ASTRAY * self.objects))
        middle, radius = self._somewhere(random, alone)
        images = np.concatenate([objects.images[near], alone])
        boxes = np.concatenate([boxes, np.concatenate([middle - radius, middle + radius], 1)])
        labels = np.concatenate([labels, random.integers(1, classes + 1, len(alone))])
        scores = np.concatenate([scores, 0.05 + 0.6 * random.beta(1, 3, len(alone))]).clip(0.05, 0.999)
        scores -= 0.01 * random.random(len(scores))  # no two of them equal where they were clipped
        kept = _best_of_each(images, scores)
        places = _Places(images[kept], labels[kept], self._on_grid(boxes[kept], images[kept]))
        return scores[kept].astype(np.float32), places

    def _on_grid(self, boxes: Floats, where: Integers) -> Floats:
        """Boxes inside their images, a pixel wide at least, with coordinates that float32 holds exactly."""
        limits = self._width_and_height(where)
        low = np.sort(boxes.reshape(-1, 2, 2), 1)
        first = low[:, 0].clip(0, limits - 1)
        last = low[:, 1].clip(first + 1, limits)
        return (np.concatenate([first, last], 1) / GRID).round() * GRID

    @cached_property
    def _ground_truth(self) -> dict[str, Any]:
        sizes = self.sizes.tolist()
        images = [
            {"id": i, "file_name": f"{i:012d}.jpg", "height": height, "width": width}
            for i, (height, width) in enumerate(sizes, start=1)
        ]
        crowds = set(np.random.default_rng(self.seed).choice(self.objects, self.crowds, replace=False).tolist())
        flat = self._outlines.reshape(self.objects, -1).tolist()
        corners = self._objects.boxes
        xywh = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1).round(2)
        places = zip(
            self._objects.images.tolist(), self._objects.labels.tolist(), xywh.tolist(), _areas(self._outlines).tolist(),
            strict=True,
        )  # fmt: skip
        annotations = []
        for number, (image, label, box, area) in enumerate(places):
            outline = [flat[number][: 2 * int(self._corners[number])]]
            shape = {"segmentation": outline, "area": area, "iscrowd": 0}
            if number in crowds:
                shape = _as_crowd(outline, *sizes[image])
            annotations.append({"id": number + 1, "image_id": image + 1, "category_id": label, "bbox": box, **shape})
        return {"info": {}, "images": images, "annotations": annotations, "categories": self.class_map.categories()}

    def ground_truth(self) -> dict[str, Any]:
        """COCO dict: outlines of 20 to 30 corners, crowds as run lengths; the same object at each call."""
        return self._ground_truth

    def prediction(self, index: int, *, masks: bool) -> Prediction:
        """What a detector of detlab gives for an image: `boxes`, `labels`, `scores`; masks as `masks_in_boxes`, `image_size`."""
        chosen = slice(self._ends[index], self._ends[index + 1])
        found = Prediction(
            boxes=torch.from_numpy(self._detections.boxes[chosen].astype(np.float32)),
            labels=torch.from_numpy(self._detections.labels[chosen]),
            scores=torch.from_numpy(self._scores[chosen]),
        )
        if masks:
            found["masks_in_boxes"] = _blobs(np.random.default_rng((self.seed, index)), len(found["boxes"]))
            found["image_size"] = self.image_size(index)
        return found


def _best_of_each(images: Integers, scores: Floats) -> Integers:
    """Indices of the best-scored of each image, up to `LIMIT`, by image and then by score."""
    order = np.lexsort((-scores, images))
    by_image = images[order]
    rank = np.arange(len(order)) - np.searchsorted(by_image, by_image)
    return order[rank < LIMIT]


def _areas(outlines: Floats) -> Floats:
    """Areas of polygons `[N, C, 2]`, in pixels (the shoelace formula)."""
    x, y = outlines[..., 0], outlines[..., 1]
    return 0.5 * np.abs((x * np.roll(y, -1, 1) - y * np.roll(x, -1, 1)).sum(1)).round(4)


def _as_crowd(outline: list[list[float]], height: int, width: int) -> dict[str, Any]:
    """What makes a crowd of an object: run lengths as a file has them, uncompressed, and their area."""
    encoded = cast("Any", coco_mask).frPyObjects(outline, height, width)[0]
    counts = run_lengths(encoded["counts"]).tolist()
    area = float(sum(counts[1::2]))
    return {"segmentation": {"counts": counts, "size": [height, width]}, "area": area, "iscrowd": 1}


def _blobs(random: np.random.Generator, count: int) -> torch.Tensor:
    """Probabilities as a mask head gives them, float32 `[count, 1, 28, 28]`: a smooth shape of some lobes that fills its box."""
    side = (np.arange(MASK_SIDE, dtype=np.float32) + 0.5) / MASK_SIDE * 2 - 1
    x, y = np.meshgrid(side, side)
    radius, angle = np.hypot(x, y), np.arctan2(y, x)
    lobes = random.integers(2, 6, (count, 1, 1, 1))
    phase, depth = random.uniform(0, 2 * np.pi, lobes.shape), random.uniform(0, 0.25, lobes.shape)
    edge = 0.85 + depth * np.cos(lobes * angle + phase)
    return torch.from_numpy((1 / (1 + np.exp(8 * (radius - edge)))).astype(np.float32))
