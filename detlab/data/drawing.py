"""How shapes and random numbers come out the same, bit for bit, on every machine.

Everything here keeps to + - * / sqrt, minimum, maximum and comparisons in float64, which IEEE 754 rounds in one way only;
sines and exponentials, whose last bit is the C library's choice, are rounded to six places. No sums over arrays, whose
order is numpy's choice, and no library that draws.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
Color = tuple[float, float, float]  # red, green, blue in 0..255
Bounds = tuple[float, float, float, float]  # x0, y0, x1, y1

NOTHING = -1  # in Sprite.part: no part covers half of this pixel

T = TypeVar("T")


def sine(degrees: float) -> float:
    """The sine of an angle in degrees, to six places."""
    return round(math.sin(math.radians(degrees)), 6)


def cosine(degrees: float) -> float:
    """The cosine of an angle in degrees, to six places."""
    return round(math.cos(math.radians(degrees)), 6)


class Dice:
    """A stream of random numbers that depends on its name alone.

    Raw Philox words (Salmon et al., SC 2011), keyed by a hash of the name: numpy may change how its `Generator` draws from a
    distribution, but not the words of a bit generator (NEP 19).
    """

    def __init__(self, name: str) -> None:
        digest = hashlib.blake2b(name.encode(), digest_size=16).digest()
        self._words = np.random.Philox(key=int.from_bytes(digest, "little"))

    def uniform(self, low: float, high: float) -> float:
        """A number in `low` (included) to `high`."""
        return low + (high - low) * ((int(self._words.random_raw()) >> 11) * 2.0**-53)

    def log_uniform(self, low: float, high: float) -> float:
        """A number from `low` to `high` whose logarithm is uniform, to six places."""
        return round(math.exp(self.uniform(math.log(low), math.log(high))), 6)

    def integer(self, low: int, high: int) -> int:
        """A whole number from `low` to `high`, both included."""
        return low + int(self.uniform(0.0, high - low + 1.0))

    def happens(self, probability: float) -> bool:
        """True with this probability."""
        return self.uniform(0.0, 1.0) < probability

    def choose(self, choices: Sequence[T]) -> T:
        """One of the choices, each as likely."""
        return choices[self.integer(0, len(choices) - 1)]

    def color(self, palette: Sequence[Color], spread: float) -> Color:
        """A color of the palette, lighter or darker by up to `spread`, with a little of its own in each channel."""
        shift = self.uniform(-spread, spread)
        red, green, blue = (
            min(max(c + shift + self.uniform(-0.4, 0.4) * spread, 0.0), 255.0) for c in self.choose(palette)
        )
        return red, green, blue

    def noise(self, shape: tuple[int, ...]) -> FloatArray:
        """Independent numbers in -1..1, a triangular distribution around 0.

        Args:
            shape: of the result, float64.
        """
        count = math.prod(shape)
        raw = self._words.random_raw(-(-count // 4))
        octets = np.asarray(raw, dtype="<u8").view(np.uint8).reshape(-1, 2)[:count].astype(np.float64)
        return ((octets[:, 0] + octets[:, 1] - 255.0) / 255.0).reshape(shape)


class Shape(Protocol):
    """A filled shape in the plane: x to the right, y down."""

    def bounds(self) -> Bounds:
        """The smallest rectangle that holds it."""
        ...

    def moved(self, scale: float, dx: float, dy: float) -> Shape:
        """The shape after `x * scale + dx, y * scale + dy`."""
        ...

    def thickness(self) -> float:
        """How far its middle lies from its edge, about."""
        ...

    def distance(self, x: FloatArray, y: FloatArray) -> FloatArray:
        """Signed distance from the edge, negative inside: `x` `[1, W]` and `y` `[H, 1]` give `[H, W]`."""
        ...


@dataclass(frozen=True)
class Capsule:
    """A limb: a thick line with round ends, from (ax, ay) with radius ar to (bx, by) with radius br."""

    ax: float
    ay: float
    ar: float
    bx: float
    by: float
    br: float

    def bounds(self) -> Bounds:
        return (
            min(self.ax - self.ar, self.bx - self.br),
            min(self.ay - self.ar, self.by - self.br),
            max(self.ax + self.ar, self.bx + self.br),
            max(self.ay + self.ar, self.by + self.br),
        )

    def moved(self, scale: float, dx: float, dy: float) -> Capsule:
        return Capsule(
            self.ax * scale + dx, self.ay * scale + dy, self.ar * scale,
            self.bx * scale + dx, self.by * scale + dy, self.br * scale,
        )  # fmt: skip

    def thickness(self) -> float:
        return 0.5 * (self.ar + self.br)

    def distance(self, x: FloatArray, y: FloatArray) -> FloatArray:
        dx, dy = self.bx - self.ax, self.by - self.ay
        length2 = max(dx * dx + dy * dy, 1e-9)
        px, py = x - self.ax, y - self.ay
        along = np.clip((px * dx + py * dy) / length2, 0.0, 1.0)
        ex, ey = px - along * dx, py - along * dy
        return np.sqrt(ex * ex + ey * ey) - (self.ar + along * (self.br - self.ar))


@dataclass(frozen=True)
class Ellipse:
    """An ellipse with upright axes: centre (x, y), half axes rx and ry."""

    x: float
    y: float
    rx: float
    ry: float

    def bounds(self) -> Bounds:
        return self.x - self.rx, self.y - self.ry, self.x + self.rx, self.y + self.ry

    def moved(self, scale: float, dx: float, dy: float) -> Ellipse:
        return Ellipse(self.x * scale + dx, self.y * scale + dy, self.rx * scale, self.ry * scale)

    def thickness(self) -> float:
        return min(self.rx, self.ry)

    def distance(self, x: FloatArray, y: FloatArray) -> FloatArray:
        ex, ey = (x - self.x) / self.rx, (y - self.y) / self.ry
        return (np.sqrt(ex * ex + ey * ey) - 1.0) * min(self.rx, self.ry)


@dataclass(frozen=True)
class Polygon:
    """A convex polygon, its corners clockwise as seen (y points down)."""

    points: tuple[tuple[float, float], ...]

    def bounds(self) -> Bounds:
        xs, ys = [p[0] for p in self.points], [p[1] for p in self.points]
        return min(xs), min(ys), max(xs), max(ys)

    def moved(self, scale: float, dx: float, dy: float) -> Polygon:
        return Polygon(tuple((x * scale + dx, y * scale + dy) for x, y in self.points))

    def thickness(self) -> float:
        x0, y0, x1, y1 = self.bounds()
        return 0.5 * min(x1 - x0, y1 - y0)

    def distance(self, x: FloatArray, y: FloatArray) -> FloatArray:
        result = np.full((y.shape[0], x.shape[1]), -1e9)
        for (ax, ay), (bx, by) in zip(self.points, self.points[1:] + self.points[:1], strict=True):
            dx, dy = bx - ax, by - ay
            length = math.sqrt(dx * dx + dy * dy)
            if length > 0:
                np.maximum(result, (x - ax) * (dy / length) - (y - ay) * (dx / length), out=result)
        return result


def rectangle(x0: float, y0: float, x1: float, y1: float) -> Polygon:
    """The polygon with these two corners."""
    return Polygon(((x0, y0), (x1, y0), (x1, y1), (x0, y1)))


@dataclass(frozen=True)
class Part:
    """A shape in one color; `roundness` darkens its edge (0 is flat)."""

    shape: Shape
    color: Color
    roundness: float = 0.22


def bounds_of(parts: Sequence[Part]) -> Bounds:
    """The smallest rectangle that holds all parts."""
    each = [part.shape.bounds() for part in parts]
    return min(b[0] for b in each), min(b[1] for b in each), max(b[2] for b in each), max(b[3] for b in each)


@dataclass(frozen=True)
class Sprite:
    """A figure drawn on nothing, ready to be laid over a picture at any whole pixel."""

    color: FloatArray  # [h, w, 3], 0..255, times coverage
    coverage: FloatArray  # [h, w], 0..1
    part: NDArray[np.int16]  # [h, w], index of the last part that covers half of the pixel, or NOTHING

    @property
    def mask(self) -> BoolArray:
        """The pixels that are the figure's: `[h, w]`, covered by half or more."""
        return self.coverage >= 0.5


def draw(parts: Sequence[Part], height: int, width: int) -> Sprite:
    """Draw parts over each other, the first one at the back.

    A pixel's coverage is taken from the distance between its centre and the edge, so a shape's own mask (covered by half or
    more) is exactly the pixels whose centre lies within it.

    Args:
        parts: with shapes in the sprite's pixels; the centre of the first pixel is (0.5, 0.5).
        height: of the sprite.
        width: of the sprite.
    """
    sprite = Sprite(
        np.zeros((height, width, 3)), np.zeros((height, width)), np.full((height, width), NOTHING, np.int16)
    )
    for index, part in enumerate(parts):
        x0, y0, x1, y1 = part.shape.bounds()
        left, top = max(math.floor(x0) - 1, 0), max(math.floor(y0) - 1, 0)
        right, bottom = min(math.ceil(x1) + 1, width), min(math.ceil(y1) + 1, height)
        if left >= right or top >= bottom:
            continue
        x = np.arange(left, right, dtype=np.float64)[None, :] + 0.5
        y = np.arange(top, bottom, dtype=np.float64)[:, None] + 0.5
        distance = part.shape.distance(x, y)
        covered = np.clip(0.5 - distance, 0.0, 1.0)
        edge = np.clip(1.0 + distance / max(part.shape.thickness(), 1e-6), 0.0, 1.0)
        light = covered * (1.0 - part.roundness * (edge * edge))
        window = (slice(top, bottom), slice(left, right))
        remains = 1.0 - covered
        for channel in range(3):
            below = sprite.color[..., channel][window]
            sprite.color[..., channel][window] = below * remains + light * part.color[channel]
        sprite.coverage[window] = sprite.coverage[window] * remains + covered
        sprite.part[window][covered >= 0.5] = index
    return sprite
