"""`detlab report`: which of these runs was best, by how much, and what became of the others?"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from detlab.errors import UserError

if TYPE_CHECKING:
    from detlab.analysis.report import Report

PAGE, MARKDOWN, TABLE = "report.html", "report.md", "report.csv"


def main(argv: list[str]) -> int:
    """Write a page, a Markdown and a CSV about the runs below a folder.

    Args:
        argv: the arguments after `detlab report`.

    Returns:
        0.

    Raises:
        UserError: no such folder, no run in it, a metric that no run has.
        SystemExit: argparse's, on `--help` (0) and on arguments that it does not know (2).
    """
    arguments = _parser().parse_args(argv)
    from detlab.analysis.report import Report, number
    from detlab.analysis.runs import find_runs
    from detlab.sweeps import brief
    from detlab.untrusted import printable

    report = Report.of(arguments.folder, find_runs(arguments.folder), arguments.metric)
    if arguments.metric is not None and not report.ranked():
        raise UserError(
            f"--metric: no run has {arguments.metric!r}; there are "
            f"{', '.join(tag.removeprefix('val/') for tag in report.tags()) or 'none yet'}."
        )
    if arguments.json:
        print(json.dumps(report.rows()))
        return 0
    out = arguments.out or arguments.folder
    if out.exists() and not out.is_dir():
        raise UserError(f"--out: {out} is a file; name a folder.")
    _write(report, out)
    print(report.summary())
    for run in report.runs:
        if run.why:
            print(printable(f"  {run.state}: {run.name}: {brief(run.why)}"))
    if report.ranked():
        value, best = report.ranked()[0]
        print(printable(f"best: {best.name}  {report.metric} {number(value)}"))
    print(out / PAGE)
    return 0


def _write(report: Report, out: Path) -> None:
    from detlab import storage
    from detlab.analysis.events import predictions_of
    from detlab.analysis.report_page import page

    pictures: dict[str, str] = {}
    if report.ranked() and report.metric is not None:
        best = report.ranked()[0][1]
        line = best.best(report.metric)
        pictures = predictions_of(best.folder, line.get("step") if line is not None else None)
    out.mkdir(parents=True, exist_ok=True)
    contents = {PAGE: page(report, pictures), MARKDOWN: report.markdown(), TABLE: report.csv()}
    for name, content in contents.items():
        # What was written by nobody's keyboard may not be text at all: lone surrogates out of a JSON file.
        storage.write_text(out / name, content.encode("utf-8", "replace").decode())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="detlab report",
        description=f"Writes {PAGE} (needs no network), {MARKDOWN} and {TABLE} about all runs below a folder: a table, mean and "
        "spread over seeds, charts, the best run with its command and pictures, failed jobs with their reasons. Also while "
        "they are running.",
        epilog="example: detlab report outputs/2026-01-31/12-00-00-sweep",
        allow_abbrev=False,
    )
    parser.add_argument("folder", metavar="SWEEP|FOLDER", type=Path, help="a sweep's folder, or any with runs below it")
    parser.add_argument("--metric", help="such as bbox/AP50; by default the objective that most runs have")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to write; by default into the folder itself")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON, and write nothing")
    return parser
