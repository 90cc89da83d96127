"""How a synthetic picture is put together: its background, who stands where, and what hides what."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detlab.data.drawing import NOTHING, BoolArray, Capsule, Color, Dice, Ellipse, FloatArray, Part, draw
from detlab.data.figures import CLOTHES, DULL, LEAVES, OUT_OF_SIGHT, SKIN, TROUSERS, Figure, person, thing

SKY: tuple[Color, ...] = ((176, 196, 214), (200, 206, 210), (214, 206, 194), (160, 178, 196), (188, 200, 196))
WALL: tuple[Color, ...] = ((178, 166, 150), (156, 152, 150), (190, 182, 164), (146, 152, 160), (168, 146, 134))
GROUND: tuple[Color, ...] = ((138, 136, 132), (120, 128, 108), (150, 140, 124), (116, 118, 122), (134, 124, 116))

LEAST_VISIBLE_PIXELS = 15  # of a person, else it is placed anew
LEAST_VISIBLE_SHARE = 0.25  # of the whole person's pixels, those beyond the border counted
PLACINGS = 60  # tries to find those a place who are hidden


@dataclass(frozen=True)
class Level:
    """What the pictures of one difficulty hold. The two levels are frozen: scores are compared over years."""

    height: int
    width: int
    people: int  # at most; 1 picture in 20 has none, the other counts are equally likely
    tall: tuple[float, float]  # pixels, log-uniform, of people, and of those beside whom things are sized
    things: tuple[int, int]
    busy: bool  # background, and things in the colors of people
    hiding: float  # probability that a person, and that a thing, is placed to overlap a person
    cut: float  # probability that a person may be cut by the left or right border

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.height, self.width


LEVELS = {
    "easy": Level(144, 192, 3, (36.0, 120.0), (0, 2), busy=False, hiding=0.0, cut=0.06),
    "hard": Level(192, 256, 6, (20.0, 170.0), (2, 6), busy=True, hiding=0.5, cut=0.15),
}


@dataclass(frozen=True)
class Scene:
    """A finished picture and what is known of it. N people, the farthest first."""

    image: NDArray[np.uint8]  # [H, W, 3]
    masks: BoolArray  # [N, H, W], the visible pixels
    keypoints: FloatArray  # [N, 17, 3]: x, y, visibility
    heights: tuple[float, ...]  # of the whole figures, in pixels
    hidden: tuple[float, ...]  # share of the figure's pixels within the picture that something in front hides, 0..1


@dataclass(frozen=True, eq=False)
class Placed:
    """A figure and the place of its sprite's top left pixel; the lower its foot, the nearer it is."""

    figure: Figure
    height: float
    left: int
    top: int

    @property
    def is_person(self) -> bool:
        return bool(self.figure.joints)

    @property
    def foot(self) -> float:
        return self.top + self.figure.foot[1]

    def windows(self, size: tuple[int, ...]) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """The part of the picture that the sprite covers, and the part of the sprite that is in the picture."""
        rows, columns = self.figure.sprite.coverage.shape
        y0, x0 = max(self.top, 0), max(self.left, 0)
        y1, x1 = max(min(self.top + rows, size[0]), y0), max(min(self.left + columns, size[1]), x0)
        inner = (slice(y0 - self.top, y1 - self.top), slice(x0 - self.left, x1 - self.left))
        return (slice(y0, y1), slice(x0, x1)), inner


@dataclass(frozen=True)
class Ground:
    """Where feet stand: the farther, the higher in the picture and the smaller, as a camera sees a plane."""

    horizon: float  # row
    drop: float  # rows below the horizon for each pixel of a person's height

    def foot(self, dice: Dice, height: float) -> int:
        return math.floor(self.horizon + self.drop * height + dice.uniform(-0.05, 0.05) * height + 0.5)


def compose(dice: Dice, level: Level) -> Scene:
    """Make one picture of a level; all that is in it depends on `dice` alone."""
    rows = level.height
    horizon = dice.uniform(0.28, 0.42) * rows
    nearest = dice.uniform(0.92, 0.99) * rows if not level.busy else dice.uniform(0.92, 1.04) * rows
    ground = Ground(horizon, (nearest - horizon) / level.tall[1])
    image = busy_background(dice, level, horizon) if level.busy else smooth_background(dice, level, horizon)
    cast = _cast(dice, level)
    placed: list[Placed] = []
    for figure, height in cast:
        placed.append(_place(dice, level, ground, figure, height, placed))
    for _ in range(PLACINGS):
        shown = _visible(placed, level)
        if len(shown) == len(placed):
            break
        for one in [one for one in placed if one not in shown]:
            shown.append(_place(dice, level, ground, one.figure, one.height, shown))
        placed = shown
    return _render(dice, level, image, _visible(placed, level))


def _cast(dice: Dice, level: Level) -> list[tuple[Figure, float]]:
    """Who and what takes part: figures, with the height of a person who would stand where they do."""
    people = 0 if dice.happens(0.05) else dice.integer(1, level.people)
    cast = []
    for _ in range(people):
        height = dice.log_uniform(*level.tall)
        cast.append((person(dice, height), height))
    for _ in range(dice.integer(*level.things)):
        height = dice.log_uniform(*level.tall)
        cast.append((thing(dice, height, camouflaged=level.busy), height))
    return cast


def _place(dice: Dice, level: Level, ground: Ground, figure: Figure, height: float, placed: Sequence[Placed]) -> Placed:
    """Find a figure a place among those who have theirs: beside a person, or where there is room."""
    people = [one for one in placed if one.is_person]
    if people and dice.happens(level.hiding):
        return _beside(dice, ground, figure, height, dice.choose(people))
    tries = [_somewhere(dice, level, ground, figure, height) for _ in range(2 if level.busy else 12)]
    return min(tries, key=lambda one: max((_overlap(one, other) for other in placed), default=0.0))


def _somewhere(dice: Dice, level: Level, ground: Ground, figure: Figure, height: float) -> Placed:
    """Anywhere across the picture; at times cut by a border."""
    rows, columns = figure.sprite.coverage.shape
    beyond = 0.35 * columns if dice.happens(level.cut) else 0.0
    left = math.floor(dice.uniform(-beyond, level.width - columns + beyond) + 0.5)
    return Placed(figure, height, left, _top(dice, level, ground, figure, height, rows))


def _top(dice: Dice, level: Level, ground: Ground, figure: Figure, height: float, rows: int) -> int:
    """The sprite's first row; an easy picture holds its figures from head to foot."""
    top = ground.foot(dice, height) - math.floor(figure.foot[1])
    return top if level.busy else max(min(top, level.height - rows + 1), -1)


def _beside(dice: Dice, ground: Ground, figure: Figure, height: float, mate: Placed) -> Placed:
    """Overlapping a person, before or behind them as the ground has it."""
    columns, mates = figure.sprite.coverage.shape[1], mate.figure.sprite.coverage.shape[1]
    middle = mate.left + mates / 2 + dice.uniform(-0.42, 0.42) * mates
    left = math.floor(middle - columns / 2 + 0.5)
    return Placed(figure, height, left, ground.foot(dice, height) - math.floor(figure.foot[1]))


def _overlap(one: Placed, other: Placed) -> float:
    """Common area of two sprites' rectangles over the smaller one's."""
    (h0, w0), (h1, w1) = one.figure.sprite.coverage.shape, other.figure.sprite.coverage.shape
    wide = min(one.left + w0, other.left + w1) - max(one.left, other.left)
    tall = min(one.top + h0, other.top + h1) - max(one.top, other.top)
    return max(wide, 0) * max(tall, 0) / min(h0 * w0, h1 * w1)


def _owners(placed: Sequence[Placed], level: Level) -> NDArray[np.int16]:
    """For each pixel `[H, W]` the index of the foremost figure that covers half of it, -1 where none does."""
    owner = np.full(level.size, -1, np.int16)
    for index, one in enumerate(placed):
        outer, inner = one.windows(level.size)
        owner[outer][one.figure.sprite.mask[inner]] = index
    return owner


def _visible(placed: Sequence[Placed], level: Level) -> list[Placed]:
    """All things, and the people of whom enough is seen, the farthest first.

    Leaving the rest out can only uncover more of these.
    """
    ordered = sorted(placed, key=lambda one: one.foot)
    owner = _owners(ordered, level)
    seen = []
    for index, one in enumerate(ordered):
        pixels, whole = np.count_nonzero(owner == index), np.count_nonzero(one.figure.sprite.mask)
        if not one.is_person or pixels >= max(LEAST_VISIBLE_PIXELS, LEAST_VISIBLE_SHARE * whole):
            seen.append(one)
    return seen


def _hidden(index: int, one: Placed, owner: NDArray[np.int16]) -> float:
    """The share of a figure's pixels within the picture that something in front of it owns."""
    outer, inner = one.windows(owner.shape)
    mask = one.figure.sprite.mask[inner]
    return np.count_nonzero(mask & (owner[outer] != index)) / np.count_nonzero(mask)


def _render(dice: Dice, level: Level, image: FloatArray, placed: Sequence[Placed]) -> Scene:
    owner = _owners(placed, level)
    for one in placed:
        _shade(image, one, level)
    part = np.full(level.size, NOTHING, np.int16)  # of the figure that owns the pixel
    for index, one in enumerate(placed):
        outer, inner = one.windows(level.size)
        sprite = one.figure.sprite
        image[outer] = image[outer] * (1.0 - sprite.coverage[inner][..., None]) + sprite.color[inner]
        mine = owner[outer] == index
        part[outer][mine] = sprite.part[inner][mine]
    image += dice.noise(image.shape) * (9.0 if level.busy else 5.0)
    people = [(index, one) for index, one in enumerate(placed) if one.is_person]
    return Scene(
        image=np.floor(np.clip(image, 0.0, 255.0) + 0.5).astype(np.uint8),
        masks=np.array([owner == index for index, _ in people], dtype=np.bool_).reshape(-1, *level.size),
        keypoints=np.array([_keypoints(i, one, owner, part) for i, one in people]).reshape(-1, 17, 3),
        heights=tuple(one.height for _, one in people),
        hidden=tuple(_hidden(index, one, owner) for index, one in people),
    )


def _shade(image: FloatArray, one: Placed, level: Level) -> None:
    """Darken the ground beneath a figure's feet."""
    wide, tall = 0.2 * one.height, 0.045 * one.height
    x, y = one.left + one.figure.foot[0], one.foot - 0.4 * tall
    ys = np.arange(max(math.floor(y - tall), 0), min(math.ceil(y + tall), level.height))
    xs = np.arange(max(math.floor(x - wide), 0), min(math.ceil(x + wide), level.width))
    if len(ys) == 0 or len(xs) == 0:
        return
    ex, ey = (xs[None, :] + 0.5 - x) / wide, (ys[:, None] + 0.5 - y) / tall
    light = 1.0 - 0.5 * np.clip(1.0 - (ex * ex + ey * ey), 0.0, 1.0)
    image[ys[0] : ys[-1] + 1, xs[0] : xs[-1] + 1] *= light[..., None]


def _keypoints(
    index: int, one: Placed, owner: NDArray[np.int16], part: NDArray[np.int16]
) -> list[tuple[float, float, float]]:
    """COCO's triples: 2 seen, 1 behind something or the person's own body, 0 (and 0, 0) outside the picture."""
    height, width = owner.shape
    triples = []
    for joint in one.figure.joints:
        x, y = round(joint.x + one.left, 2), round(joint.y + one.top, 2)
        if not (0 <= x < width and 0 <= y < height):
            triples.append((0.0, 0.0, 0.0))
            continue
        row, column = math.floor(y), math.floor(x)
        behind_another = owner[row, column] > index
        behind_itself = owner[row, column] == index and part[row, column] > joint.front
        seen = not (behind_another or behind_itself or joint.front == OUT_OF_SIGHT)
        triples.append((x, y, 2.0 if seen else 1.0))
    return triples


def _ramp(start: Color, end: Color, count: int) -> FloatArray:
    """`[count, 3]`, from one color to the other."""
    t = (np.arange(count, dtype=np.float64) + 0.5)[:, None] / max(count, 1)
    return np.array(start) * (1.0 - t) + np.array(end) * t


def smooth_background(dice: Dice, level: Level, horizon: float) -> FloatArray:
    """Sky or a wall above, ground below, in muted colors: `[H, W, 3]`, 0..255."""
    upper = dice.choose((SKY, WALL))
    split = math.floor(horizon)
    above = _ramp(dice.color(upper, 10), dice.color(upper, 10), split)
    below = _ramp(dice.color(GROUND, 10), dice.color(GROUND, 10), level.height - split)
    column = np.concatenate((above, below))
    soft = column.copy()
    for row in range(max(split - 2, 1), min(split + 3, level.height - 1)):
        soft[row] = (column[row - 1] + column[row] + column[row + 1]) / 3.0
    image = np.repeat(soft[:, None, :], level.width, axis=1)
    return image + 7.0 * patches(dice, level, 48)[..., None]


def patches(dice: Dice, level: Level, cell: int) -> FloatArray:
    """Smooth random patches of about `cell` pixels: `[H, W]`, -1..1 (value noise)."""
    rows, columns = level.height // cell + 2, level.width // cell + 2
    grid = dice.noise((rows, columns))
    y = (np.arange(level.height, dtype=np.float64) + 0.5) / cell
    x = (np.arange(level.width, dtype=np.float64) + 0.5) / cell
    row, column = np.floor(y).astype(np.int64), np.floor(x).astype(np.int64)
    ty, tx = (y - row)[:, None], (x - column)[None, :]
    ty, tx = ty * ty * (3.0 - 2.0 * ty), tx * tx * (3.0 - 2.0 * tx)
    along_rows = grid[row] * (1.0 - ty) + grid[row + 1] * ty
    return along_rows[:, column] * (1.0 - tx) + along_rows[:, column + 1] * tx


def busy_background(dice: Dice, level: Level, horizon: float) -> FloatArray:
    """A street or a park full of edges and of colors that people wear: `[H, W, 3]`, 0..255."""
    image = smooth_background(dice, level, horizon)
    split = math.floor(horizon)
    dice.choose((_street, _park))(dice, image, split)
    _paving(dice, image, split)
    for cell, strength in ((24, 16.0), (8, 12.0), (3, 10.0)):
        image += strength * patches(dice, level, cell)[..., None]
    return image


def _block(image: FloatArray, y0: float, y1: float, x0: float, x1: float, color: Color, opacity: float) -> None:
    """Blend a rectangle of whole pixels into the picture."""
    rows = slice(max(math.floor(y0), 0), max(math.floor(y1), 0))
    columns = slice(max(math.floor(x0), 0), max(math.floor(x1), 0))
    image[rows, columns] = image[rows, columns] * (1.0 - opacity) + np.array(color) * opacity


def _street(dice: Dice, image: FloatArray, split: int) -> None:
    """House fronts with windows, doors and shop signs, down to a kerb below the horizon."""
    kerb, x = split + dice.uniform(0.02, 0.1) * image.shape[0], 0.0
    while x < image.shape[1]:
        wide, roof = dice.uniform(34, 90), dice.uniform(-0.3, 0.5) * split
        _block(image, roof, kerb, x, x + wide, dice.color((*WALL, *DULL, *CLOTHES), 14), dice.uniform(0.55, 0.95))
        pane, glass = dice.uniform(6, 12), dice.color((*TROUSERS, *SKY), 14)
        step_x, step_y = pane * dice.uniform(1.5, 2.2), pane * dice.uniform(1.7, 2.4)
        for row in range(math.floor((kerb - roof) / step_y)):
            for column in range(math.floor((wide - 4) / step_x)):
                left, top = x + 4 + column * step_x, roof + 4 + row * step_y
                _block(image, top, top + pane * 1.3, left, left + pane, glass, 0.8)
        door = x + dice.uniform(0.1, 0.7) * wide
        tall = dice.uniform(18, 46)
        _block(image, kerb - tall, kerb, door, door + 0.36 * tall, dice.color((*CLOTHES, *TROUSERS), 14), 0.9)
        x += wide


def _park(dice: Dice, image: FloatArray, split: int) -> None:
    """A hedge of leaves and blossoms, trunks before it, up to the top of the picture or a little lower."""
    height, width = image.shape[:2]
    base, top = split + dice.uniform(0.02, 0.1) * height, dice.uniform(-0.5, 0.4) * split
    _block(image, top + 6, base, 0, width, dice.color(LEAVES, 14), 1.0)
    parts = []
    for _ in range(dice.integer(90, 140)):
        x, y = dice.uniform(0, width), dice.uniform(max(top, 0), base)
        leaf = dice.happens(0.7)
        radius = dice.uniform(4, 12) if leaf else dice.uniform(2, 7)
        color = dice.color(LEAVES if leaf else (*CLOTHES, *TROUSERS), 22)
        parts.append(Part(Ellipse(x, y, radius * dice.uniform(0.8, 1.4), radius * dice.uniform(0.6, 1.0)), color))
    for _ in range(dice.integer(4, 9)):
        x, half, tall = dice.uniform(0, width), dice.uniform(1, 3.5), dice.uniform(20, 90)
        bark = dice.color((*TROUSERS, *SKIN), 14)
        parts.append(Part(Capsule(x, base, half, x + dice.uniform(-5, 5), base - tall, half * 0.7), bark))
    leaves = draw(parts, height, width)
    image *= 1.0 - leaves.coverage[..., None]
    image += leaves.color


def _paving(dice: Dice, image: FloatArray, split: int) -> None:
    """Joints between slabs that close up towards the horizon, puddles and stripes on the road."""
    height, width = image.shape[:2]
    dark: Color = (70, 70, 70)
    gap, y = dice.uniform(3, 6), split + 4.0
    while y < height:
        _block(image, y, y + 1, 0, width, dark, 0.25)
        y, gap = y + gap, gap * 1.3
    for _ in range(dice.integer(5, 14)):
        y, x = dice.uniform(split + 6, height), dice.uniform(-10, width)
        near = (y - split) / (height - split)
        wide, tall = (8 + 50 * near) * dice.uniform(0.3, 1.0), 1 + 7 * near * dice.uniform(0.3, 1.0)
        color = dice.color((*CLOTHES, *GROUND, (225, 225, 220)), 14)
        _block(image, y, y + tall, x, x + wide, color, dice.uniform(0.3, 0.8))
