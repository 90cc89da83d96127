"""How are numbers drawn on a page? As SVG that needs no script, in colours that the colour-blind can tell apart."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from detlab import pages
from detlab.pages import text

Point = tuple[float, float]
Axis = tuple[str, Sequence[str] | None, bool]  # name, its choices in order (None: numbers), logarithmic

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BELOW = 460, 280, 56, 14, 12, 40
# Of Okabe and Ito's palette (detlab.pictures.COLOURS), those that show on white and on black.
INKS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
FAINT = "#888888"  # of the many that stand behind
_UNIT = (0.0, 1.0)


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
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text(said)}</text>'


def figure(title: str, drawing: str, legend: Mapping[str, str], *, height: int = HEIGHT, width: int = WIDTH) -> str:
    """A drawing with its title above and its legend (name to colour) below."""
    names = "".join(f'<li><i style="background:{c}"></i>{text(name)}</li>' for name, c in legend.items())
    said = text(title)
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
                f'<circle cx="{right:.1f}" cy="{down:.1f}" r="5" fill="{ink(place)}"><title>{text(said)}</title></circle>'
            )
            number += 1
    return figure(title, "".join(parts), {name: ink(i) for i, name in enumerate(series) if len(series) > 1})


def curves(
    title: str,
    lines: Sequence[tuple[str, str, Sequence[Point]]],
    x_name: str,
    *,
    faint: str | None = None,
    unit: bool = False,
) -> str:
    """Lines, each with the series whose colour it has, its name for the pointer, and its points.

    Args:
        title: plain text.
        lines: at least one, with at least one point.
        x_name: of the lower axis.
        faint: a series that is grey and stands behind the others.
        unit: whether both axes go from 0 to 1; else as far as the points do.
    """
    lines = sorted(lines, key=lambda line: line[0] != faint)
    names = list(dict.fromkeys(series for series, _, _ in lines if series != faint))
    colours = {name: ink(i) for i, name in enumerate(names)} | ({faint: FAINT} if faint is not None else {})
    points = [point for _, _, each in lines for point in each]
    spans = (_UNIT, _UNIT) if unit else (_span([x for x, _ in points], False), _span([y for _, y in points], False))
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
        way, colour = "L".join(f"{x:.1f} {y:.1f}" for x, y in placed), colours[series]
        parts.append(f'<path class="line" d="M{way}" stroke="{colour}"><title>{text(name)}</title></path>')
        if len(placed) <= 12:
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in placed]
    return figure(title, "".join(parts), colours if len(colours) > 1 else {})


def bars(title: str, rows: Sequence[tuple[str, float, str]]) -> str:
    """Lying bars from 0: a name, a length (0 and more), and what stands at the end of each."""
    most, line, left, right = max((value for _, value, _ in rows), default=0.0) or 1.0, 26, 90, 60
    parts = []
    for place, (name, value, said) in enumerate(rows):
        y, long = place * line + 4, max(1.0, value / most * (WIDTH - left - right))
        parts.append(f'<rect x="{left}" y="{y}" width="{long:.1f}" height="{line - 8}" fill="{ink(0)}"/>')
        parts += [_text(left - 8, y + 13, name, "end"), _text(left + long + 6, y + 13, said, "start")]
    return figure(title, "".join(parts), {}, height=len(rows) * line + 4)


def reliability(title: str, bins: Sequence[Mapping[str, Any]], x_name: str) -> str:
    """The part that is right (bars, the paler the fewer) over the mean score of each bin; at the dashed line both are equal.

    Args:
        title: plain text.
        bins: `from`, `to`, `count`, `score`, `precision`; see `detlab.analysis.calibration`.
        x_name: of the lower axis.
    """

    def at(x: float, y: float) -> tuple[float, float]:
        return LEFT + x * (WIDTH - LEFT - RIGHT), HEIGHT - BELOW - y * (HEIGHT - TOP - BELOW)

    parts = [_frame((_UNIT, _UNIT), [(value, f"{value:g}") for value in _ticks(_UNIT)], x_name)]
    most = max(each["count"] for each in bins)
    for each in (one for one in bins if one["count"]):
        part, score, count = each["precision"], each["score"], each["count"]
        (x0, y), (x1, bottom), (dot, _) = at(each["from"], part), at(each["to"], 0), at(score, 0)
        said = f"{each['from']:g} to {each['to']:g}: {count} detections, mean score {pages.number(score)}, "
        parts.append(
            f"<g><title>{text(said + pages.number(part))} right</title>"
            f'<rect x="{x0 + 1:.1f}" y="{y:.1f}" width="{x1 - x0 - 2:.1f}" height="{bottom - y:.1f}" fill="{ink(0)}" '
            f'fill-opacity="{0.3 + 0.6 * math.sqrt(count / most):.2f}"/>'
            f'<circle cx="{dot:.1f}" cy="{y:.1f}" r="4" fill="{ink(1)}"/>'
            f"{_text((x0 + x1) / 2, bottom - 5 if bottom - y > 24 else y - 8, str(count))}</g>"
        )
    (x0, y0), (x1, y1) = at(0, 0), at(1, 1)
    parts.append(f'<path class="axis" stroke-dasharray="4 3" d="M{x0:.1f} {y0:.1f}L{x1:.1f} {y1:.1f}"/>')
    return figure(
        title, "".join(parts), {"part that is right, with the number of detections": ink(0), "mean score": ink(1)}
    )


def columns(title: str, counts: Sequence[int], edges: Sequence[float], *, whole: bool = False) -> str:
    """Upright bars; a bar's own numbers come up under the pointer.

    Args:
        title: what was measured.
        counts: how many of it lie between each two edges; none where nothing was measured.
        edges: one more than counts.
        whole: whether these are whole numbers, which stand below their bars and not between them.
    """
    if not counts:
        return f"<figure><figcaption>{text(title)}: none</figcaption></figure>"
    width, height, left = 400, 150, 20
    said = [f"{edge:.0f}" if edge >= 100 else f"{edge:.3g}" for edge in edges]
    step, tallest = (width - 2 * left) / len(counts), max(counts) or 1
    marks = []
    for place, count in enumerate(counts):
        tall = count / tallest * (height - 16)
        marks.append(
            f'<rect x="{left + place * step:.1f}" y="{height - tall:.1f}" width="{max(1.0, step - 1):.1f}" '
            f'height="{tall:.1f}" fill="{ink(0)}"><title>{said[place]} to {said[place + 1]}: {count}</title></rect>'
        )
        if count == tallest:
            marks.append(_text(left + (place + 0.5) * step, height - tall - 3, str(count)))
    labels = said[:-1] if whole else said
    for place in range(0, len(labels), -(-len(labels) // 9)):
        marks.append(_text(left + (place + 0.5 * whole) * step, height + 15, labels[place]))
    return figure(title, "".join(marks), {}, height=height + 22, width=width)


def distribution(title: str, counts: Sequence[float], edges: Sequence[float], interval: tuple[float, float]) -> str:
    """Upright bars, an interval below them, and a dashed line at 0, which lies between the first edge and the last."""
    width, height = 600, 150

    def x(value: float) -> float:
        return width * (value - edges[0]) / (edges[-1] - edges[0])

    most = max(counts)
    drawn = "".join(
        f'<rect x="{x(left):.1f}" y="{120 - 110 * count / most:.1f}" width="{x(right) - x(left):.1f}" '
        f'height="{110 * count / most:.1f}" fill="{INKS[5]}"/>'
        for count, left, right in zip(counts, edges[:-1], edges[1:], strict=True)
    )
    marks = (
        f'<path class="axis" stroke-dasharray="4 3" d="M{x(0):.1f} 0V130"/>'
        f'<path stroke="{INKS[1]}" stroke-width="5" d="M{x(interval[0]):.1f} 126H{x(interval[1]):.1f}"/>'
    )
    return figure(title, drawn + marks + _text(x(0), 146, "0"), {}, height=height, width=width)


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
        drawn.append(f'<path class="line" d="M{way}" stroke="{colour}"><title>{text(name)}</title></path>')
    legend = {name: ink(i) for i, name in enumerate(names) if len(names) > 1}
    return figure(title, "".join(drawn + parts), legend, width=width)
