"""How does a comparison look as one page: tables, the bootstrap's distribution, pictures; nothing that needs a network."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from detlab.analysis.bootstrap import CAVEAT, Difference
from detlab.analysis.comparison import Compared
from detlab.structures import IouType
from detlab.untrusted import printable

_STYLE = """
:root { color-scheme: light dark }
body { font: 16px/1.45 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem }
.wide { overflow-x: auto } table { border-collapse: collapse; font-size: 0.9rem }
td, th { padding: 0.2rem 0.6rem; border-bottom: 1px solid #8884; text-align: left; vertical-align: top; overflow-wrap: anywhere }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
svg, img { max-width: 100%; height: auto } .verdict { font-weight: 600 }
@media print { figure, tr { break-inside: avoid } }
"""


def page(
    titles: tuple[str, str],
    facts: Sequence[tuple[str, Any, Any]],
    config: Mapping[str, tuple[Any, Any]] | None,
    comparisons: Mapping[IouType, Compared],
    pictures: Sequence[tuple[str, bytes]],
) -> str:
    """The page, as HTML.

    Args:
        titles: what A and B are.
        facts: what is known of both: a name, A's value, B's value.
        config: keys that differ, with both values; None where no configuration is known.
        comparisons: by type.
        pictures: a caption and a JPEG each.
    """
    verdicts = [f'<p class="verdict">{_text(said)}</p>' for c in comparisons.values() for said in c.verdicts]
    parts = [
        f"<h1>A and B</h1><p>A: {_text(titles[0])}<br>B: {_text(titles[1])}</p>",
        *verdicts,
        f"<p>{_text(CAVEAT)}</p>",
    ]
    for c in comparisons.values():
        parts += [_distribution(name, found) for name, found in c.intervals.items()]
    parts.append("<h2>Numbers</h2>" + _numbers(comparisons))
    if config is not None:
        rows = [(key, *pair) for key, pair in config.items()]
        parts.append("<h2>Configuration</h2>" + (_table(rows) if rows else "<p>The same, key by key.</p>"))
    if facts:
        parts.append("<h2>Runs</h2>" + _table(facts))
    if pictures:
        parts.append("<h2>Images on which they differ most</h2><p>Each: A, B, ground truth.</p>")
        parts += [_figure(caption, jpeg) for caption, jpeg in pictures]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, '
        f'initial-scale=1"><title>detlab compare</title><style>{_STYLE}</style></head><body>{"".join(parts)}</body></html>\n'
    )


def _text(value: Any) -> str:
    """A value, which may be a stranger's, as text of a page."""
    return html.escape(printable("null" if value is None else str(value)))


def _table(rows: Sequence[tuple[str, Any, Any]]) -> str:
    body = "".join(f"<tr>{''.join(f'<td>{_text(value)}</td>' for value in row)}</tr>" for row in rows)
    return f'<div class="wide"><table><tr><th></th><th>A</th><th>B</th></tr>{body}</table></div>'


def _numbers(comparisons: Mapping[IouType, Compared]) -> str:
    rows = []
    for c in comparisons.values():
        for name, (a, b) in c.numbers.items():
            interval = c.intervals[name] if name in c.intervals else None
            said = f"{interval.low:+.4f} to {interval.high:+.4f}" if interval is not None else ""
            cells = "".join(
                f'<td class="n">{value}</td>' for value in (_number(a), _number(b), _number(b - a, "+"), said)
            )
            rows.append(f"<tr><td>{_text(name)}</td>{cells}</tr>")
    heads = "".join(f'<th class="n">{head}</th>' for head in ("A", "B", "B - A", "95 % interval"))
    return f'<div class="wide"><table><tr><th></th>{heads}</tr>{"".join(rows)}</table></div>'


def _number(value: float, sign: str = "") -> str:
    return "-" if math.isnan(value) else f"{value:{sign}.4f}"


def _distribution(name: str, found: Difference) -> str:
    """A histogram of the resamples, the interval below it, and a line at no difference."""
    if not len(found.resampled) or not math.isfinite(found.low):
        return ""
    ends = [*found.resampled, 0.0, found.low, found.high]
    low, high = float(min(ends)), float(max(ends))
    room = (high - low) * 0.05 or 0.01
    low, high = low - room, high + room
    counts, edges = np.histogram(found.resampled, bins=40, range=(low, high))

    def x(value: float) -> float:
        return 600 * (value - low) / (high - low)

    bars = "".join(
        f'<rect x="{x(left):.1f}" y="{120 - 110 * count / counts.max():.1f}" width="{x(right) - x(left):.1f}" '
        f'height="{110 * count / counts.max():.1f}" fill="#56b4e9"/>'
        for count, left, right in zip(counts, edges[:-1], edges[1:], strict=True)
    )
    marks = (
        f'<line x1="{x(0):.1f}" x2="{x(0):.1f}" y1="0" y2="130" stroke="currentColor" stroke-dasharray="4 3"/>'
        f'<line x1="{x(found.low):.1f}" x2="{x(found.high):.1f}" y1="126" y2="126" stroke="#d55e00" stroke-width="5"/>'
        f'<text x="{x(0):.1f}" y="146" text-anchor="middle" font-size="14" fill="currentColor">0</text>'
    )
    caption = (
        f"{name}: B - A on {len(found.resampled)} resamples of {found.images} images; the bar is the 95 % interval."
    )
    return (
        f'<figure><svg viewBox="0 0 600 150" role="img" aria-label="{_text(caption)}">{bars}{marks}</svg>'
        f"<figcaption>{_text(caption)}</figcaption></figure>"
    )


def _figure(caption: str, jpeg: bytes) -> str:
    data = base64.b64encode(jpeg).decode("ascii")
    said = _text(caption)
    return f'<figure><img alt="{said}" src="data:image/jpeg;base64,{data}"><figcaption>{said}</figcaption></figure>'
