"""What is odd in the objects and classes of a data set: rules that only `detlab validate` takes the time for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from detlab.data.faults import ROUNDING, Fault, box_in_words, faults_at, image_limits
from detlab.data.index import Floats, Index, Segmentations
from detlab.structures import ClassMap

# How far, in pixels, the borders of a mask and of its box may be apart; those of COCO's are by up to 1.
MASK_OFF = 2.0
# An area is off where it is neither within this factor of the mask's nor of the box's, nor so few pixels from them.
AREA_FACTOR, AREA_PIXELS = 2.0, 16.0
# How far a labelled point may lie out of its box, in widths and heights of it, beside this many pixels.
POINT_OFF, POINT_PIXELS = 0.25, 4.0
# Fewer objects than these for training are few.
FEW = 10
# So many outlines are measured at once: those of COCO's size would take gigabytes.
CHUNK = 50_000


def oddities(index: Index, limit: int) -> Iterator[Fault]:
    """What is odd in single objects and images of an index.

    Args:
        index: of one part; objects that `object_faults` finds may be found here once more.
        limit: how many objects a model reports in an image.
    """
    counted = ~(index.crowd | index.ignored)
    sound = np.asarray(np.isfinite(index.boxes).all(1) & (index.boxes[:, 2:] > 0).all(1))
    tiny = sound & counted & (index.boxes[:, 2:] < 1).any(1)
    yield from faults_at("box under a pixel", index, tiny, lambda i: box_in_words(index, i))
    yield from _boxes_twice(index, sound & counted)
    if index.segmentations is None:
        yield from _areas_off(index, sound & counted, None)
    else:
        yield from _outline_oddities(index, index.segmentations, sound)
    if index.points is not None:
        yield from _points_off(index, index.points, sound)
    yield from _image_oddities(index, counted, limit)


def _boxes_twice(index: Index, sound: NDArray[np.bool_]) -> Iterator[Fault]:
    rows = np.flatnonzero(sound)
    keys = np.column_stack((index.image_of[rows], index.labels[rows], index.boxes[rows]))
    # Stable: of equal boxes the first of the file comes first.
    order = np.lexsort(keys.T[::-1])
    same = (keys[order][1:] == keys[order][:-1]).all(1)
    before = dict(zip(rows[order][1:][same].tolist(), rows[order][:-1][same].tolist(), strict=True))
    again = np.zeros(len(sound), np.bool_)
    again[list(before)] = True

    def said(i: int) -> str:
        name = index.class_map.name(int(index.labels[i]))
        return f"{box_in_words(index, i)} of {name!r} is that of annotation {index.annotation_ids[before[i]]} too"

    yield from faults_at("box twice", index, again, said)


def _areas_off(index: Index, asked: NDArray[np.bool_], of_masks: Floats | None) -> Iterator[Fault]:
    """Where the area is neither near the mask's nor near the box's; without masks, where it is far above the box's.

    Files of keypoints may have the area of masks that are not in them.
    """
    areas, of_boxes = index.areas, index.boxes[:, 2] * index.boxes[:, 3]
    with np.errstate(invalid="ignore"):
        off = asked & (areas >= 0) & np.isfinite(areas)
        for other in (of_boxes,) if of_masks is None else (of_boxes, of_masks):
            least = other / AREA_FACTOR if of_masks is not None else 0
            near = (areas <= AREA_FACTOR * other) & (areas >= least)
            off &= ~(near | (np.abs(areas - other) <= AREA_PIXELS) | np.isnan(other))

    def said(i: int) -> str:
        mask = f", its mask {of_masks[i]:g}" if of_masks is not None else ""
        return f"area {areas[i]:g}, but its box has {of_boxes[i]:g} pixels{mask}"

    yield from faults_at("area off", index, off, said)


@dataclass(frozen=True)
class _Extents:
    """What outlines cover; NaN for objects without one, or in images of unknown size."""

    boxes: Floats  # [N, 4], xyxy in pixels
    areas: Floats  # [N], pixels
    flat: NDArray[np.bool_]  # [N], whether they have a polygon without area


def _extents(index: Index, outlines: Segmentations) -> _Extents:
    sizes, count = index.sizes[index.image_of], len(outlines)
    found = _Extents(np.full((count, 4), np.nan), np.full(count, np.nan), np.zeros(count, np.bool_))
    known = (sizes > 0).all(1)
    polygons = np.flatnonzero(outlines.are_polygons & known)
    for chunk in (polygons[i : i + CHUNK] for i in range(0, len(polygons), CHUNK)):
        found.boxes[chunk], found.areas[chunk], found.flat[chunk] = _of_polygons(outlines.take(chunk))
    runs = np.flatnonzero(outlines.are_runs & known)
    for chunk in (runs[i : i + CHUNK] for i in range(0, len(runs), CHUNK)):
        rles: Any = [outlines.encoded(i, *sizes[i].tolist()) for i in chunk.tolist()]
        x, y, width, height = coco_mask.toBbox(rles).reshape(-1, 4).T
        found.boxes[chunk] = np.stack((x, y, x + width, y + height), 1)
        # One by one: pycocotools 2.0.11 takes no list of more than 255.
        found.areas[chunk] = [coco_mask.area(rle) for rle in rles]
    return found


def _of_polygons(outlines: Segmentations) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """Enclosing boxes, areas (the sum of the polygons', by the shoelace formula), and whether one polygon has none.

    All objects have a polygon; of a polygon of no points nothing is known.
    """
    begin, end = outlines.coordinates_of[:-1] // 2, outlines.coordinates_of[1:] // 2
    coordinates = outlines.coordinates.astype(np.float64)
    points = (coordinates / 100 if outlines.coordinates.dtype.kind == "i" else coordinates).reshape(-1, 2)
    count = len(outlines)
    boxes, areas, flat = np.full((count, 4), np.nan), np.zeros(count), np.zeros(count, np.bool_)
    full = end > begin
    if not full.any():
        return boxes, areas, flat
    object_of = np.repeat(np.arange(count), np.diff(outlines.polygons_of))[full]
    x, y = points.T
    following = np.arange(1, len(points) + 1)
    following[end[full] - 1] = begin[full]
    with np.errstate(invalid="ignore", over="ignore"):
        crosses = np.add.reduceat(x * y[following] - x[following] * y, begin[full])
        of_each = np.abs(crosses) / 2
        lows, highs = np.minimum.reduceat(points, begin[full]), np.maximum.reduceat(points, begin[full])
    areas += np.bincount(object_of, of_each, minlength=count)
    flat[object_of[of_each == 0]] = True
    boxes[:] = [np.inf, np.inf, -np.inf, -np.inf]
    np.minimum.at(boxes[:, :2], object_of, lows)
    np.maximum.at(boxes[:, 2:], object_of, highs)
    boxes[~np.isfinite(boxes).all(1)] = np.nan
    return boxes, areas, flat


def _outline_oddities(index: Index, outlines: Segmentations, sound: NDArray[np.bool_]) -> Iterator[Fault]:
    extents = _extents(index, outlines)
    limits = image_limits(index.sizes[index.image_of])

    def extent(i: int) -> str:
        return f"{[round(float(v), 2) for v in extents.boxes[i]]} (x0, y0, x1, y1)"

    with np.errstate(invalid="ignore"):
        over = np.maximum(-extents.boxes, extents.boxes - limits).max(1)
        apart = np.abs(np.clip(extents.boxes, 0, limits) - np.clip(index.boxes_xyxy(), 0, limits)).max(1)
    yield from faults_at(
        "polygon outside", index, over > ROUNDING, lambda i: f"a polygon reaches to {extent(i)}, out of its image"
    )
    yield from faults_at("polygon without area", index, extents.flat, lambda i: "the points of a polygon lie in a line")
    # A mask without pixels is another fault.
    off = sound & (apart > MASK_OFF) & (extents.areas > 0)
    yield from faults_at(
        "mask off its box",
        index,
        off,
        lambda i: f"{box_in_words(index, i)} (x, y, width, height), but its mask covers {extent(i)}",
    )
    yield from _areas_off(index, sound & (extents.areas > 0), extents.areas)


def _points_off(index: Index, points: Floats, sound: NDArray[np.bool_]) -> Iterator[Fault]:
    x, y, visibility = (points[..., k] for k in range(3))
    x0, y0, x1, y1 = index.boxes_xyxy().T[:, :, None]
    margins = POINT_OFF * index.boxes[:, 2:] + POINT_PIXELS
    right, low = margins.T[:, :, None]
    with np.errstate(invalid="ignore"):
        out = (visibility > 0) & ((x < x0 - right) | (x > x1 + right) | (y < y0 - low) | (y > y1 + low))

    def said(i: int) -> str:
        assert index.keypoints is not None
        names = [index.keypoints.names[k] for k in np.flatnonzero(out[i])]
        first = points[i, np.flatnonzero(out[i])[0], :2].tolist()
        return f"{', '.join(names)} lie(s) far out of its {box_in_words(index, i)}, the first at {first}"

    yield from faults_at("keypoint off its box", index, sound & ~index.crowd & out.any(1), said)


def _image_oddities(index: Index, counted: NDArray[np.bool_], limit: int) -> Iterator[Fault]:
    counts = np.bincount(index.image_of[counted], minlength=len(index))
    for image in np.flatnonzero(counts > limit).tolist():
        said = f"{counts[image]} objects, but the model reports at most {limit}"
        yield Fault("too many objects", index.file_names[image], None, said)
    for image in np.flatnonzero(np.diff(index.offsets) == 0).tolist():
        yield Fault("no objects", index.file_names[image], None, "no object is on it")


@dataclass(frozen=True)
class ClassCount:
    """How often one class occurs, by part."""

    name: str
    label: int
    category_id: int  # in the files
    objects: dict[str, int]
    images: dict[str, int]


def class_counts(parts: Mapping[str, Index]) -> list[ClassCount]:
    """The objects of each class, crowd regions included, and the images that show it, in each part; in the order of the labels."""
    class_map = next(iter(parts.values())).class_map
    labels = len(class_map) + 1
    objects = {part: np.bincount(index.labels, minlength=labels) for part, index in parts.items()}
    images = {
        part: np.bincount(np.unique(index.image_of * labels + index.labels) % labels, minlength=labels)
        for part, index in parts.items()
    }
    return [
        ClassCount(
            name,
            k,
            class_map.category_id(k),
            {part: int(objects[part][k]) for part in parts},
            {part: int(images[part][k]) for part in parts},
        )
        for k, name in enumerate(class_map.names, 1)
    ]


def class_faults(parts: Mapping[str, Index], counts: list[ClassCount]) -> Iterator[Fault]:
    """What is odd in the classes: absent from a part, of few objects, written in two ways, or the background."""
    filled = [part for part, index in parts.items() if len(index)]
    for count in counts:
        lacking = [part for part in filled if not count.objects[part]]
        if lacking == filled:
            yield Fault("class unused", "", None, f"no object of class {count.name!r}")
        elif lacking:
            have = ", ".join(f"{count.objects[part]} in {part}" for part in filled if part not in lacking)
            yield Fault(
                "class absent", "", None, f"class {count.name!r} has no object in {', '.join(lacking)}, but {have}"
            )
        if "train" in filled and 0 < count.objects["train"] < FEW:
            yield Fault(
                "class of few objects", "", None, f"class {count.name!r}: {count.objects['train']} object(s) in train"
            )
    yield from _class_name_faults(next(iter(parts.values())).class_map)


def _class_name_faults(class_map: ClassMap) -> Iterator[Fault]:
    alike: dict[str, str] = {}
    for name in class_map.names:
        plain = "".join(name.casefold().replace("_", " ").replace("-", " ").split())
        if plain in alike:
            yield Fault("class names alike", "", None, f"classes {alike[plain]!r} and {name!r}")
        alike[plain] = name
        if plain in ("background", "bg"):
            yield Fault("background class", "", None, f"class {name!r}")
