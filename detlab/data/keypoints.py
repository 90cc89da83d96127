"""What the user says of a data set's keypoints, in names."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from detlab.errors import UserError
from detlab.structures import PERSON, ClassMap, Keypoints, sides

KEYS = ("names", "flip_pairs", "sigmas", "skeleton")

Pairs = tuple[tuple[int, int], ...]


def keypoints_from_config(node: Mapping[str, Any] | None, where: str) -> Keypoints | None:
    """The keypoints that a config node describes; None where it is null.

    Args:
        node: `names`, a list; and, each null or left out for what it then means: `flip_pairs`, pairs of names that change places in
            a mirror (`left_x` with `right_x`); `sigmas`, one for each name (COCO's, where the names are COCO's 17 of a person);
            `skeleton`, pairs of names that a line joins in pictures (COCO's for COCO's names, else none).
        where: the key, as an error will name it.

    Raises:
        UserError: names the key below `where`, its value, and what is allowed.
    """
    if node is None:
        return None
    if not isinstance(node, Mapping) or "names" not in node:
        raise UserError(
            f"{where}: {node!r} is not allowed; give names, and where not the usual flip_pairs, sigmas, skeleton."
        )
    unknown = [key for key in node if key not in KEYS]
    if unknown:
        raise UserError(f"{where}.{unknown[0]}: no such key; there are {', '.join(KEYS)}.")
    names = _names(node["names"], f"{where}.names")
    flip_pairs, sigmas, skeleton = (node[key] if key in node else None for key in KEYS[1:])
    person = names == PERSON.names
    usual_skeleton = PERSON.skeleton if person else ()
    if sigmas is None and not person:
        raise UserError(
            f"{where}.sigmas: null means COCO's of a person, whose 17 names these are not; give {len(names)} numbers, a standard "
            "deviation for each point, relative to the object's scale (0.025 for a person's eye, 0.107 for a hip)."
        )
    return Keypoints(
        names,
        flip_pairs=sides(names) if flip_pairs is None else _flip_pairs(flip_pairs, names, f"{where}.flip_pairs"),
        sigmas=PERSON.sigmas if sigmas is None else _sigmas(sigmas, len(names), f"{where}.sigmas"),
        skeleton=usual_skeleton if skeleton is None else _pairs(skeleton, names, f"{where}.skeleton"),
    )


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _names(value: Any, where: str) -> tuple[str, ...]:
    if not _is_list(value) or not value or not all(isinstance(name, str) for name in value):
        raise UserError(f"{where}: {value!r} is not allowed; give a list of at least one name.")
    twice = [name for name in value if list(value).count(name) > 1]
    if twice:
        raise UserError(f"{where}: {twice[0]!r} stands twice; name each point once.")
    return tuple(value)


def _pairs(value: Any, names: Sequence[str], where: str) -> Pairs:
    """Pairs of names as pairs of indices."""
    if not _is_list(value) or not all(_is_list(pair) and len(pair) == 2 for pair in value):
        raise UserError(f"{where}: {value!r} is not allowed; give a list of pairs of names, [] for none.")
    for pair in value:
        unknown = [name for name in pair if name not in names]
        if unknown:
            raise UserError(f"{where}: no point {unknown[0]!r}; there are {', '.join(names)}.")
        if pair[0] == pair[1]:
            raise UserError(f"{where}: {list(pair)} pairs a point with itself.")
    return tuple((names.index(a), names.index(b)) for a, b in value)


def _flip_pairs(value: Any, names: Sequence[str], where: str) -> Pairs:
    """The same, of which each point is in one at most."""
    pairs = _pairs(value, names, where)
    points = [names[i] for pair in pairs for i in pair]
    twice = [name for name in points if points.count(name) > 1]
    if twice:
        raise UserError(f"{where}: {twice[0]!r} stands in two pairs; it can change places with one point only.")
    return pairs


def _sigmas(value: Any, count: int, where: str) -> tuple[float, ...]:
    numbers = _is_list(value) and all(isinstance(s, int | float) and math.isfinite(s) and s > 0 for s in value)
    if not numbers or len(value) != count:
        raise UserError(f"{where}: {value!r} is not allowed; give {count} numbers above 0, one for each name.")
    return tuple(float(sigma) for sigma in value)


def coco_categories(class_map: ClassMap, keypoints: Keypoints | None) -> list[dict[str, Any]]:
    """COCO's `categories`, in the order of the labels; with keypoints their names, and the skeleton counted from 1."""
    if keypoints is None:
        return class_map.categories()
    skeleton = [[a + 1, b + 1] for a, b in keypoints.skeleton]
    return [{**row, "keypoints": list(keypoints.names), "skeleton": skeleton} for row in class_map.categories()]
