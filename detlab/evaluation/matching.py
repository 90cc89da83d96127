"""Which detection finds which object: COCO's greedy matching, of all images and classes at once.

In each image and class the detections choose in the order of their scores, at each threshold and for each range of areas by itself:
the object that they overlap most of those still free, one to be ignored only where there is no other. pycocotools' `evaluateImg`
does this one detection, threshold and range after the other. Here the few pairs that overlap enough are looked at alone, those
whose turn it is in their group together, and the thresholds and ranges are the bits of one integer.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from detlab.evaluation.instances import Detections, Objects
from detlab.evaluation.overlaps import Overlap

# An overlap of 1 to within this is enough for a threshold of 1.
_WHOLE = 1 - 1e-10
# How many pairs are compared at once: enough to be fast, and few enough for the memory.
_PAIRS_AT_ONCE = 2**18


class Matches(NamedTuple):
    """What the C detections found that overlap any object enough; all others found nothing."""

    detections: np.ndarray  # int64 [C], ascending
    found: np.ndarray  # bool [C, A, T], an object, at a threshold and for a range of areas
    ignored: np.ndarray  # bool [C, A, T], and that is one to be ignored
    objects: np.ndarray  # int64 [C], found at the lowest threshold and for the first range; -1 where none was


class _Candidates(NamedTuple):
    """The pairs that overlap enough for the lowest threshold."""

    detections: np.ndarray  # int64 [P], ascending
    objects: np.ndarray  # int64 [P]
    overlaps: np.ndarray  # float64 [P]


def positions_in_runs(keys: np.ndarray) -> np.ndarray:
    """Of sorted keys `[N]`, the position of each within the run of its equals, int64 `[N]`, from 0."""
    return np.arange(len(keys)) - np.searchsorted(keys, keys)


def match(
    detections: Detections, objects: Objects, ignored: np.ndarray, overlap: Overlap, thresholds: np.ndarray
) -> Matches:
    """Match greedily.

    Args:
        detections: sorted by group, within a group by falling score.
        objects: sorted by group.
        ignored: bool `[G, A]`, the objects that are neither found nor missed in each of A ranges of areas.
        overlap: of pairs of them.
        thresholds: float64 `[T]`, ascending; A x T is 62 at most.
    """
    thresholds = np.minimum(thresholds, _WHOLE)
    candidates = _candidates(detections, objects, overlap, thresholds[0])
    ranges, steps = ignored.shape[1], len(thresholds)
    # Bit a * T + t stands for range a and threshold t.
    of_range = np.int64((1 << steps) - 1) << (steps * np.arange(ranges))
    every_range = np.int64(sum(1 << steps * a for a in range(ranges)))
    reached = np.searchsorted(thresholds, candidates.overlaps, side="right")
    enough = ((np.int64(1) << reached) - 1) * every_range
    chosen = candidates.detections[np.diff(candidates.detections, prepend=-1) != 0]
    found, excused, first = _choose(
        candidates,
        turns=positions_in_runs(detections.groups[chosen]),
        enough=enough,
        ignored=ignored @ of_range,
        crowd=objects.crowd,
    )
    bits = np.arange(ranges * steps)
    found, excused = (((b[:, None] >> bits) & 1).astype(bool).reshape(-1, ranges, steps) for b in (found, excused))
    return Matches(chosen, found, excused, first)


def _choose(
    candidates: _Candidates, turns: np.ndarray, enough: np.ndarray, ignored: np.ndarray, crowd: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Let the detections choose, all those of one turn together: they are of different groups.

    Args:
        candidates: P pairs of C detections and G objects.
        turns: int64 `[C]`, how many choose before each in its group.
        enough: int64 `[P]`, bits: where a pair overlaps enough.
        ignored: int64 `[G]`, bits: where an object is to be ignored.
        crowd: bool `[G]`.

    Returns:
        Bits, int64 `[C]` each: where a detection found an object, and where that is one to be ignored. The object that each
        found at the first bit, int64 `[C]`; -1 where none.
    """
    numbers = np.cumsum(np.diff(candidates.detections, prepend=-1) != 0) - 1  # of the detection among the C
    # The best overlap first; of two equals pycocotools goes on to the later.
    best_first = np.lexsort((-candidates.objects, -candidates.overlaps, numbers))
    choices, turns_of_pairs = positions_in_runs(numbers), turns[numbers]
    together = np.lexsort((choices, turns_of_pairs))
    d_of, g_of, reached = numbers[together], candidates.objects[best_first][together], enough[best_first][together]
    found, excused = np.zeros(len(turns), np.int64), np.zeros(len(turns), np.int64)
    first = np.full(len(turns), -1, np.int64)
    free = np.full(len(crowd), -1, np.int64)
    stays_free = np.where(crowd, np.int64(-1), np.int64(0))
    for turn in _slices(turns_of_pairs[together], choices[together]):
        for to_be_ignored in (False, True):
            for choice in turn:
                d, g = d_of[choice], g_of[choice]
                allowed = ignored[g] if to_be_ignored else ~ignored[g]
                taken = reached[choice] & allowed & free[g] & ~found[d]
                found[d] |= taken
                first[d] = np.where(taken & 1, g, first[d])
                free[g] &= ~taken | stays_free[g]
                if to_be_ignored:
                    excused[d] |= taken
    return found, excused, first


def _slices(turns: np.ndarray, choices: np.ndarray) -> list[list[slice]]:
    """For each turn the slices of pairs that are the first choice of each detection, the second, and so on.

    Args:
        turns: int64 `[P]`, sorted.
        choices: int64 `[P]`, from 0, sorted within a turn.
    """
    changes = np.flatnonzero((np.diff(turns, prepend=-1) != 0) | (np.diff(choices, prepend=-1) != 0))
    of_turns: list[list[slice]] = []
    for a, b in pairwise([*changes.tolist(), len(turns)]):
        if choices[a] == 0:
            of_turns.append([])
        of_turns[-1].append(slice(a, b))
    return of_turns


def _candidates(detections: Detections, objects: Objects, overlap: Overlap, at_least: float) -> _Candidates:
    kept = [_Candidates(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))]
    for d, g in pairs_of(detections.groups, objects.groups):
        overlaps = overlap(d, g)
        enough = overlaps >= at_least
        kept.append(_Candidates(d[enough], g[enough], overlaps[enough]))
    return _Candidates(*(np.concatenate(parts) for parts in zip(*kept, strict=True)))


def pairs_of(detected: np.ndarray, real: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The indices of all pairs of one group, some at a time; a detection's pairs stand together.

    Args:
        detected: int64 `[D]`, the detections' groups; sorted for `match`, here in any order.
        real: int64 `[G]`, the objects' groups, sorted.
    """
    firsts = np.searchsorted(real, detected)
    counts = np.searchsorted(real, detected, side="right") - firsts
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    cuts = np.searchsorted(ends, np.arange(_PAIRS_AT_ONCE, total, _PAIRS_AT_ONCE))
    for a, b in zip([0, *cuts], [*cuts, len(detected)], strict=True):
        d = np.repeat(np.arange(a, b), counts[a:b])
        if len(d):
            yield d, firsts[d] + positions_in_runs(d)
