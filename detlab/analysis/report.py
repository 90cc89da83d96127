"""What do many runs say together: which was best, by how much, and how much of that is chance?"""

from __future__ import annotations

import csv
import io
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detlab.analysis.runs import STATES, Run
from detlab.untrusted import csv_cell

# Overrides that tell runs of one kind apart, and change nothing that is compared.
CHANCE = ("seed",)
# What a run is called, and how it went on: no settings.
WORDS = ("name", "tags", "resume", "resume_anyway")


@dataclass(frozen=True)
class Group:
    """Runs that are equal but for their seed. `mean` is of the metric's best values, `deviation` the sample's (None: one run)."""

    settings: tuple[str, ...]
    runs: tuple[Run, ...]
    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float | None:
        return statistics.stdev(self.values) if len(self.values) > 1 else None


@dataclass(frozen=True)
class Report:
    """Runs, held beside each other by one metric.

    Args:
        folder: what was searched.
        runs: all that was found.
        metric: such as `bbox/AP`, without `val/`; None where no run has been evaluated.
        keys: the overrides in which the runs differ.
    """

    folder: Path
    runs: Sequence[Run]
    metric: str | None
    keys: Sequence[str]

    @classmethod
    def of(cls, folder: Path, runs: Sequence[Run], metric: str | None = None) -> Report:
        """Hold runs beside each other, by the metric given, else by the objective that most of them can be held by."""
        return cls(folder, runs, metric or _metric(runs), _keys(runs))

    def best_value(self, run: Run) -> float | None:
        """A run's best value of the metric."""
        line = run.best(self.metric) if self.metric is not None else None
        return line[f"val/{self.metric}"] if line is not None else None

    def ranked(self) -> list[tuple[float, Run]]:
        """The runs that have a value, the best first."""
        pairs = [(value, run) for run in self.runs if (value := self.best_value(run)) is not None]
        return sorted(pairs, key=lambda pair: -pair[0])

    def groups(self) -> list[Group]:
        """Runs that are done and equal but for their seed, the best mean first; what is not done is not averaged."""
        found: dict[tuple[str, ...], list[tuple[float, Run]]] = {}
        for value, run in self.ranked():
            if run.state == "done":
                found.setdefault(self.settings(run), []).append((value, run))
        groups = [Group(k, tuple(r for _, r in each), tuple(v for v, _ in each)) for k, each in found.items()]
        return sorted(groups, key=lambda group: -group.mean)

    def parameters(self) -> list[str]:
        """The keys in which runs differ, but for the seed."""
        return [key for key in self.keys if key not in CHANCE]

    def settings(self, run: Run) -> tuple[str, ...]:
        """A run's values of the parameters."""
        return tuple(run.setting(key) for key in self.parameters())

    def tags(self) -> list[str]:
        """The scores that some run has, in the order in which they stand in the records."""
        lines = [line for run in self.runs for line in run.evaluations()]
        return list(dict.fromkeys(t for line in lines for t in line if t.startswith("val/")))

    def rows(self) -> list[dict[str, Any]]:
        """All that is known of each run, in plain values: those of metrics.jsonl as they stand there."""
        return [self._row(run) for run in self.runs]

    def _row(self, run: Run) -> dict[str, Any]:
        best = (run.best(self.metric) if self.metric is not None else None) or {}
        last = run.last() or {}
        return {
            "run": run.name,
            "state": run.state,
            **{f"override/{key}": run.setting(key) for key in self.keys},
            "metric": self.metric,
            "best_step": best.get("step"),
            **{f"best/{tag}": best.get(tag) for tag in self.tags()},
            "last_step": last.get("step"),
            **{f"last/{tag}": last.get(tag) for tag in self.tags()},
            "seconds": run.seconds,
            "images_per_second": run.images_per_second(),
            "commit": run.commit,
            "why": run.why,
        }

    def csv(self) -> str:
        """The rows; numbers as Python's repr, which reads back as the same number."""
        rows = self.rows()
        out = io.StringIO()
        writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows([{key: csv_cell(value) for key, value in row.items()} for row in rows])
        return out.getvalue()

    def markdown(self) -> str:
        """The essentials: the best run, groups over seeds, all runs, what failed."""
        lines = [f"# Report of {_md(self.folder.name or str(self.folder))}", "", self.summary(), ""]
        if self.groups():
            head = [*self.parameters(), "n", f"mean {self.metric}", "standard deviation"]
            body = [
                [*group.settings, str(len(group.values)), number(group.mean), number(group.deviation)]
                for group in self.groups()
            ]
            lines += ["## Over seeds", "", *_md_table(head, body), ""]
        lines += ["## Runs", "", *_md_table(*self.table()), ""]
        failed = [[run.name, run.state, run.why] for run in self.runs if run.why]
        if failed:
            lines += ["## Failed, or not whole", "", *_md_table(["run", "state", "why"], failed), ""]
        return "\n".join(lines)

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Head and rows of the table of runs, as texts."""
        name = self.metric or "metric"
        head = ["run", f"best {name}", f"last {name}", *self.keys, "state", "time, s", "images/s", "commit"]
        tag, rows = f"val/{self.metric}", []
        for run in self.runs:
            last = (run.last() or {}).get(tag)
            said = [number(self.best_value(run)), number(last), number(run.seconds), number(run.images_per_second())]
            rows.append(
                [run.name, *said[:2], *(run.setting(key) for key in self.keys), run.state, *said[2:], run.commit]
            )
        return head, rows

    def summary(self) -> str:
        """How many runs, in which state; a sentence."""
        states = Counter(run.state for run in self.runs)
        return (
            f"{len(self.runs)} runs: "
            + ", ".join(f"{states[state]} {state}" for state in STATES if states[state])
            + "."
        )


def _metric(runs: Sequence[Run]) -> str | None:
    """The objective that most runs have a score of; of several, the one that is the objective of most."""
    wanted = Counter(run.objective for run in runs if run.objective is not None)
    having = {name: sum(run.best(name) is not None for run in runs) for name in wanted}
    found = [name for name in wanted if having[name]]
    return max(found, key=lambda name: (having[name], wanted[name])) if found else None


def _keys(runs: Sequence[Run]) -> list[str]:
    """Overrides that do not have one value in all runs. One that a run was not given is taken from its configuration."""
    given = list(dict.fromkeys(key for run in runs for key in run.given() if not key.startswith("hydra.")))
    # A job that failed before it wrote its configuration does not say what it was not given.
    telling = {key: {run.setting(key) for run in runs if run.settings or key in run.given()} for key in given}
    return [key for key in given if key not in WORDS and len(telling[key]) > 1]


def number(value: float | None) -> str:
    """For a table: four digits; a dash for what is not there."""
    return "–" if value is None else f"{value:.4g}"


def _md(text: str) -> str:
    """A text that Markdown and the HTML in it leave alone."""
    for mark, instead in (
        ("&", "&amp;"),
        ("<", "&lt;"),
        ("|", "\\|"),
        ("`", "\\`"),
        ("*", "\\*"),
        ("_", "\\_"),
        ("[", "\\["),
    ):
        text = text.replace(mark, instead)
    return " ".join(text.split())


def _md_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [
        "| " + " | ".join(cell if place == 1 else _md(cell) for cell in line) + " |" for place, line in enumerate(lines)
    ]
