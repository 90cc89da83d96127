"""How does a report look as one HTML page that needs nothing else?"""

from __future__ import annotations

import html
import shlex
from collections.abc import Mapping, Sequence

from detlab import charts
from detlab.analysis.report import Report, number
from detlab.analysis.runs import Run

MOST_CURVES = 60  # of more runs, the best are drawn


def page(report: Report, pictures: Mapping[str, str]) -> str:
    """The page.

    Args:
        report: what is told.
        pictures: of the best run, as data: URLs, by what they show.
    """
    title = html.escape(f"Report of {report.folder.resolve().name}")
    parts = [f"<h1>{title}</h1><p>{html.escape(report.summary())}</p>", _best(report, pictures), _seeds(report)]
    parts += ["<h2>Runs</h2><p>A click on a head sorts.</p>", _table(*report.table(), sortable=True), _charts(report)]
    failed = [[run.name, run.state, run.why] for run in report.runs if run.why]
    if failed:
        parts += ["<h2>Failed, or not whole</h2>", _table(["run", "state", "why"], failed, kind="reasons")]
    parts.append("<footer>Time is that of a run's last attempt; images/s the median of the logged steps.</footer>")
    return _PAGE.replace("@TITLE@", title).replace("@BODY@", "\n".join(part for part in parts if part))


def _best(report: Report, pictures: Mapping[str, str]) -> str:
    if not report.ranked():
        return "<p>No run has been evaluated yet.</p>"
    value, run = report.ranked()[0]
    command = shlex.join(["python", "-m", "detlab.run", *run.overrides])
    drawn = "".join(
        f'<img src="{url}" alt="{html.escape(said)}"><p>{html.escape(said)}</p>' for said, url in pictures.items()
    )
    state = "" if run.state == "done" else f", which is {run.state}"
    return (
        f"<h2>Best run</h2><p><b>{html.escape(run.name)}</b>{state}: {html.escape(report.metric or '')} {number(value)}. "
        f"The best of several is flattered by chance: see the means below.</p>"
        f'<pre id="command">{html.escape(command)}</pre><button data-copies="command">copy</button>{drawn}'
    )


def _seeds(report: Report) -> str:
    groups = report.groups()
    if not groups:
        return ""
    head = [*report.parameters(), "n", f"mean {report.metric}", "standard deviation", "least", "largest"]
    rows = [
        [*g.settings, str(len(g.values)), *(number(v) for v in (g.mean, g.deviation, min(g.values), max(g.values)))]
        for g in groups
    ]
    single = any(len(group.values) == 1 for group in groups)
    said = "Runs that are done and equal but for their seed, by their best value."
    said += " Of one run alone nothing is known about the spread (–)." if single else ""
    return f"<h2>Mean and spread over seeds</h2><p>{said}</p>{_table(head, rows, sortable=True)}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], *, sortable: bool = False, kind: str = "") -> str:
    kinds = f"{'sortable ' if sortable else ''}{kind}".strip()
    names = "".join(
        f'<th scope="col"><button>{html.escape(n)}</button></th>'
        if sortable
        else f'<th scope="col">{html.escape(n)}</th>'
        for n in head
    )
    body = "".join(
        "<tr>" + "".join(f'<td title="{html.escape(cell)}">{html.escape(cell)}</td>' for cell in row) + "</tr>\n"
        for row in rows
    )
    table = f'<table class="{kinds}">'
    return f'<div class="scroll" tabindex="0">{table}<thead><tr>{names}</tr></thead><tbody>{body}</tbody></table></div>'


def _charts(report: Report) -> str:
    ranked = report.ranked()
    if not ranked:
        return ""
    drawn = [_scatter(report, key) for key in report.keys]
    runs = [run for _, run in ranked[:MOST_CURVES]]
    for tag, name in ((f"val/{report.metric}", report.metric or ""), ("train/loss", "training loss")):
        lines = [(_series(report, run), run.name, run.curve(tag)) for run in runs if run.curve(tag)]
        if lines:
            drawn.append(charts.curves(f"{name} over the steps", lines, "step"))
    wide = _parallel(report)
    more = f"<p>Curves of the best {MOST_CURVES} of {len(ranked)} runs.</p>" if len(ranked) > MOST_CURVES else ""
    return f'<h2>Charts</h2>{more}<div class="charts">{"".join(drawn)}</div>{wide}'


def _value(text: str) -> float | str:
    """A number where the text is a finite one."""
    try:
        found = float(text)
    except ValueError:
        return text
    return found if abs(found) < 1e300 else text


def _column(report: Report, key: str) -> dict[str, float | str]:
    """Values of a key by run: numbers where all are, else texts."""
    texts = {run.name: run.setting(key) for _, run in report.ranked()}
    values = {name: _value(text) for name, text in texts.items()}
    return values if all(isinstance(value, float) for value in values.values()) else dict(texts)


def _series(report: Report, run: Run) -> str:
    """By what runs are coloured: the first key whose values are words, else the first parameter."""
    keys = report.parameters()
    words = [key for key in keys if any(isinstance(value, str) for value in _column(report, key).values())]
    chosen = (words or keys)[:1]
    return f"{chosen[0]}={run.setting(chosen[0])}" if chosen else "all"


def _scatter(report: Report, key: str) -> str:
    column = _column(report, key)
    series: dict[str, list[tuple[float | str, float, str]]] = {}
    for value, run in report.ranked():
        said = f"{run.name}: {number(value)}"
        series.setdefault(_series(report, run), []).append((column[run.name], value, said))
    return charts.scatter(f"{report.metric} by {key}", series, key) if len(set(column.values())) > 1 else ""


def _parallel(report: Report) -> str:
    axes = [key for key in report.keys if len(set(_column(report, key).values())) > 1]
    if not axes:
        return ""
    columns = [_column(report, key) for key in axes]
    rows = [
        (_series(report, run), f"{run.name}: {number(value)}", [*(column[run.name] for column in columns), value])
        for value, run in report.ranked()
    ]
    drawn = charts.parallel("parallel coordinates", [*axes, report.metric or ""], rows)
    return f'<div class="scroll wide" tabindex="0">{drawn}</div>'


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>@TITLE@</title>
<style>
:root { color-scheme: light dark; --ink: #222; --paper: #fff; --faint: #ddd; --soft: #f3f3f3; }
@media (prefers-color-scheme: dark) { :root { --ink: #ddd; --paper: #181818; --faint: #444; --soft: #262626; } }
body { font: 15px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 1180px;
 margin: 1.5em auto; padding: 0 1em; }
h1 { font-size: 1.4em; overflow-wrap: anywhere; }
h2 { font-size: 1.1em; margin-top: 2em; }
p, b { overflow-wrap: anywhere; }
img { max-width: 100%; border: 1px solid var(--faint); }
.scroll { overflow-x: auto; max-width: 100%; }
table { border-collapse: collapse; }
th, td { padding: 3px 10px; text-align: right; border-bottom: 1px solid var(--faint); font-variant-numeric: tabular-nums;
 white-space: nowrap; }
th:first-child, td:first-child, td:last-child, th:last-child { text-align: left; }
td:first-child { max-width: 15em; overflow: hidden; text-overflow: ellipsis; }
td:last-child { white-space: normal; }
.reasons td:last-child { min-width: 20em; }
th button { all: unset; cursor: pointer; font-weight: bold; }
th button:focus-visible { outline: 2px solid #0072b2; }
th[aria-sort=ascending] button::after { content: " \\25b2"; }
th[aria-sort=descending] button::after { content: " \\25bc"; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(340px, 100%), 1fr)); gap: 1em 2em; }
figure { margin: 1em 0; break-inside: avoid; }
figcaption { font-weight: bold; }
svg { width: 100%; height: auto; }
.wide figure { min-width: 560px; max-width: 820px; }
svg text { font-size: 12px; fill: var(--ink); paint-order: stroke; stroke: var(--paper); stroke-width: 3px; }
.grid { stroke: var(--faint); } .axis { stroke: var(--ink); } .line { fill: none; stroke-width: 1.6; opacity: .8; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: 0 1em; padding: 0; margin: 0; font-size: 13px; }
.legend i { display: inline-block; width: .8em; height: .8em; margin-right: .4em; }
pre { background: var(--soft); padding: 1em; white-space: pre-wrap; overflow-wrap: anywhere; }
footer { margin-top: 2em; font-size: 13px; }
@media print { body { max-width: none; margin: 0; } .scroll { overflow: visible; } button[data-copies] { display: none; }
 table { font-size: 8pt; } th, td { padding: 2px 4px; white-space: normal; overflow-wrap: anywhere; }
 .wide figure { min-width: 0; } }
</style>
</head>
<body>
@BODY@
<script>
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
for (const button of document.querySelectorAll("[data-copies]"))
  button.addEventListener("click", () => {
    const range = document.createRange();
    range.selectNodeContents(document.getElementById(button.dataset.copies));
    getSelection().removeAllRanges(); getSelection().addRange(range);
    document.execCommand("copy"); button.textContent = "copied";
  });
</script>
</body>
</html>
"""
