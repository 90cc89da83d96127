"""What the people and the things of the synthetic pictures look like, one figure at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from detlab.data.drawing import (
    Capsule,
    Color,
    Dice,
    Ellipse,
    Part,
    Polygon,
    Sprite,
    bounds_of,
    cosine,
    draw,
    rectangle,
    sine,
)
from detlab.structures import PERSON

SKIN: tuple[Color, ...] = (
    (250, 214, 190), (236, 188, 150), (214, 160, 118), (176, 120, 82), (132, 86, 58), (90, 60, 44),
)  # fmt: skip
HAIR: tuple[Color, ...] = (
    (34, 28, 26), (62, 42, 30), (104, 70, 40), (168, 120, 60), (214, 180, 112), (130, 128, 126), (140, 60, 30),
)  # fmt: skip
CLOTHES: tuple[Color, ...] = (
    (196, 44, 46), (224, 112, 40), (232, 190, 60), (70, 140, 76), (36, 96, 90), (52, 106, 184), (36, 52, 110),
    (112, 66, 140), (214, 110, 150), (238, 236, 230), (150, 150, 150), (66, 68, 74), (30, 32, 38), (136, 96, 62),
    (200, 176, 140), (96, 150, 200),
)  # fmt: skip
TROUSERS: tuple[Color, ...] = (
    (34, 40, 66), (60, 82, 122), (92, 116, 152), (28, 28, 32), (70, 70, 74), (120, 104, 82), (176, 156, 124), (88, 62, 44),
    (74, 88, 60), (150, 48, 52),
)  # fmt: skip
SHOES: tuple[Color, ...] = ((24, 22, 22), (70, 46, 32), (226, 226, 222), (120, 120, 124), (170, 40, 40))
DULL: tuple[Color, ...] = ((120, 122, 124), (96, 104, 98), (132, 120, 104), (88, 96, 110), (150, 146, 136))
LEAVES: tuple[Color, ...] = ((74, 110, 62), (96, 124, 66), (58, 92, 62), (120, 116, 60))
EYE: Color = (40, 32, 30)

MARGIN = 2  # empty pixels around a sprite
OUT_OF_SIGHT = -2  # Joint.front of one that no view of this body shows
TILT = 0.13  # how much lower a point appears for being nearer: the camera looks down a little

Point = tuple[float, float, float]  # image x, image y, depth towards the camera; one body height is 1


@dataclass(frozen=True)
class Joint:
    """A keypoint in the sprite's pixels; it is seen unless a part painted after `front`, or another figure, lies on it."""

    x: float
    y: float
    front: int


@dataclass(frozen=True)
class Figure:
    """A drawn person or thing. `foot` is where it stands, in the sprite's pixels; a thing has no joints."""

    sprite: Sprite
    foot: tuple[float, float]
    joints: tuple[Joint, ...] = ()  # in the order of PERSON


@dataclass(frozen=True)
class View:
    """A body turned about its vertical axis: 0 degrees faces the camera, 90 the right edge of the picture."""

    degrees: float

    def see(self, left: float, up: float, forward: float) -> Point:
        """Where a point of the body appears; its own left, up from the ground, and forward."""
        sin, cos = sine(self.degrees), cosine(self.degrees)
        depth = forward * cos - left * sin
        return left * cos + forward * sin, TILT * depth - up, depth

    def half_width(self, side: float, front: float) -> float:
        """How wide a body part with these half axes appears."""
        a, b = side * cosine(self.degrees), front * sine(self.degrees)
        return math.sqrt(a * a + b * b)


@dataclass(frozen=True)
class Pose:
    """Angles in degrees, (left, right): swings are forward, bends at the elbow forward, at the knee backward."""

    thigh: tuple[float, float]
    knee: tuple[float, float]
    arm: tuple[float, float]
    elbow: tuple[float, float]
    arm_out: tuple[float, float]
    leg_out: float
    lean: float


def walking(dice: Dice) -> Pose:
    """A moment of a stride: opposite arm and leg forward."""
    phase, stride, swing = dice.uniform(0, 360), dice.uniform(14, 32), dice.uniform(10, 34)
    s, c = sine(phase), cosine(phase)
    flex = dice.uniform(8, 40)
    return Pose(
        thigh=(stride * s + 4, -stride * s + 4),
        knee=(6 + 40 * max(c, 0.0) + 8 * max(-s, 0.0), 6 + 40 * max(-c, 0.0) + 8 * max(s, 0.0)),
        arm=(-swing * s, swing * s),
        elbow=(flex + 10 * max(-s, 0.0), flex + 10 * max(s, 0.0)),
        arm_out=(dice.uniform(5, 14), dice.uniform(5, 14)),
        leg_out=dice.uniform(0, 4),
        lean=dice.uniform(0, 6),
    )


def _standing_arm(dice: Dice) -> tuple[float, float, float]:
    """Swing, elbow and distance from the body of an arm: mostly hanging, at times to the hip, the face or the sky."""
    return dice.choose(
        (
            (dice.uniform(-6, 10), dice.uniform(4, 22), dice.uniform(6, 16)),
            (dice.uniform(-6, 10), dice.uniform(4, 22), dice.uniform(6, 16)),
            (dice.uniform(-6, 10), dice.uniform(4, 22), dice.uniform(6, 16)),
            (dice.uniform(12, 30), dice.uniform(70, 110), dice.uniform(8, 22)),
            (dice.uniform(20, 45), dice.uniform(105, 130), dice.uniform(8, 20)),
            (dice.uniform(-4, 10), dice.uniform(10, 40), dice.uniform(95, 150)),
        )
    )


def standing(dice: Dice) -> Pose:
    """Weight on both feet or on one, arms by choice."""
    left, right = _standing_arm(dice), _standing_arm(dice)
    bent = dice.uniform(0, 16)
    knees = dice.choose(((2.0, bent), (bent, 2.0), (2.0, 2.0)))
    return Pose(
        thigh=(knees[0] * 0.6, knees[1] * 0.6),
        knee=knees,
        arm=(left[0], right[0]),
        elbow=(left[1], right[1]),
        arm_out=(left[2], right[2]),
        leg_out=dice.uniform(1, 9),
        lean=dice.uniform(-2, 3),
    )


@dataclass(frozen=True)
class Look:
    """Build (1 is average) and colors of a person."""

    girth: float
    skin: Color
    hair: Color
    hairstyle: str  # short, long, bun, none
    top: Color
    bottom: Color
    shoes: Color
    sleeves: str  # long, short
    lower: str  # trousers, shorts, skirt, coat


def dressed(dice: Dice) -> Look:
    """Somebody."""
    skin = dice.color(SKIN, 10)
    return Look(
        girth=dice.uniform(0.88, 1.2),
        skin=skin,
        hair=dice.color(HAIR, 12),
        hairstyle=dice.choose(("short", "short", "short", "long", "long", "bun", "none")),
        top=dice.color(CLOTHES, 16),
        bottom=dice.color(TROUSERS, 12),
        shoes=dice.color(SHOES, 8),
        sleeves=dice.choose(("long", "long", "short")),
        lower=dice.choose(("trousers", "trousers", "trousers", "shorts", "skirt", "coat")),
    )


Skeleton = dict[str, Point]


def _step(start: Point, view: View, length: float, swing: float, out: float) -> Point:
    """The end of a limb of this length that hangs from `start`, swung forward and out to the body's left by degrees."""
    along = view.see(length * sine(out) * cosine(swing), -length * cosine(out) * cosine(swing), length * sine(swing))
    return start[0] + along[0], start[1] + along[1], start[2] + along[2]


def skeleton(pose: Pose, look: Look, view: View, face: View) -> Skeleton:
    """All joints of a body of height 1 that stands at (0, 0), seen so; the face may look elsewhere than the body."""
    lean = sine(pose.lean)
    joints: Skeleton = {"neck": view.see(0, 0.84, 0.34 * lean), "pelvis": view.see(0, 0.5, 0)}
    for index, (name, side) in enumerate((("left", 1.0), ("right", -1.0))):
        shoulder = view.see(side * 0.097 * look.girth, 0.808, 0.31 * lean)
        hip = view.see(side * 0.056 * look.girth, 0.5, 0)
        arm, out = pose.arm[index], side * pose.arm_out[index]
        elbow = _step(shoulder, view, 0.165, arm, out)
        wrist = _step(elbow, view, 0.14, arm + pose.elbow[index], out * 0.9)
        thigh, spread = pose.thigh[index], side * pose.leg_out
        knee = _step(hip, view, 0.235, thigh, spread)
        shin = thigh - pose.knee[index]
        joints[f"{name}_shoulder"], joints[f"{name}_hip"] = shoulder, hip
        joints[f"{name}_elbow"], joints[f"{name}_wrist"] = elbow, wrist
        joints[f"{name}_hand"] = _step(elbow, view, 0.175, arm + pose.elbow[index], out * 0.9)
        joints[f"{name}_knee"], joints[f"{name}_ankle"] = knee, _step(knee, view, 0.225, shin, spread)
        joints[f"{name}_toe"] = _step(joints[f"{name}_ankle"], view, 0.085, shin + 78, side * 20)
    top = joints["neck"]
    for name, (left, up, forward) in {
        "head": (0, 0.088, 0.008), "nose": (0, 0.078, 0.058), "left_eye": (0.022, 0.098, 0.05),
        "right_eye": (-0.022, 0.098, 0.05), "left_ear": (0.05, 0.086, 0.0), "right_ear": (-0.05, 0.086, 0.0),
    }.items():  # fmt: skip
        x, y, depth = face.see(left, up, forward)
        joints[name] = top[0] + x, top[1] + y, top[2] + depth
    return joints


NamedPart = tuple[str, Part]


def _capsule(a: Point, ar: float, b: Point, br: float) -> Capsule:
    return Capsule(a[0], a[1], ar, b[0], b[1], br)


def _darker(color: Color, factor: float) -> Color:
    return color[0] * factor, color[1] * factor, color[2] * factor


def _leg(joints: Skeleton, look: Look, side: str, light: float) -> list[NamedPart]:
    hip, knee, ankle, toe = (joints[f"{side}_{name}"] for name in ("hip", "knee", "ankle", "toe"))
    shin = look.bottom if look.lower in ("trousers", "coat") else look.skin
    thick = look.girth
    return [
        (f"{side}_foot", Part(_capsule(ankle, 0.024, toe, 0.017), _darker(look.shoes, light))),
        (f"{side}_shin", Part(_capsule(knee, 0.037 * thick, ankle, 0.024 * thick), _darker(shin, light))),
        (f"{side}_thigh", Part(_capsule(hip, 0.056 * thick, knee, 0.039 * thick), _darker(look.bottom, light))),
    ]


def _arm(joints: Skeleton, look: Look, side: str, light: float) -> list[NamedPart]:
    shoulder, elbow, wrist, hand = (joints[f"{side}_{name}"] for name in ("shoulder", "elbow", "wrist", "hand"))
    forearm = look.top if look.sleeves == "long" or look.lower == "coat" else look.skin
    thick = look.girth
    return [
        (f"{side}_hand", Part(_capsule(wrist, 0.02, hand, 0.02), _darker(look.skin, light))),
        (f"{side}_forearm", Part(_capsule(elbow, 0.029 * thick, wrist, 0.022), _darker(forearm, light))),
        (f"{side}_arm", Part(_capsule(shoulder, 0.034 * thick, elbow, 0.029 * thick), _darker(look.top, light))),
    ]


def _trunk(joints: Skeleton, look: Look, view: View) -> list[NamedPart]:
    """The torso, what hangs from the waist, and the neck."""
    (top, neck_y, _), (bottom, hip_y, _) = joints["neck"], joints["pelvis"]
    tall = hip_y - neck_y
    girth = look.girth

    def level(down: float, side: float, front: float) -> tuple[float, float, float]:
        return top + (bottom - top) * down, neck_y + tall * down, view.half_width(side * girth, front * girth)

    def silhouette(levels: Sequence[tuple[float, float, float]]) -> Polygon:
        right = [(x + half, y) for x, y, half in levels]
        left = [(x - half, y) for x, y, half in reversed(levels)]
        return Polygon(tuple(left[-1:] + right + left[:-1]))

    # Polygons are convex: towards the hem a width may grow more slowly, never faster.
    chest = [level(-0.02, 0.035, 0.03), level(0.04, 0.085, 0.05), level(0.13, 0.11, 0.07), level(0.4, 0.114, 0.086)]
    hem = level(1.5, 0.13, 0.12) if look.lower == "coat" else level(1.12, 0.112, 0.088)
    parts = []
    if look.lower == "skirt":
        skirt = silhouette([level(0.8, 0.09, 0.08), level(1.1, 0.112, 0.103), level(1.62, 0.15, 0.14)])
        parts.append(("trunk_skirt", Part(skirt, look.bottom)))
    parts.append(("trunk", Part(silhouette([*chest, hem]), look.top)))
    throat = Capsule(top, neck_y + 0.012, 0.033, joints["head"][0], joints["head"][1] + 0.03, 0.031)
    parts.append(("neck", Part(throat, _darker(look.skin, 0.86))))
    return parts


def _long_hair(joints: Skeleton, look: Look, face: View) -> Part:
    (x, y, _), sin = joints["head"], sine(face.degrees)
    fall = Capsule(x - 0.026 * sin, y, 0.05, x - 0.036 * sin, y + 0.1, face.half_width(0.056, 0.034))
    return Part(fall, look.hair)


def _head(joints: Skeleton, look: Look, face: View) -> list[NamedPart]:
    """Hair and face, whichever is nearer last, and eyes where they can be seen."""
    x, y, _ = joints["head"]
    sin, cos = sine(face.degrees), cosine(face.degrees)
    skin = Part(Ellipse(x, y, face.half_width(0.05, 0.056), 0.071), look.skin)
    cap = Part(Ellipse(x - 0.014 * sin, y - 0.013, face.half_width(0.055, 0.058), 0.067), look.hair)
    hair = [("head_hair", cap)]
    if look.hairstyle == "long" and cos < 0.4:
        hair.append(("head_long_hair", _long_hair(joints, look, face)))
    if look.hairstyle == "bun":
        hair.append(("head_bun", Part(Ellipse(x - 0.062 * sin, y - 0.045 - 0.02 * abs(cos), 0.027, 0.027), look.hair)))
    if look.hairstyle == "none":
        hair = []
    if cos < -0.25:
        return [("head", skin), *hair]
    fringed = Part(Ellipse(x + 0.015 * sin, y + 0.014, face.half_width(0.047, 0.045), 0.057), look.skin)
    eyes = [
        (f"head_{name}", Part(Ellipse(joints[name][0], joints[name][1], 0.0075, 0.0075), EYE, 0.0))
        for name in ("left_eye", "right_eye")
        if _faces(name, face) > 0.25
    ]
    return [*hair, ("head", fringed if hair else skin), *eyes]


def _faces(name: str, face: View) -> float:
    """How much a point of the face looks towards the camera, -1..1."""
    sin, cos = sine(face.degrees), cosine(face.degrees)
    side = 1.0 if name.startswith("left") else -1.0
    if name == "nose":
        return cos + 0.2
    return 0.9 * cos - 0.4 * side * sin if name.endswith("eye") else 0.3 - side * sin


def body(joints: Skeleton, look: Look, view: View, face: View) -> list[NamedPart]:
    """All parts of a person, the farthest first."""
    legs = sorted(("left", "right"), key=lambda side: joints[f"{side}_knee"][2] + joints[f"{side}_ankle"][2])
    arms = sorted(("left", "right"), key=lambda side: joints[f"{side}_elbow"][2] + joints[f"{side}_wrist"][2])
    behind = [side for side in arms if joints[f"{side}_elbow"][2] + joints[f"{side}_wrist"][2] < -0.07]
    head = _head(joints, look, face)
    parts = [part for side in behind for part in _arm(joints, look, side, 0.82)]
    parts += [part for side, light in zip(legs, (0.84, 1.0), strict=True) for part in _leg(joints, look, side, light)]
    if look.hairstyle == "long" and cosine(face.degrees) >= 0.4:  # falls behind the shoulders
        parts.append(("long_hair", _long_hair(joints, look, face)))
    parts += [*_trunk(joints, look, view), *head]
    return parts + [part for side in arms if side not in behind for part in _arm(joints, look, side, 1.0)]


def _front(name: str, joints: Skeleton, order: dict[str, int], face: View) -> int:
    """The last part that may be painted over a keypoint without hiding it: one that it belongs to."""
    side, _, kind = name.partition("_")
    if kind in ("", "eye", "ear"):
        return (
            max(i for part, i in order.items() if part.startswith("head")) if _faces(name, face) > 0 else OUT_OF_SIGHT
        )
    limbs = {
        "shoulder": ("arm",), "elbow": ("arm", "forearm"), "wrist": ("forearm", "hand"), "hip": ("thigh",),
        "knee": ("thigh", "shin"), "ankle": ("shin", "foot"),
    }[kind]  # fmt: skip
    front = max(order[f"{side}_{limb}"] for limb in limbs)
    if kind in ("shoulder", "hip") and joints[name][2] > -0.035:  # on the near side of the trunk
        front = max(front, order["trunk"])
    return front


def person(dice: Dice, height: float) -> Figure:
    """Draw a pedestrian.

    Args:
        dice: decides on pose, view, build and clothes.
        height: from the crown (or a raised hand) to the lowest toe, in pixels.
    """
    pose = walking(dice) if dice.happens(0.6) else standing(dice)
    middle, spread = dice.choose(((0.0, 35.0), (90.0, 30.0), (-90.0, 30.0), (0.0, 35.0), (180.0, 30.0)))
    turn = middle + dice.uniform(-spread, spread)
    view, face = View(turn), View(turn + dice.uniform(-25, 25))
    look = dressed(dice)
    joints = skeleton(pose, look, view, face)
    named = body(joints, look, view, face)
    scale, dx, dy, size = _fit([part for _, part in named], height, dice.uniform(0, 1))
    sprite = draw([Part(p.shape.moved(scale, dx, dy), p.color, p.roundness) for _, p in named], *size)
    order = {name: index for index, (name, _) in enumerate(named)}
    return Figure(
        sprite,
        (dx, size[0] - MARGIN),
        tuple(
            Joint(joints[name][0] * scale + dx, joints[name][1] * scale + dy, _front(name, joints, order, face))
            for name in PERSON.names
        ),
    )


def _fit(parts: Sequence[Part], height: float, phase: float) -> tuple[float, float, float, tuple[int, int]]:
    """Scale and shift that make the parts `height` pixels tall within a sprite, and the sprite's height and width.

    The lowest point lies on a border between pixels; `phase` (0..1) shifts sideways by less than a pixel.
    """
    x0, y0, x1, y1 = bounds_of(parts)
    scale = height / (y1 - y0)
    rows = math.ceil(height) + 2 * MARGIN
    columns = math.ceil((x1 - x0) * scale) + 1 + 2 * MARGIN
    return scale, MARGIN + phase - x0 * scale, rows - MARGIN - y1 * scale, (rows, columns)


def _pole(dice: Dice, palette: Sequence[Color]) -> list[Part]:
    color, half = dice.color(palette, 14), dice.uniform(0.022, 0.05)
    parts = [Part(rectangle(-half, -1.0, half, 0.0), color, 0.35)]
    if dice.happens(0.5):
        reach = dice.choose((-1.0, 1.0)) * dice.uniform(0.12, 0.22)
        parts += [
            Part(Capsule(0, -0.98, half * 0.7, reach, -0.99, half * 0.6), color),
            Part(Ellipse(reach, -0.965, 0.05, 0.03), dice.color(palette, 14)),
        ]
    elif dice.happens(0.5):
        parts.append(Part(Ellipse(0, -0.96, 0.055, 0.055), dice.color(palette, 14)))
    return parts


def _bin(dice: Dice, palette: Sequence[Color]) -> list[Part]:
    color, top, foot = dice.color(palette, 14), dice.uniform(0.26, 0.36), dice.uniform(0.2, 0.26)
    lid = dice.color(palette, 14)
    return [
        Part(Polygon(((-top, -0.86), (top, -0.86), (foot, 0.0), (-foot, 0.0))), color, 0.3),
        Part(rectangle(-top * 0.9, -0.62, top * 0.9, -0.5), _darker(color, 0.8), 0.0),
        Part(Capsule(-top, -0.9, 0.06, top, -0.9, 0.06), lid),
    ]


def _sign(dice: Dice, palette: Sequence[Color]) -> list[Part]:
    board, rim, half = dice.color(palette, 14), dice.color(palette, 14), dice.uniform(0.11, 0.17)
    post = Part(rectangle(-0.018, -0.9, 0.018, 0.0), dice.color(DULL, 20), 0.3)
    middle = -1.0 + half
    if dice.happens(0.4):
        return [
            post, Part(Ellipse(0, middle, half, half), rim, 0.0), Part(Ellipse(0, middle, half * 0.7, half * 0.7), board, 0.0)
        ]  # fmt: skip
    tall = half * dice.uniform(0.8, 1.7)
    outer = rectangle(-half, -1.0, half, -1.0 + 2 * tall)
    inner = rectangle(-half * 0.8, -1.0 + 0.2 * half, half * 0.8, -1.0 + 2 * tall - 0.2 * half)
    line = -1.0 + tall
    stripe = rectangle(-half * 0.55, line - 0.02, half * 0.55, line + 0.02)
    return [post, Part(outer, rim, 0.0), Part(inner, board, 0.0), Part(stripe, rim, 0.0)]


def _tree(dice: Dice, palette: Sequence[Color]) -> list[Part]:
    bark, half = dice.color(((96, 72, 52), (76, 64, 54), (120, 100, 80)), 10), dice.uniform(0.025, 0.05)
    leaves = dice.color(palette, 14)
    parts = [Part(Capsule(0, 0, half, 0, -0.6, half * 0.7), bark, 0.3)]
    for _ in range(dice.integer(4, 7)):
        radius = dice.uniform(0.1, 0.17)
        x, y = dice.uniform(-0.15, 0.15), dice.uniform(-1.0 + radius, -0.5)
        color = _darker(leaves, dice.uniform(0.8, 1.15))
        parts.append(Part(Ellipse(x, y, radius * dice.uniform(0.9, 1.3), radius), color, 0.3))
    return parts


def thing(dice: Dice, height: float, *, camouflaged: bool) -> Figure:
    """Draw a pole, a bin, a sign or a tree.

    Args:
        dice: decides on the kind and its details.
        height: of a person who would stand there, in pixels; a bin is about half as tall, a tree somewhat taller.
        camouflaged: in the colors of people rather than in dull ones.
    """
    kind = dice.choose((_pole, _bin, _sign, _tree))
    plain = LEAVES if kind is _tree else DULL
    palette = (*CLOTHES, *TROUSERS, *SKIN) if camouflaged and (kind is not _tree or dice.happens(0.4)) else plain
    parts = kind(dice, palette)
    low, high = (0.5, 0.7) if kind is _bin else (0.85, 1.25)
    scale, dx, dy, size = _fit(parts, height * dice.uniform(low, high), dice.uniform(0, 1))
    sprite = draw([Part(p.shape.moved(scale, dx, dy), p.color, p.roundness) for p in parts], *size)
    return Figure(sprite, (dx, size[0] - MARGIN))
