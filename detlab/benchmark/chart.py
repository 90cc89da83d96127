"""Curves on logarithmic scales, drawn without a library for it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from detlab.pictures import COLOURS

_PANEL, _LEFT, _BELOW, _ABOVE, _RIGHT = (420, 320), 70, 40, 40, 30  # pixels of a panel, and around its curve


def drawn(curves: Mapping[str, Sequence[tuple[float, float]]]) -> Tensor:
    """A panel for each curve, side by side: its points, each with its x below and its y (seconds) at the left, both logarithmic.

    A cost in proportion is parallel to the grey line, which has the slope 1.

    Args:
        curves: by name; two points or more, x and y above 0.

    Returns:
        uint8 `[3, H, W]`.
    """
    canvas = Image.new("RGB", (_PANEL[0] * len(curves), _PANEL[1]), "white")
    for number, (name, points) in enumerate(curves.items()):
        canvas.paste(_panel(name, points, COLOURS[(4 + number) % len(COLOURS)]), (_PANEL[0] * number, 0))
    return F.pil_to_tensor(canvas)


def _panel(name: str, points: Sequence[tuple[float, float]], colour: tuple[int, int, int]) -> Image.Image:
    panel = Image.new("RGB", _PANEL, "white")
    pen, font = ImageDraw.Draw(panel), ImageFont.load_default(12)
    (low_x, high_x), (low_y, high_y) = ((min(values), max(values)) for values in zip(*points, strict=True))
    wide, tall = _PANEL[0] - _LEFT - _RIGHT, _PANEL[1] - _ABOVE - _BELOW
    # One scale for both axes, or a slope could not be seen.
    unit = min(wide / math.log(high_x / low_x), tall / max(math.log(high_y / low_y), 1e-9))

    def at(x: float, y: float) -> tuple[float, float]:
        return _LEFT + unit * math.log(x / low_x), _PANEL[1] - _BELOW - unit * math.log(y / low_y)

    reach = min(high_x / low_x, math.exp(tall / unit))
    pen.line((at(low_x, low_y), at(low_x * reach, low_y * reach)), fill="lightgrey", width=2)
    pen.line([at(x, y) for x, y in points], fill=colour, width=3)
    for x, y in points:
        right, up = at(x, y)
        pen.ellipse((right - 4, up - 4, right + 4, up + 4), fill=colour)
        pen.text((right, _PANEL[1] - _BELOW + 8), f"{x:.4g}", fill="black", font=font, anchor="mt")
        pen.text((_LEFT - 10, up), f"{y:.3g} s", fill="black", font=font, anchor="rm")
    pen.line([(_LEFT, _ABOVE), (_LEFT, _PANEL[1] - _BELOW), (_PANEL[0] - _RIGHT, _PANEL[1] - _BELOW)], fill="black")
    pen.text((_PANEL[0] / 2, 12), name, fill="black", font=ImageFont.load_default(16), anchor="mt")
    return panel
