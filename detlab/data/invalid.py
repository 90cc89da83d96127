"""What becomes of the faulty objects of a data set, by `dataset.invalid`: refused, dropped or clipped."""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Sequence

import numpy as np

from detlab import distributed
from detlab.data.faults import KINDS, ROUNDING, Fault, Reading, image_limits, object_faults, points_beyond, scale_faults
from detlab.data.index import Index
from detlab.errors import UserError

log = logging.getLogger(__name__)

INVALID = ("error", "drop", "clip")
# Beside these, for those who only look: nothing becomes of faulty objects.
KEEP = "keep"


def settle(reading: Reading, invalid: str) -> Index:
    """The index of what may be learnt and scored.

    Args:
        reading: what was read.
        invalid: `error` refuses all faults, `drop` leaves the objects out that have one, `clip` cuts boxes at the border, short
            polygons away and points outside, and drops what that does not mend.

    Raises:
        UserError: faults, for `error`; boxes that are all of another scale or form; another word than these.
    """
    if invalid == KEEP:
        return reading.index
    if invalid not in INVALID:
        raise UserError(f"dataset.invalid: {invalid!r} is not allowed; allowed: {', '.join(INVALID)}.")
    index = reading.index
    found = (*scale_faults(index), *reading.faults, *object_faults(index))
    wrong = [f for f in found if KINDS[f.kind].severity == "error"]
    if not wrong:
        return index
    if invalid == "error" or KINDS[wrong[0].kind].whole:
        raise UserError(_refusal(reading, wrong))
    clipped = {f.row for f in wrong if invalid == "clip" and KINDS[f.kind].clips and f.row is not None}
    if clipped:
        index = _clip(index)
    # What clipping did not mend is still a fault.
    left = object_faults(index) if clipped else wrong
    bad = {f.row for f in left if f.row is not None}
    if bad:
        keep = np.ones(len(index.labels), np.bool_)
        keep[list(bad)] = False
        index = index.keep(keep)
    if distributed.first():
        log.warning("%s", _account(reading, wrong, dropped=len(bad), clipped=len(clipped - bad)))
    return index


def _account(reading: Reading, wrong: Sequence[Fault], *, dropped: int, clipped: int) -> str:
    """What became of faulty objects, in a line of the log."""
    unread = sum(f.row is None and f.annotation is not None for f in wrong)
    files = sum(f.row is None and f.annotation is None for f in wrong)
    left_out = f", {files} file(s) left out" if files else ""
    return (
        f"{reading.source}: {dropped + unread} object(s) dropped, {clipped} clipped{left_out} ({_counts(wrong)}); "
        "detlab validate names them"
    )


def _counts(wrong: Sequence[Fault]) -> str:
    """How many faults there are of which kind."""
    return ", ".join(f"{count} {kind}" for kind, count in Counter(fault.kind for fault in wrong).most_common())


def _refusal(reading: Reading, wrong: Sequence[Fault]) -> str:
    """The first fault, and how many there are of which kind."""
    kind = KINDS[wrong[0].kind]
    way_out = "no dataset.invalid mends this" if kind.whole else "dataset.invalid=drop or clip trains without them"
    return (
        f"{reading.source}: {wrong[0]} ({wrong[0].kind}; {kind.remedy}). {len(wrong)} in all: {_counts(wrong)}.\n"
        f"detlab validate lists them; {way_out}."
    )


def _clip(index: Index) -> Index:
    """Boxes cut at the border, labelled points outside unlabelled, polygons of fewer than three points gone."""
    sizes = index.sizes[index.image_of]
    corners = index.boxes_xyxy()
    cut = np.clip(corners, 0, image_limits(sizes))
    with np.errstate(invalid="ignore"):
        over = (np.abs(cut - corners) > ROUNDING).any(1) & np.isfinite(corners).all(1)
    boxes = index.boxes.copy()
    boxes[over] = np.concatenate((cut[:, :2], cut[:, 2:] - cut[:, :2]), 1)[over]
    points = index.points
    if points is not None:
        points = np.where(points_beyond(points, sizes)[..., None], 0.0, points)
    outlines = index.segmentations
    if outlines is not None and (np.diff(outlines.coordinates_of) < 6).any():
        outlines = outlines.of_at_least_three_points()
    return dataclasses.replace(index, boxes=boxes, points=points, segmentations=outlines)
