"""What can be wrong with a data set: every kind of fault, and those of single objects that training looks for too."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from detlab.data.index import Floats, Index, Integers, Segmentations

# How far, in pixels, a box may reach over its image's border by rounding: it is then cut there, and no fault.
ROUNDING = 1.0

# The worst first.
Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class Kind:
    """A kind of fault.

    Args:
        severity: `error` for what no run may learn from or be scored on, `warning` for what is odd, `note` for the rest.
        remedy: what to do.
        clips: whether `dataset.invalid=clip` mends it; where not, it drops the object.
        whole: whether it is about all objects together, so that no `dataset.invalid` mends it.
    """

    severity: Severity
    remedy: str
    clips: bool = False
    whole: bool = False


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong.

    Args:
        kind: a key of `KINDS`.
        image: file name, as the files have it; empty where it concerns no single image.
        annotation: as the files number it (an id, a line, a place in the list); None where it concerns no single object.
        said: what is wrong, with the value.
        row: the object's row in the index; None where it is not in it.
    """

    kind: str
    image: str
    annotation: int | str | None
    said: str
    row: int | None = None

    def __str__(self) -> str:
        if not self.image:
            return self.said
        where = f", annotation {self.annotation}" if self.annotation is not None else ""
        return f"{self.image}{where}: {self.said}"


@dataclass(frozen=True)
class Reading:
    """What a format's reader has read.

    Args:
        index: all images of the files, and the objects that could be read.
        folder: that the index' file names are relative to.
        faults: about what could not be read, and is not in the index.
        source: the file or folder that the annotations are from, for messages.
    """

    index: Index
    folder: Path
    faults: Sequence[Fault]
    source: Path


KINDS: dict[str, Kind] = {
    # What readers of formats find, and what no object of theirs becomes.
    "unreadable object": Kind("error", "write it as the format has it, or remove it"),
    "unknown class": Kind("error", "add the class to the file, or correct the object's"),
    "unknown image": Kind("error", "remove the object, or list its image"),
    "annotations missing": Kind("error", "annotate the image, also where nothing is on it, or remove it"),
    "annotations unreadable": Kind("error", "write the image's annotations as the format has them"),
    "image not listed": Kind("warning", "annotate the image, also where nothing is on it, or remove it"),
    "annotation id twice": Kind("warning", "give each annotation an id of its own"),
    "keypoint count": Kind(
        "warning", "num_keypoints is the number of points of visibility 1 or 2; correct it or leave it out"
    ),
    # What `scale_faults` and `object_faults` find, in training too.
    "boxes in 0..1": Kind("error", "boxes are pixels: multiply by the image's width and height", whole=True),
    "boxes by corners": Kind(
        "error", "boxes are x, y, width, height: subtract the first corner from the second", whole=True
    ),
    "box not finite": Kind("error", "correct or remove the object"),
    "box empty": Kind("error", "width and height must be above 0; correct or remove the object"),
    "box outside": Kind("error", "boxes are pixels of the upright image; dataset.invalid=clip cuts them", clips=True),
    "area impossible": Kind("error", "give the area in pixels, or leave it out"),
    "polygon too short": Kind("error", "a polygon has three points or more", clips=True),
    "polygon not finite": Kind("error", "correct or remove the object"),
    "mask empty": Kind("error", "give the object a mask with pixels, or remove it"),
    "outline missing": Kind("error", "give it a mask, or train boxes alone: dataset.iou_types=[bbox]"),
    "keypoints not finite": Kind("error", "correct or remove the object"),
    "keypoint visibility": Kind("error", "visibility is 0 (not labelled), 1 (hidden) or 2 (visible)"),
    "keypoint outside": Kind("error", "a labelled point lies in its image; clip unlabels it", clips=True),
    # What `detlab.data.files` finds, by the files.
    "image missing": Kind("error", "correct the folder or the name; dataset.invalid=drop leaves the image out"),
    "image unreadable": Kind("error", "replace the file, or remove it"),
    "image turned": Kind(
        "error", "the annotations are of the unturned picture: turn them, or remove the file's EXIF orientation"
    ),
    "image of another size": Kind("error", "correct the size in the annotations, or the file"),
    "image in two parts": Kind("error", "keep it in one part: a score on training images says nothing"),
    "image twice": Kind("warning", "keep one of them, with the objects of both"),
    "image very large": Kind(
        "warning", "make it smaller; Pillow takes twice as many pixels for an attack and refuses them"
    ),
    # What `detlab.data.samples` finds in data sets without an index.
    "broken sample": Kind("error", "correct what the data set's class returns for this image"),
    "image id twice": Kind("error", "give each image an image_id of its own"),
    "ground truth differs": Kind("error", "ground_truth() must say of each image what its sample says"),
    # What `detlab.data.rules` finds, in `detlab validate` alone.
    "mask off its box": Kind("warning", "correct the box or the mask"),
    "area off": Kind("warning", "area is that of the mask, or of the box, in pixels; scores by size depend on it"),
    "box twice": Kind("warning", "remove one of the two objects"),
    "box under a pixel": Kind("warning", "remove the object; no detector finds it"),
    "polygon outside": Kind("warning", "polygons are pixels of the upright image; what reaches out is cut"),
    "polygon without area": Kind("warning", "correct the polygon; its mask has hardly a pixel"),
    "keypoint off its box": Kind("warning", "correct the point or the box"),
    "too many objects": Kind(
        "warning", "a model reports no more: raise model.box_detections_per_img, or cut the image up"
    ),
    "class absent": Kind("warning", "split anew, or leave the class out: dataset.classes"),
    "class names alike": Kind("warning", "correct the name, if it is one class"),
    "background class": Kind("warning", "the background needs no class; leave it out: dataset.classes"),
    "class of few objects": Kind("note", "its score will say little"),
    "class unused": Kind("note", "no object has it; leave it out, if no other will: dataset.classes"),
    "no objects": Kind("note", "fine, if nothing is on the image"),
}


def faults_at(kind: str, index: Index, bad: ArrayLike, said: Callable[[int], str]) -> Iterator[Fault]:
    """A fault for each object of an index where `bad`, bool `[N]`, is true; `said` tells it of a row."""
    for i in np.flatnonzero(bad).tolist():
        image = int(np.searchsorted(index.offsets, i, "right")) - 1
        yield Fault(kind, index.file_names[image], int(index.annotation_ids[i]), said(i), i)


def box_in_words(index: Index, row: int) -> str:
    """An object's box as the file has it, rounded."""
    return f"box {[round(float(v), 3) for v in index.boxes[row]]}"


def scale_faults(index: Index) -> Iterator[Fault]:
    """Whether the boxes, taken together, are something else than x0, y0, width, height in pixels: what no box alone shows."""
    rows = np.flatnonzero(np.isfinite(index.boxes).all(1) & (index.boxes[:, 2:] > 0).all(1))
    height, width = index.sizes[index.image_of[rows]].T
    x, y, w, h = index.boxes[rows].T
    if len(rows) and bool((np.maximum(x + w, y + h) <= 1 + 1e-6).all()) and min(height.max(), width.max()) > 2:
        yield from _whole("boxes in 0..1", index, rows, "lie between 0 and 1")
    fit = (w >= x) & (h >= y) & (w <= width + ROUNDING) & (h <= height + ROUNDING)
    over = (x + w > width + ROUNDING) | (y + h > height + ROUNDING)
    # Boxes by corners all fit, and those in the right or the lower half reach out of their image, if read as x, y, width, height.
    if len(rows) >= 4 and fit.mean() >= 0.95 and over.mean() >= 0.3:
        yield from _whole(
            "boxes by corners", index, rows[over], "reach out of their images, unless they are x0, y0, x1, y1"
        )


def _whole(kind: str, index: Index, rows: Integers, said: str) -> Iterator[Fault]:
    """One fault about many objects, with the first of them."""
    first = next(faults_at(kind, index, np.arange(len(index.labels)) == rows[0], lambda i: box_in_words(index, i)))
    said = f"{len(rows)} of {len(index.labels)} boxes {said}; this one is {first.said}"
    yield dataclasses.replace(first, said=said, row=None)


def object_faults(index: Index) -> Iterator[Fault]:
    """The faults of an index' objects that its arrays show cheaply; of each kind in the order of the objects."""
    sizes = index.sizes[index.image_of]
    height, width = sizes.T
    finite = np.isfinite(index.boxes).all(1)
    corners = index.boxes_xyxy()
    limits = image_limits(sizes)
    with np.errstate(invalid="ignore", over="ignore"):
        outside = finite & (np.maximum(-corners, corners - limits).max(1) > ROUNDING)
        # As a sample has it: cut at the border, in float32.
        cut = np.clip(corners, 0, limits).astype(np.float32)
        empty = (index.boxes[:, 2:] <= 0).any(1) | (~outside & (cut[:, 2:] <= cut[:, :2]).any(1))
    yield from faults_at("box not finite", index, ~finite, lambda i: f"{box_in_words(index, i)} is not finite")
    yield from faults_at(
        "box empty", index, finite & empty, lambda i: f"{box_in_words(index, i)} has no width or no height"
    )
    yield from faults_at(
        "box outside",
        index,
        outside & ~empty,
        lambda i: (
            f"{box_in_words(index, i)} (x, y, width, height) reaches out of the image of {height[i]} x {width[i]} (height x width)"
        ),
    )
    bad_area = ~(index.areas >= 0) | np.isinf(index.areas)
    yield from faults_at("area impossible", index, bad_area, lambda i: f"area {index.areas[i]}")
    if index.segmentations is not None:
        yield from _outline_faults(index, index.segmentations)
    if index.points is not None:
        yield from _keypoint_faults(index, index.points, sizes)


def image_limits(sizes: NDArray[np.int32]) -> Floats:
    """The largest x, y, x, y in images of these heights and widths, `[N, 4]`; infinite where a size is 0, since it is not known."""
    return np.where(sizes > 0, sizes, np.inf)[:, [1, 0, 1, 0]]


def _outline_faults(index: Index, outlines: Segmentations) -> Iterator[Fault]:
    lengths = np.diff(outlines.coordinates_of)
    object_of = np.repeat(np.arange(len(outlines)), np.diff(outlines.polygons_of))
    short = np.zeros(len(outlines), np.bool_)
    short[object_of[lengths < 6]] = True
    yield from faults_at("polygon too short", index, short, lambda i: "a polygon of fewer than three points")
    if outlines.coordinates.dtype.kind == "f":
        wrong = np.zeros(len(outlines), np.bool_)
        places = np.flatnonzero(~np.isfinite(outlines.coordinates))
        wrong[object_of[np.searchsorted(outlines.coordinates_of, places, "right") - 1]] = True
        yield from faults_at("polygon not finite", index, wrong, lambda i: "a polygon with a number that is not finite")
    # The last character of each number has not the bit that says "more"; one number alone is the background's run.
    ends = np.concatenate(([0], np.cumsum(((outlines.counts - 48) & 32) == 0)))
    numbers = np.diff(ends[outlines.counts_of])
    yield from faults_at("mask empty", index, outlines.are_runs & (numbers == 1), lambda i: "a mask without a pixel")
    nothing = ~(outlines.are_polygons | outlines.are_runs)
    yield from faults_at("outline missing", index, nothing, lambda i: "has no segmentation, though others have one")


def _keypoint_faults(index: Index, points: Floats, sizes: NDArray[np.int32]) -> Iterator[Fault]:
    visibility = points[..., 2]
    finite = np.isfinite(points).all((1, 2))
    yield from faults_at("keypoints not finite", index, ~finite, lambda i: "a keypoint that is not finite")
    levels = ((visibility == 0) | (visibility == 1) | (visibility == 2)).all(1)
    yield from faults_at(
        "keypoint visibility", index, finite & ~levels, lambda i: f"visibilities {visibility[i].tolist()}"
    )
    beyond = points_beyond(points, sizes)
    yield from faults_at(
        "keypoint outside",
        index,
        finite & levels & beyond.any(1),
        lambda i: f"{int(beyond[i].sum())} labelled keypoint(s) out of the image of {sizes[i, 0]} x {sizes[i, 1]}",
    )


def points_beyond(points: Floats, sizes: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Which labelled points lie out of their image by more than rounding, `[N, P]`."""
    right, low = image_limits(sizes)[:, :2].T[:, :, None] + ROUNDING
    x, y, visibility = (points[..., k] for k in range(3))
    return (visibility > 0) & ((x < -ROUNDING) | (y < -ROUNDING) | (x > right) | (y > low))
