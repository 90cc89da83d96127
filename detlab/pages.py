"""What do all pages share: one HTML file that needs nothing else, on a phone, in the dark and on paper."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Iterable, Sequence
from typing import Any

from detlab.untrusted import printable

ABSENT = "–"  # where there is nothing to measure


class Html(str):
    """Markup. Every other text, which may be a stranger's, is escaped before it stands on a page."""

    __slots__ = ()


def text(value: Any) -> Html:
    """A value as text of a page, and as that of an attribute; what is markup already stays so."""
    return value if isinstance(value, Html) else Html(html.escape(printable("null" if value is None else str(value))))


def number(value: float | None, digits: int = 3, sign: str = "") -> str:
    """With so many digits behind the point; `ABSENT` for None and what is not finite."""
    return ABSENT if value is None or not math.isfinite(value) else f"{value:{sign}.{digits}f}"


def page(title: str, parts: Iterable[str], *, scripts: Sequence[str] = (), beside: bool = False) -> str:
    """A whole page, which loads nothing: its own policy forbids it.

    Args:
        title: plain text.
        parts: markup; empty ones are left out.
        scripts: of `SORTING` and `COPYING`, what its parts need; without any, the policy forbids scripts.
        beside: whether it may show pictures that lie beside it.
    """
    images = "data: file: 'self'" if beside else "data:"
    policy = f"default-src 'none'; img-src {images}; style-src 'unsafe-inline'"
    policy += "; script-src 'unsafe-inline'" if scripts else ""
    body = "\n".join([*filter(None, parts), *([f"<script>{''.join(scripts)}</script>"] if scripts else [])])
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f"<title>{text(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def table(head: Sequence[Any], rows: Sequence[Sequence[Any]], *, sortable: bool = False, kind: str = "") -> Html:
    """A table in a box that scrolls by itself; columns of numbers stand to the right.

    Args:
        head: the columns' names.
        rows: cells, text or `Html`.
        sortable: by a click on a head; the page then needs `SORTING`.
        kind: `names` (the first column stays on one line, cut where it is long; under the pointer comes up all of it), `reasons`
            (the last one is wide).
    """
    kinds = " ".join(filter(None, ("sortable" if sortable else "", kind)))
    numeric = [bool(rows) and all(_is_number(row[i]) for row in rows) for i in range(len(head))]
    marks = [' class="n"' if is_number else "" for is_number in numeric]
    cut = "names" in kind.split()
    names = "".join(
        f'<th scope="col"{mark}>{f"<button>{text(name)}</button>" if sortable else text(name)}</th>'
        for mark, name in zip(marks, head, strict=True)
    )
    body = "".join(
        f"<tr>{''.join(_cell(mark, cell, cut) for mark, cell in zip(marks, row, strict=True))}</tr>\n" for row in rows
    )
    return Html(
        f'<div class="scroll" tabindex="0"><table class="{kinds}"><thead><tr>{names}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _cell(mark: str, cell: Any, cut: bool) -> str:
    """A cell; what may be cut comes up under the pointer."""
    title = f' title="{text(cell)}"' if cut and not isinstance(cell, Html) else ""
    return f"<td{mark}{title}>{text(cell)}</td>"


def _is_number(cell: Any) -> bool:
    """Whether a cell is a number, a percentage, or says that there is none."""
    if str(cell) in ("", "-", ABSENT):
        return True
    try:
        float(str(cell).removesuffix("%"))
    except ValueError:
        return False
    return True


def matrix(corner: str, rows: Sequence[str], columns: Sequence[str], counts: Sequence[Sequence[int | None]]) -> Html:
    """Counts with names at the left and above, the darker the larger their part of the row; None where none can be."""
    names = "".join(f'<th scope="col" class="n">{text(name)}</th>' for name in columns)
    lines = []
    for name, line in zip(rows, counts, strict=True):
        total = sum(count for count in line if isinstance(count, int)) or 1
        cells = "".join(
            f'<td class="n" style="background:rgb(0 114 178 / {round(60 * count / total)}%)">{count}</td>'
            if isinstance(count, int)
            else '<td class="n"></td>'
            for count in line
        )
        lines.append(f'<tr><th scope="row">{text(name)}</th>{cells}</tr>\n')
    return Html(
        f'<div class="scroll" tabindex="0"><table class="matrix"><thead><tr><th>{text(corner)}</th>{names}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def jpeg_uri(jpeg: bytes) -> str:
    """A JPEG file as the address of an image."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")


def pictures(caption: str, shown: Sequence[tuple[str, str]], *, anchor: str = "") -> Html:
    """Pictures of one thing, beside each other where there is room, else below each other.

    Args:
        caption: plain text.
        shown: what each shows, in words, and its address, a data: URI.
        anchor: a name that links lead to.
    """
    drawn = "".join(f'<img alt="{text(said)}" src="{text(uri)}">' for said, uri in shown)
    place = f' id="{text(anchor)}"' if anchor else ""
    return Html(f'<figure{place}><div class="pictures">{drawn}</div><figcaption>{text(caption)}</figcaption></figure>')


_STYLE = """
:root { color-scheme: light dark; --ink: #222; --paper: #fff; --faint: #ddd; --soft: #f3f3f3; --link: #0060a0; }
@media (prefers-color-scheme: dark) { :root { --ink: #ddd; --paper: #181818; --faint: #444; --soft: #262626; --link: #7cc4f0; } }
body { font: 15px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 1180px;
 margin: 1.5em auto; padding: 0 1em; }
h1 { font-size: 1.4em; overflow-wrap: anywhere; }
h2 { font-size: 1.2em; margin-top: 2em; border-bottom: 1px solid var(--faint); }
h3 { font-size: 1em; margin: 1.5em 0 .5em; }
p, b, figcaption { overflow-wrap: anywhere; }
p { max-width: 60em; }
a { color: var(--link); }
img { max-width: 100%; height: auto; border: 1px solid var(--faint); box-sizing: border-box; }
small { font-size: 85%; opacity: .8; }
.verdict { font-weight: 600; }
.scroll { overflow-x: auto; max-width: 100%; }
@media (max-width: 600px) { .strip img { max-width: none; min-width: 900px; } }
table { border-collapse: collapse; }
th, td { padding: 3px 10px; text-align: left; vertical-align: top; border-bottom: 1px solid var(--faint);
 font-variant-numeric: tabular-nums; overflow-wrap: break-word; max-width: 30em; }
.n { text-align: right; white-space: nowrap; }
thead th, thead .n { white-space: normal; vertical-align: bottom; }
.names td, .names th { white-space: nowrap; }
.names td:first-child { max-width: 15em; overflow: hidden; text-overflow: ellipsis; }
.names td:last-child { white-space: normal; max-width: none; }
.reasons td:last-child { min-width: 20em; }
.matrix td, .matrix th { white-space: nowrap; }
.matrix th:first-child { position: sticky; left: 0; background: var(--paper); font-weight: normal; }
th button { all: unset; cursor: pointer; font-weight: bold; }
th button:focus-visible { outline: 2px solid #0072b2; }
th[aria-sort=ascending] button::after { content: " \\25b2"; }
th[aria-sort=descending] button::after { content: " \\25bc"; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(340px, 100%), 1fr)); gap: 1em 2em; }
.charts figure, .halves figure { max-width: 560px; }
figure { margin: 1em 0 1.8em; break-inside: avoid; }
figure > figcaption:first-child { font-weight: bold; }
.pictures { display: flex; flex-wrap: wrap; gap: 6px; align-items: flex-start; }
.pictures img { flex: 0 1 auto; }
.pictures img:not(:only-child) { max-width: calc(50% - 3px); }
.halves { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(440px, 100%), 1fr)); gap: 0 2em; align-items: start; }
svg { display: block; width: 100%; height: auto; }
.wide figure { min-width: 560px; max-width: 820px; }
svg text { font-size: 12px; fill: var(--ink); paint-order: stroke; stroke: var(--paper); stroke-width: 3px; }
.grid { stroke: var(--faint); } .axis { stroke: var(--ink); } .line { fill: none; stroke-width: 1.6; opacity: .8; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: 0 1em; padding: 0; margin: 0; font-size: 13px; }
.legend i { display: inline-block; width: .8em; height: .8em; margin-right: .4em; }
.legend i, .matrix td { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
pre { background: var(--soft); padding: 1em; white-space: pre-wrap; overflow-wrap: anywhere; }
footer { margin-top: 2em; font-size: 13px; }
@media (max-width: 600px) { .pictures img:not(:only-child) { max-width: 100%; }
 table { font-size: 90%; } th, td { padding: 3px 5px; } }
@media print { :root { --ink: #000; --paper: #fff; --faint: #bbb; --soft: #eee; }
 body { max-width: none; margin: 0; } .scroll { overflow: visible; } button[data-copies] { display: none; }
 .strip img { min-width: 0; max-width: 100%; }
 h2, h3 { break-after: avoid; } tr { break-inside: avoid; } .pictures img:not(:only-child) { max-width: calc(50% - 3px); }
 table { font-size: 8pt; } th, td { padding: 2px 4px; white-space: normal; overflow-wrap: anywhere; }
 .wide figure { min-width: 0; } }
"""

SORTING = """
for (const table of document.querySelectorAll("table.sortable"))
  table.querySelectorAll("th button").forEach((button, column) => button.addEventListener("click", () => {
    const head = button.parentElement, up = head.getAttribute("aria-sort") === "descending";
    for (const other of table.querySelectorAll("th")) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const body = table.tBodies[0], key = row => row.cells[column].textContent;
    const absent = text => text === "\\u2013" || text === "";
    body.append(...[...body.rows].sort((a, b) => {
      const x = key(a), y = key(b);
      if (absent(x) || absent(y)) return absent(x) - absent(y);
      const order = isNaN(x) || isNaN(y) ? x.localeCompare(y, "en", {numeric: true}) : x - y;
      return up ? order : -order;
    }));
  }));
"""

COPYING = """
for (const button of document.querySelectorAll("[data-copies]"))
  button.addEventListener("click", () => {
    const range = document.createRange();
    range.selectNodeContents(document.getElementById(button.dataset.copies));
    getSelection().removeAllRanges(); getSelection().addRange(range);
    document.execCommand("copy"); button.textContent = "copied";
  });
"""
