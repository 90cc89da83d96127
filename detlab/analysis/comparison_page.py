"""How does a comparison look as one page: tables, the bootstrap's distribution, pictures; nothing that needs a network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from detlab import charts, pages
from detlab.analysis.bootstrap import CAVEAT, Difference
from detlab.analysis.comparison import Compared
from detlab.pages import jpeg_uri, pictures, table, text
from detlab.structures import IouType


def page(
    titles: tuple[str, str],
    facts: Sequence[tuple[str, Any, Any]],
    config: Mapping[str, tuple[Any, Any]] | None,
    comparisons: Mapping[IouType, Compared],
    drawn: Sequence[tuple[str, bytes]],
) -> str:
    """The page, as HTML.

    Args:
        titles: what A and B are.
        facts: what is known of both: a name, A's value, B's value.
        config: keys that differ, with both values; None where no configuration is known.
        comparisons: by type.
        drawn: a caption and a JPEG each.
    """
    verdicts = [f'<p class="verdict">{text(said)}</p>' for c in comparisons.values() for said in c.verdicts]
    parts = [
        f"<h1>A and B</h1><p>A: {text(titles[0])}<br>B: {text(titles[1])}</p>",
        *verdicts,
        f"<p>{text(CAVEAT)}</p>",
    ]
    for c in comparisons.values():
        parts += [_distribution(name, found) for name, found in c.intervals.items()]
    parts.append("<h2>Numbers</h2>" + _numbers(comparisons))
    if config is not None:
        rows = [(key, *pair) for key, pair in config.items()]
        parts.append("<h2>Configuration</h2>" + (_beside(rows) if rows else "<p>The same, key by key.</p>"))
    if facts:
        parts.append("<h2>Runs</h2>" + _beside(facts))
    if drawn:
        parts.append("<h2>Images on which they differ most</h2><p>Each: A, B, ground truth.</p>")
        parts += [pictures(caption, [(caption, jpeg_uri(jpeg))]) for caption, jpeg in drawn]
    return pages.page("A and B", parts)


def _beside(rows: Sequence[tuple[str, Any, Any]]) -> str:
    return table(["", "A", "B"], [[text(value) for value in row] for row in rows])


def _numbers(comparisons: Mapping[IouType, Compared]) -> str:
    rows = []
    for c in comparisons.values():
        for name, (a, b) in c.numbers.items():
            interval = c.intervals[name] if name in c.intervals else None
            said = f"{interval.low:+.4f} to {interval.high:+.4f}" if interval is not None else ""
            rows.append([name, _number(a), _number(b), _number(b - a, "+"), said])
    return table(["", "A", "B", "B - A", "95 % interval"], rows)


def _number(value: float, sign: str = "") -> str:
    return "-" if math.isnan(value) else f"{value:{sign}.4f}"


def _distribution(name: str, found: Difference) -> str:
    """A histogram of the resamples, the interval below it, and a line at no difference."""
    if not len(found.resampled) or not math.isfinite(found.low):
        return ""
    ends = [*found.resampled, 0.0, found.low, found.high]
    room = (float(max(ends)) - float(min(ends))) * 0.05 or 0.01
    span = float(min(ends)) - room, float(max(ends)) + room
    counts, edges = np.histogram(found.resampled, bins=40, range=span)
    caption = (
        f"{name}: B - A on {len(found.resampled)} resamples of {found.images} images; the bar is the 95 % interval."
    )
    return charts.distribution(caption, counts.tolist(), edges.tolist(), (found.low, found.high))
