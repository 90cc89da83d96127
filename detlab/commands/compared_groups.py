"""`detlab compare 'PATTERN' 'PATTERN'`: which of two settings is better, each tried with several seeds?"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from glob import glob
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from detlab.commands.compare import NUMBERS, PAGE, name_of, shared_types
from detlab.commands.compared_runs import FinishedRun, ground_truths
from detlab.commands.output import new_folder
from detlab.errors import UserError
from detlab.untrusted import printable

if TYPE_CHECKING:
    from detlab.analysis.groups import GroupDifference

Runs = tuple[list[FinishedRun], list[FinishedRun]]


def main(arguments: argparse.Namespace) -> int:
    """Compare the means of two groups of runs, and write a page of it.

    Args:
        arguments: those of `detlab compare`; `a` and `b` are patterns of folders, or a folder.

    Returns:
        0.

    Raises:
        UserError: fewer than two finished runs in a group, a run in both, runs that were not scored on the same images.
    """
    if arguments.sigmas is not None:
        raise UserError("--sigmas: belongs to --ground-truth; a run's data set has its own.")
    runs = (_runs_of("A", arguments.a), _runs_of("B", arguments.b))
    twice = {run.folder.resolve() for run in runs[0]} & {run.folder.resolve() for run in runs[1]}
    if twice:
        raise UserError(f"{min(twice)}: both A and B match it; a run belongs to one of them.")
    found, images = _compared(runs, arguments)
    from detlab.analysis.bootstrap import CAVEAT_OF_GROUPS

    verdicts = [each.in_words(name) for name, each in found.items()]
    content = {
        "a": str(arguments.a),
        "b": str(arguments.b),
        "images": images,
        "verdicts": verdicts,
        "caveat": CAVEAT_OF_GROUPS,
        "config": _differing(runs[0][0], runs[1][0]),
        "runs": {side: [str(run.folder) for run in group] for side, group in zip("ab", runs, strict=True)},
        "intervals": {name: each.as_plain() for name, each in found.items()},
    }
    notes = [*_notes(runs), CAVEAT_OF_GROUPS]
    out = arguments.out or new_folder(Path("comparisons"), f"{name_of(arguments.a)}-{name_of(arguments.b)}")
    out.mkdir(parents=True, exist_ok=True)
    _write(out, content, runs, found, notes)
    if arguments.json:
        print(json.dumps(content))
        return 0
    for key, (a, b) in content["config"].items():
        print(printable(f"{key}: {a} -> {b}"))
    for row in _rows(runs, found):
        print(printable("  ".join(row).rstrip()))
    print(printable("\n".join([*verdicts, *notes])))
    print(f"{out / PAGE}, {out / NUMBERS}")
    return 0


def _runs_of(side: str, pattern: Path) -> list[FinishedRun]:
    """The runs that a pattern matches and that have been evaluated; of others a line tells.

    Raises:
        UserError: fewer than two are.
    """
    names = [str(pattern)] if pattern.exists() else sorted(glob(str(pattern)))
    runs = []
    for folder in map(Path, names):
        if (folder / "run.json").is_file():
            try:
                runs.append(FinishedRun.read(folder))
            except UserError as error:
                print(f"left out: {str(error).splitlines()[0]}", file=sys.stderr)
    if len(runs) < 2:
        raise UserError(
            f"{side}: {pattern} matches {len(runs)} run(s) with predictions; training's chance is seen in two at least, of the "
            "same settings and other seeds (sweep=seeds)."
        )
    return runs


def _compared(runs: Runs, arguments: argparse.Namespace) -> tuple[dict[str, GroupDifference], int]:
    """What each number says, and the number of images."""
    together = [*runs[0], *runs[1]]
    dataset, truths = ground_truths(together, arguments.overrides)
    from detlab.analysis.comparison import RESAMPLED
    from detlab.analysis.groups import compared_groups
    from detlab.evaluation.coco import matched
    from detlab.evaluation.metrics import METRICS

    sigmas = dataset.keypoints.sigmas if dataset.keypoints is not None else None
    images = len(truths[0]["images"])
    found: dict[str, GroupDifference] = {}
    for iou_type in shared_types([run.results for run in together], truths[0]):
        sides = [
            matched(truth, run.results, iou_type, sigmas=sigmas) for truth, run in zip(truths, together, strict=True)
        ]
        found |= compared_groups(
            sides[: len(runs[0])],
            sides[len(runs[0]) :],
            [metric for metric in METRICS[iou_type] if metric.name in RESAMPLED],
            images=images,
            resamples=arguments.resamples,
            seed=arguments.seed,
        )
    return found, images


def _differing(a: FinishedRun, b: FinishedRun) -> dict[str, tuple[Any, Any]]:
    """The settings of two runs that differ, but for the seed."""
    from detlab.resumption import changes, plain

    return dict(changes(plain(a.config), plain(b.config), passed_over=("seed",)))


def _notes(runs: Runs) -> list[str]:
    """A sentence for a group whose runs differ by more than their seed."""
    notes = []
    for side, group in zip("AB", runs, strict=True):
        keys = sorted({key for run in group[1:] for key in _differing(group[0], run)})
        if keys:
            notes.append(
                f"{side}'s runs differ by more than their seed ({', '.join(keys)}): so does what is called training's chance."
            )
    return notes


def _rows(runs: Runs, found: Mapping[str, GroupDifference]) -> list[list[str]]:
    """A head, a row for each run and one for each mean; of one width where they are printed."""
    rows = [["", "run", "seed", *found]]
    for place, (side, group) in enumerate(zip("AB", runs, strict=True)):
        numbers = [each.b if place else each.a for each in found.values()]
        for i, run in enumerate(group):
            rows.append([side, run.folder.name, str(run.config.seed), *(f"{each[i]:.4f}" for each in numbers)])
        rows.append([side, "mean", "", *(f"{fmean(each):.4f}" for each in numbers)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]


def _write(
    out: Path, content: Mapping[str, Any], runs: Runs, found: Mapping[str, GroupDifference], notes: Sequence[str]
) -> None:
    from detlab import charts, pages, storage

    head, *rows = [[cell.strip() for cell in row] for row in _rows(runs, found)]
    points = {
        name: {
            side: [(side, value, f"{run.folder.name}: {value:.4f}") for run, value in zip(group, values, strict=True)]
            for side, group, values in (("A", runs[0], each.a), ("B", runs[1], each.b))
        }
        for name, each in found.items()
    }
    settings = [[key, *map(pages.text, pair)] for key, pair in content["config"].items()]
    parts = [
        f"<h1>A and B</h1><p>A: {pages.text(content['a'])}<br>B: {pages.text(content['b'])}</p>",
        *(f'<p class="verdict">{pages.text(said)}</p>' for said in content["verdicts"]),
        *(f"<p>{pages.text(note)}</p>" for note in notes),
        '<div class="charts">',
        *(charts.scatter(name, series, "group") for name, series in points.items()),
        "</div>",
        f"<h2>Runs</h2>{pages.table(head, rows)}",
        "<h2>Configuration</h2>"
        + (pages.table(["", "A", "B"], settings) if settings else "<p>The same but for the seed.</p>"),
    ]
    storage.write_text(out / PAGE, pages.page("A and B", parts))
    storage.write_text(out / NUMBERS, json.dumps(content, indent=2) + "\n")
