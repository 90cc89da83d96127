"""What a detector gets wrong, by kind, and what mending each kind would give: TIDE.

Bolya, Foley, Hays, Hoffman: TIDE: A General Toolbox for Identifying Object Detection Errors, ECCV 2020. The kinds are told
apart in the order of the authors' own tool (location, class, duplicate, background, both). What differs: each kind is mended by
itself (there, a detection of the wrong class is not mended where a better-scored one of the wrong place lies on the same object),
and objects, limits and classes are COCO's, so that the AP to begin with is the AP50 of `detlab.evaluation`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from detlab.analysis.judged import POSITIVE, Judged, average_precision
from detlab.evaluation.matching import pairs_of
from detlab.evaluation.overlaps import overlap_of

Kind = Literal["class", "location", "both", "duplicate", "background", "missed"]
KINDS: tuple[Kind, ...] = get_args(Kind)
BACKGROUND = 0.1  # IoU below which a detection has nothing to do with an object
MEANING: dict[Kind, str] = {
    "class": "on an object of another class",
    "location": "on an object of its class, but not closely enough",
    "both": "near an object of another class only",
    "duplicate": "on an object that a better-scored detection has found",
    "background": "where no object is",
    "missed": "objects that no detection found, nor could find by another class or place",
}
_NONE = -1


@dataclass(frozen=True)
class Errors:
    """The errors of the detections of one type, as `Judged` has them.

    Args:
        judged: what is right and wrong.
        kinds: int64 `[D]`, of each wrong detection its place in `KINDS`; -1 of the others.
        meant: int64 `[D]`, the object on which or near which a wrong detection lies, by which `class` and `location` are mended;
            -1 of the others.
        missed: bool `[G]`, the objects that no detection found, and on which none of kind `class` or `location` lies.
    """

    judged: Judged
    kinds: np.ndarray
    meant: np.ndarray
    missed: np.ndarray

    @classmethod
    def of(cls, judged: Judged) -> Errors:
        """Tell the kinds of all that is wrong."""
        own, other = nearest(judged)
        (own_iou, own_object), (other_iou, other_object) = own, other
        # The first that holds counts. A detection on a free object of its class would have found it.
        cases = [
            (own_iou >= BACKGROUND) & (own_iou < POSITIVE),
            other_iou >= POSITIVE,
            own_iou >= POSITIVE,
            other_iou < BACKGROUND,
        ]
        places = [KINDS.index(kind) for kind in ("location", "class", "duplicate", "background")]
        kinds = np.select(cases, places, KINDS.index("both"))
        meant = np.select([kinds == places[0], kinds == places[1]], [own_object, other_object], _NONE)
        kinds, meant = (np.where(judged.wrong, values, _NONE) for values in (kinds, meant))
        reached = np.zeros(len(judged.objects), bool)
        for objects in (judged.found, meant):
            reached[objects[objects >= 0]] = True
        return cls(judged, kinds, meant, judged.counted & ~reached)

    @property
    def counts(self) -> dict[Kind, int]:
        """How many errors there are of each kind."""
        found = np.bincount(self.kinds[self.kinds >= 0], minlength=len(KINDS)).tolist()
        return {kind: int(self.missed.sum()) if kind == "missed" else found[i] for i, kind in enumerate(KINDS)}

    def average_precision(self, mended: Collection[Kind] = ()) -> float:
        """AP50 with errors of some kinds mended; nan where no class has an object.

        A detection of the wrong class or place is put right where it is the best-scored of those on an object that was not found,
        else it is left out; duplicates, what lies in the background, and what is both are left out; missed objects are not asked
        for. A class all of whose objects are no longer asked for counts 1 where it has no detection left, else 0.

        Args:
            mended: which.
        """
        detections, objects = self.judged.detections, self.judged.objects
        classes, right = detections.classes.copy(), self.judged.right
        stays = ~self.judged.excused & ~np.isin(self.kinds, [KINDS.index(kind) for kind in mended])
        better = self._put_right([KINDS.index(kind) for kind in ("class", "location") if kind in mended])
        classes[better] = objects.classes[self.meant[better]]
        right, stays = right | better, stays | better
        asked = self.judged.counted & ~self.missed if "missed" in mended else self.judged.counted
        counts = np.bincount(objects.classes[asked], minlength=len(self.judged.truth.class_names))
        values = []
        for k in np.flatnonzero(self.judged.objects_by_class):
            own = stays & (classes == k)
            values.append(average_precision(detections.scores[own], right[own], int(counts[k])))
        return float(np.mean(values)) if values else float("nan")

    def _put_right(self, kinds: list[int]) -> np.ndarray:
        """Bool `[D]`: of the detections of these kinds the best-scored on each object that was not found."""
        taken = np.zeros(len(self.judged.objects), bool)
        taken[self.judged.found[self.judged.right]] = True
        candidates = np.flatnonzero(np.isin(self.kinds, kinds))
        candidates = candidates[~taken[self.meant[candidates]]]
        best_first = candidates[np.argsort(-self.judged.detections.scores[candidates], kind="stable")]
        _, first = np.unique(self.meant[best_first], return_index=True)
        better = np.zeros(len(self.kinds), bool)
        better[best_first[first]] = True
        return better

    def summary(self) -> dict[str, Any]:
        """`AP50`, and of each kind `count`, `AP50` with it mended, and `gain`; `all`: with all of them mended."""
        start = self.average_precision()
        counts = self.counts
        values = {kind: self.average_precision((kind,)) for kind in KINDS}
        kinds = {kind: {"count": counts[kind], "AP50": values[kind], "gain": values[kind] - start} for kind in KINDS}
        return {"AP50": start, "kinds": kinds, "all": self.average_precision(KINDS)}


def nearest(judged: Judged) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """The object that each detection overlaps most, of its own class and of the others; those to be found alone are looked at.

    Returns:
        For its own class and for the others: the IoU, float64 `[D]` (what is below `BACKGROUND` may be 0), and the object, int64
        `[D]`, -1 where none.
    """
    detections, objects = judged.detections, judged.objects
    overlap = overlap_of(judged.truth.iou_type, detections, objects, at_least=BACKGROUND, sigmas=judged.sigmas)
    real = np.flatnonzero(judged.counted)
    real = real[np.argsort(objects.images[real], kind="stable")]
    best = [(np.zeros(len(detections)), np.full(len(detections), _NONE)) for _ in range(2)]
    for d, position in pairs_of(detections.images, objects.images[real]):
        g = real[position]
        with np.errstate(all="ignore"):
            overlaps = overlap(d, g)
        same = detections.classes[d] == objects.classes[g]
        for (iou, which), chosen in zip(best, (same, ~same), strict=True):
            ours = np.flatnonzero(chosen & (overlaps > 0))
            ours = ours[np.lexsort((-overlaps[ours], d[ours]))]
            ours = ours[np.diff(d[ours], prepend=-1) != 0]
            iou[d[ours]], which[d[ours]] = overlaps[ours], g[ours]
    return best[0], best[1]
