"""What can be wrong with the objects of an index, and what becomes of them: refused, dropped or clipped."""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from detlab.data.index import Floats, Index
from detlab.errors import UserError

log = logging.getLogger(__name__)

INVALID = ("error", "drop", "clip")
# Beside these, for those who only look: nothing becomes of faulty objects.
KEEP = "keep"
# How far, in pixels, a box may reach over its image's border by rounding: it is then cut there, and no fault.
ROUNDING = 1.0


@dataclass(frozen=True)
class Kind:
    """A kind of fault.

    Args:
        severity: `error` for what no run may learn from, `warning` for what is odd.
        remedy: what to do.
        clips: whether `dataset.invalid=clip` mends it; where not, it drops the object.
    """

    severity: Literal["error", "warning"]
    remedy: str
    clips: bool = False


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
    "unreadable object": Kind("error", "write it as the format has it, or remove it"),
    "unknown class": Kind("error", "add the class to the file, or correct the object's"),
    "unknown image": Kind("error", "remove the object, or list its image"),
    "box not finite": Kind("error", "correct or remove the object"),
    "box empty": Kind("error", "width and height must be above 0; correct or remove the object"),
    "box outside": Kind("error", "boxes are pixels of the upright image; dataset.invalid=clip cuts them", clips=True),
    "area negative": Kind("error", "give the area in pixels, or leave it out"),
    "polygon too short": Kind("error", "a polygon has three points or more", clips=True),
    "polygon not finite": Kind("error", "correct or remove the object"),
    "outline missing": Kind("error", "give it a mask, or train boxes alone: dataset.iou_types=[bbox]"),
    "keypoints not finite": Kind("error", "correct or remove the object"),
    "keypoint visibility": Kind("error", "visibility is 0 (not labelled), 1 (hidden) or 2 (visible)"),
    "keypoint outside": Kind("error", "a labelled point lies in its image; clip unlabels it", clips=True),
}


def object_faults(index: Index) -> Iterator[Fault]:
    """The faults of an index' objects, by its arrays alone; of each kind in the order of the objects."""
    x0, y0, x1, y1 = index.boxes_xyxy().T
    height, width = index.sizes[index.image_of].T
    finite = np.isfinite(index.boxes).all(1)
    full = finite & (index.boxes[:, 2:] > 0).all(1)
    over = np.maximum.reduce([-x0, -y0, x1 - width, y1 - height])
    outside = full & (over > ROUNDING)

    def box(i: int) -> str:
        return str([round(float(v), 3) for v in index.boxes[i]])

    def found(kind: str, bad: NDArray[np.bool_], said: Callable[[int], str]) -> Iterator[Fault]:
        for i in np.flatnonzero(bad).tolist():
            image = int(np.searchsorted(index.offsets, i, "right")) - 1
            yield Fault(kind, index.file_names[image], int(index.annotation_ids[i]), said(i), i)

    yield from found("box not finite", ~finite, lambda i: f"box {box(i)} is not finite")
    yield from found("box empty", finite & ~full, lambda i: f"box {box(i)} has no width or no height")
    yield from found(
        "box outside",
        outside,
        lambda i: (
            f"box {box(i)} (x, y, width, height) reaches out of the image of {height[i]} x {width[i]} (height x width)"
        ),
    )
    bad_area = ~(index.areas >= 0) | np.isinf(index.areas)
    yield from found("area negative", bad_area, lambda i: f"area {index.areas[i]}")
    yield from _outline_faults(index, found)
    yield from _keypoint_faults(index, found)


Found = Callable[[str, NDArray[np.bool_], Callable[[int], str]], Iterator[Fault]]


def _outline_faults(index: Index, found: Found) -> Iterator[Fault]:
    if index.segmentations is None:
        return
    outlines = index.segmentations
    lengths = np.diff(outlines.coordinates_of)
    object_of = np.repeat(np.arange(len(outlines)), np.diff(outlines.polygons_of))
    short = np.zeros(len(outlines), np.bool_)
    short[object_of[lengths < 6]] = True
    yield from found("polygon too short", short, lambda i: "a polygon of fewer than three points")
    if outlines.coordinates.dtype.kind == "f":
        wrong = np.zeros(len(outlines), np.bool_)
        places = np.flatnonzero(~np.isfinite(outlines.coordinates))
        wrong[object_of[np.searchsorted(outlines.coordinates_of, places, "right") - 1]] = True
        yield from found("polygon not finite", wrong, lambda i: "a polygon with a number that is not finite")
    nothing = ~(outlines.are_polygons | outlines.are_runs)
    yield from found("outline missing", nothing, lambda i: "has no segmentation, though others have one")


def _keypoint_faults(index: Index, found: Found) -> Iterator[Fault]:
    if index.points is None:
        return
    x, y, visibility = np.moveaxis(index.points, 2, 0)
    finite = np.isfinite(index.points).all((1, 2))
    yield from found("keypoints not finite", ~finite, lambda i: "a keypoint that is not finite")
    levels = np.isin(visibility, (0, 1, 2)).all(1)
    yield from found("keypoint visibility", finite & ~levels, lambda i: f"visibilities {visibility[i].tolist()}")
    height, width = index.sizes[index.image_of].T[:, :, None]
    beyond = _beyond(index.points, height, width)
    yield from found(
        "keypoint outside",
        finite & levels & beyond.any(1),
        lambda i: f"{int(beyond[i].sum())} labelled keypoint(s) out of the image of {height[i, 0]} x {width[i, 0]}",
    )


def _beyond(points: Floats, height: NDArray[np.int32], width: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Which labelled points lie out of their image by more than rounding, `[N, P]`."""
    x, y, visibility = np.moveaxis(points, 2, 0)
    over = np.maximum.reduce([-x, -y, x - width, y - height])
    return (visibility > 0) & (over > ROUNDING)


def settle(reading: Reading, invalid: str) -> Index:
    """The index of what may be learnt and scored.

    Args:
        reading: what was read.
        invalid: `error` refuses all faults, `drop` leaves the objects out that have one, `clip` cuts boxes at the border, short
            polygons away and points outside, and drops what that does not mend.

    Raises:
        UserError: faults, for `error`, or another word than these.
    """
    if invalid == KEEP:
        return reading.index
    if invalid not in INVALID:
        raise UserError(f"dataset.invalid: {invalid!r} is not allowed; allowed: {', '.join(INVALID)}.")
    index = reading.index
    wrong = [f for f in (*reading.faults, *object_faults(index)) if KINDS[f.kind].severity == "error"]
    if not wrong:
        return index
    if invalid == "error":
        raise UserError(_refusal(reading, wrong))
    clipped = [f for f in wrong if invalid == "clip" and KINDS[f.kind].clips and f.row is not None]
    if clipped:
        index = _clip(index)
    # What clipping did not mend is still a fault.
    left = object_faults(index) if clipped else wrong
    bad = {f.row for f in left if f.row is not None}
    if bad:
        keep = np.ones(len(index.labels), np.bool_)
        keep[list(bad)] = False
        index = index.keep(keep)
    counts = Counter(f.kind for f in wrong)
    said = ", ".join(f"{count} {kind}" for kind, count in counts.most_common())
    dropped = len(bad) + sum(f.row is None for f in wrong)
    mended = len({f.row for f in clipped} - bad)
    log.warning(
        "%s: %d object(s) dropped, %d clipped (%s); detlab validate names them", reading.source, dropped, mended, said
    )
    return index


def _refusal(reading: Reading, wrong: Sequence[Fault]) -> str:
    """The first fault, and how many there are of which kind."""
    counts = Counter(fault.kind for fault in wrong)
    more = ", ".join(f"{count} {kind}" for kind, count in counts.most_common())
    return (
        f"{reading.source}: {wrong[0]} ({wrong[0].kind}; {KINDS[wrong[0].kind].remedy}). {len(wrong)} in all: {more}.\n"
        "detlab validate lists them; dataset.invalid=drop or clip trains without them."
    )


def _clip(index: Index) -> Index:
    """Boxes cut at the border, labelled points outside unlabelled, polygons of fewer than three points gone."""
    height, width = index.sizes[index.image_of].T
    corners = index.boxes_xyxy()
    limits = np.stack((width, height, width, height), 1)
    cut = np.clip(corners, 0, limits)
    over = (np.abs(cut - corners) > ROUNDING).any(1) & np.isfinite(corners).all(1)
    boxes = index.boxes.copy()
    boxes[over] = np.concatenate((cut[:, :2], cut[:, 2:] - cut[:, :2]), 1)[over]
    points = index.points
    if points is not None:
        beyond = _beyond(points, height[:, None], width[:, None])
        points = np.where(beyond[..., None], 0.0, points)
    outlines = index.segmentations
    if outlines is not None:
        outlines = outlines.of_at_least_three_points()
    return dataclasses.replace(index, boxes=boxes, points=points, segmentations=outlines)
