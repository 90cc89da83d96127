"""How does a report look as one HTML page that needs nothing else?"""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from detlab import charts, pages
from detlab.analysis.report import Report, number
from detlab.analysis.runs import Run
from detlab.pages import table, text

MOST_CURVES = 60  # of more runs, the best are drawn


def page(report: Report, pictures: Mapping[str, str]) -> str:
    """The page.

    Args:
        report: what is told.
        pictures: of the best run, as data: URLs, by what they show.
    """
    title = f"Report of {report.folder.resolve().name}"
    parts = [f"<h1>{text(title)}</h1><p>{text(report.summary())}</p>", _best(report, pictures), _seeds(report)]
    parts += [
        "<h2>Runs</h2><p>A click on a head sorts.</p>",
        table(*report.table(), sortable=True, kind="names"),
        _charts(report),
    ]
    failed = [[run.name, run.state, run.why] for run in report.runs if run.why]
    if failed:
        parts += ["<h2>Failed, or not whole</h2>", table(["run", "state", "why"], failed, kind="names reasons")]
    parts.append("<footer>Time is that of a run's last attempt; images/s the median of the logged steps.</footer>")
    return pages.page(title, parts, scripts=(pages.SORTING, pages.COPYING))


def _best(report: Report, pictures: Mapping[str, str]) -> str:
    if not report.ranked():
        return "<p>No run has been evaluated yet.</p>"
    value, run = report.ranked()[0]
    command = shlex.join(["python", "-m", "detlab.run", *run.overrides])
    drawn = "".join(
        f'<div class="scroll strip" tabindex="0"><img src="{url}" alt="{text(said)}"></div><p>{text(said)}</p>'
        for said, url in pictures.items()
    )
    state = "" if run.state == "done" else f", which is {run.state}"
    return (
        f"<h2>Best run</h2><p><b>{text(run.name)}</b>{state}: {text(report.metric or '')} {number(value)}. "
        f"The best of several is flattered by chance: see the means below.</p>"
        f'<pre id="command">{text(command)}</pre><button data-copies="command">copy</button>{drawn}'
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
    return f"<h2>Mean and spread over seeds</h2><p>{said}</p>{table(head, rows, sortable=True)}"


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
