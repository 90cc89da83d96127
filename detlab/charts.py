"""How are numbers drawn on a page? As SVG that needs no script, in colours that the colour-blind can tell apart."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

Point = tuple[float, float]
Axis = tuple[str, Sequence[str] | None, bool]  # name, its choices in order (None: numbers), logarithmic

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BELOW = 460, 280, 56, 14, 12, 40
# Of Okabe and Ito's palette (detlab.pictures.COLOURS), those that show on white and on black.
INKS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")


def ink(place: int) -> str:
    """The colour of the so manieth series."""
    return INKS[place % len(INKS)]


def logarithmic(name: str, values: Sequence[float]) -> bool:
    """Whether values belong on a logarithmic axis: rates and decays, and what spans a factor of 20; never zero or below."""
    positive = bool(values) and min(values) > 0
    rate = name.rpartition(".")[2] in ("lr", "weight_decay", "lr_factor")
    return positive and max(values) > min(values) and (rate or max(values) / min(values) >= 20)


def _span(values: Sequence[float], log: bool) -> tuple[float, float]:
    low, high = min(values), max(values)
    if log:
        low, high = math.log10(low), math.log10(high)
    room = (high - low) * 0.06 or abs(high) * 0.1 or 0.5
    return low - room, high + room


def _place(value: float, span: tuple[float, float], log: bool) -> float:
    """0..1 along an axis."""
    return ((math.log10(value) if log else value) - span[0]) / (span[1] - span[0])


def _ticks(span: tuple[float, float]) -> list[float]:
    """Round numbers, about five, that a linear axis is marked with."""
    rough = (span[1] - span[0]) / 5
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * unit for factor in (1, 2, 5, 10) if factor * unit >= rough)
    first = math.ceil(span[0] / step)
    return [place * step for place in range(first, math.floor(span[1] / step) + 1)]


def _text(x: float, y: float, said: str, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(said)}</text>'


def figure(title: str, drawing: str, legend: Mapping[str, str], *, height: int = HEIGHT, width: int = WIDTH) -> str:
    """A drawing with its title above and its legend (name to colour) below."""
    names = "".join(f'<li><i style="background:{c}"></i>{html.escape(name)}</li>' for name, c in legend.items())
    said = html.escape(title)
    return (
        f'<figure><figcaption>{said}</figcaption><svg viewBox="0 0 {width} {height}" role="img" aria-label="{said}">'
        f"<title>{said}</title>{drawing}</svg>{f'<ul class=legend>{names}</ul>' if names else ''}</figure>"
    )


def _frame(
    spans: tuple[tuple[float, float], tuple[float, float]], x_marks: Sequence[tuple[float, str]], x_name: str
) -> str:
    """Grid lines, numbers of the left axis, marks (0..1, text) and the name of the lower one."""
    parts = []
    for value in _ticks(spans[1]):
        y = HEIGHT - BELOW - _place(value, spans[1], False) * (HEIGHT - TOP - BELOW)
        parts.append(
            f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>' + _text(LEFT - 6, y + 4, f"{value:.4g}", "end")
        )
    for place, said in x_marks:
        parts.append(_text(LEFT + place * (WIDTH - LEFT - RIGHT), HEIGHT - BELOW + 16, said))
    return "".join(parts) + _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, x_name)


def scatter(title: str, series: Mapping[str, Sequence[tuple[float | str, float, str]]], x_name: str) -> str:
    """Points of several series: x (a number, or one of some choices), y, and what comes up under the pointer."""
    points = [point for each in series.values() for point in each]
    choices = None if all(isinstance(x, float) for x, _, _ in points) else sorted({str(x) for x, _, _ in points})
    xs = [float(x) if choices is None else float(choices.index(str(x))) for x, _, _ in points]
    log = choices is None and logarithmic(x_name, xs)
    spans = _span(xs, log), _span([y for _, y, _ in points], False)
    distinct = sorted(set(xs))
    shown = distinct if len(distinct) <= 8 else distinct[:: -(-len(distinct) // 8)]
    marks = [(_place(x, spans[0], log), f"{x:g}" if choices is None else choices[int(x)][:24]) for x in shown]
    parts, number = [_frame(spans, marks, f"{x_name}{' (logarithmic)' if log else ''}")], 0
    for place, each in enumerate(series.values()):
        for _, y, said in each:
            right = LEFT + _place(xs[number], spans[0], log) * (WIDTH - LEFT - RIGHT)
            down = HEIGHT - BELOW - _place(y, spans[1], False) * (HEIGHT - TOP - BELOW)
            parts.append(
                f'<circle cx="{right:.1f}" cy="{down:.1f}" r="5" fill="{ink(place)}"><title>{html.escape(said)}</title></circle>'
            )
            number += 1
    return figure(title, "".join(parts), {name: ink(i) for i, name in enumerate(series) if len(series) > 1})


def curves(title: str, lines: Sequence[tuple[str, str, Sequence[Point]]], x_name: str) -> str:
    """Lines, each with the series whose colour it has, its name for the pointer, and its points."""
    names = list(dict.fromkeys(series for series, _, _ in lines))
    points = [point for _, _, each in lines for point in each]
    spans = _span([x for x, _ in points], False), _span([y for _, y in points], False)
    marks = [(_place(value, spans[0], False), f"{value:g}") for value in _ticks(spans[0])]
    parts = [_frame(spans, marks, x_name)]
    for series, name, each in lines:
        placed = [
            (
                LEFT + _place(x, spans[0], False) * (WIDTH - LEFT - RIGHT),
                HEIGHT - BELOW - _place(y, spans[1], False) * (HEIGHT - TOP - BELOW),
            )
            for x, y in each
        ]
        way, colour = "L".join(f"{x:.1f} {y:.1f}" for x, y in placed), ink(names.index(series))
        parts.append(f'<path class="line" d="M{way}" stroke="{colour}"><title>{html.escape(name)}</title></path>')
        if len(placed) <= 12:
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in placed]
    return figure(title, "".join(parts), {name: ink(i) for i, name in enumerate(names) if len(names) > 1})


def parallel(title: str, axes: Sequence[str], rows: Sequence[tuple[str, str, Sequence[float | str]]]) -> str:
    """Parallel coordinates: an upright axis for each name; a row is a series, a name and its value on each axis."""
    names = list(dict.fromkeys(series for series, _, _ in rows))
    width = max(WIDTH, 150 * len(axes))
    places, parts = [], []
    for number, axis in enumerate(axes):
        column = [values[number] for _, _, values in rows]
        numeric = all(isinstance(value, float) for value in column)
        choices = sorted({str(value) for value in column})
        numbers = [float(v) if numeric else float(choices.index(str(v))) for v in column]
        log = numeric and logarithmic(axis, numbers)
        span = _span(numbers, log)
        x = 75 + number * (width - 150) / max(1, len(axes) - 1)
        heights = [HEIGHT - BELOW - _place(n, span, log) * (HEIGHT - TOP - BELOW) for n in numbers]
        places.append([(x, y) for y in heights])
        parts.append(f'<path class="axis" d="M{x:.1f} {TOP}V{HEIGHT - BELOW}"/>' + _text(x, HEIGHT - 10, axis))
        ends = sorted(zip(heights, column, strict=True), key=lambda pair: pair[0])
        marked = {y: f"{v:.4g}" if isinstance(v, float) else str(v)[:24] for y, v in ends}
        shown = marked if len(marked) <= 6 else {y: marked[y] for y in (min(marked), max(marked))}
        parts += [_text(x, y - 6, said) for y, said in shown.items()]
    drawn = []
    for number, (series, name, _) in enumerate(rows):
        way = "L".join(f"{axis[number][0]:.1f} {axis[number][1]:.1f}" for axis in places)
        colour = ink(names.index(series))
        drawn.append(f'<path class="line" d="M{way}" stroke="{colour}"><title>{html.escape(name)}</title></path>')
    legend = {name: ink(i) for i, name in enumerate(names) if len(names) > 1}
    return figure(title, "".join(drawn + parts), legend, width=width)
