"""`detlab evaluate`: how good is a run's model, on its own data set or on another one?"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from detlab.commands.output import refuse_existing
from detlab.commands.score import as_json, print_numbers
from detlab.errors import UserError
from detlab.untrusted import printable

# What an override may change: on what the model is scored, and where that is computed. The model is the run's.
TAKEN = ("dataset", "evaluator", "workers", "device", "precision", "keep_freed_memory", "allow", "hydra.searchpath")
FILES = ("ground_truth.json", "predictions.json", "metrics.json")
ERROR_FILES = ("errors.json", "label_errors.json")
ERROR_PAGE = "errors.html"


def main(argv: list[str]) -> int:
    """Score a run's checkpoint and print the numbers.

    Args:
        argv: the arguments after `detlab evaluate`.

    Returns:
        0.

    Raises:
        UserError: no such run, an override that does not fit, a data set of other classes, files that are in the way.
        SystemExit: argparse's, on `--help` (0) and on arguments that it does not know (2).
    """
    arguments = _parser().parse_intermixed_args(argv)
    if arguments.precision is not None and not arguments.errors:
        raise UserError("--precision: it chooses the thresholds that --errors tells; add --errors.")
    if arguments.no_pictures and not (arguments.errors and arguments.out is not None):
        raise UserError(f"--no-pictures: belongs to {ERROR_PAGE}; add --errors --out DIR.")
    files = (*FILES, *ERROR_FILES, ERROR_PAGE) if arguments.errors else FILES
    if arguments.out is not None:
        refuse_existing(arguments.out, files, overwrite=arguments.overwrite)
    # Only now: all this takes seconds, which --help should not.

    from detlab import engine, parts, storage
    from detlab.allocation import keep_freed_memory
    from detlab.checkpoint import check_keypoints, model_of, operating_of, read
    from detlab.config import build, check, register
    from detlab.data.relabel import with_classes
    from detlab.detector import checkpoint_of
    from detlab.preflight import compose_again
    from detlab.stopping import RunStopping
    from detlab.structures import learnable_iou_types
    from detlab.untrusted import saved_config

    register()
    path = checkpoint_of(arguments.run)
    state = read(path)
    cfg = compose_again(state["overrides"], arguments.overrides, taken=TAKEN, source=str(path))
    check(cfg)
    keep_freed_memory(cfg.keep_freed_memory)
    device = engine.select_device(cfg.device, cfg.precision, cfg.channels_last)
    dataset = build(cfg.dataset, group="dataset", allow=cfg.allow, part=arguments.part)
    if not len(dataset):
        raise UserError(f"--part: the part {arguments.part!r} of the data set has no images.")
    dataset = with_classes(dataset, state["class_map"]["names"], str(path), all_needed=False)
    model, _, keypoints = model_of(state, path, cfg.allow)
    iou_types = learnable_iou_types(model, dataset.iou_types, saved_config(state["config"], path).objective)
    if "keypoints" in iou_types:
        check_keypoints(keypoints, dataset.keypoints, path, keys=("names",))
    device.place(model)
    evaluator = parts.evaluator(cfg, dataset, iou_types)
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)
    batches = _with_bar(parts.evaluation_batches(cfg, dataset, device), len(dataset))
    # Never entered, so that Ctrl-C ends the command at once: there is no state to save.
    stopping = RunStopping(max_steps=None, max_minutes=None)
    metrics = engine.evaluate(model, batches, evaluator, stopping, device=device)
    assert metrics is not None
    name = getattr(dataset, "name", type(dataset).__name__)
    said = f"{path}, {arguments.part} of {name}, {len(dataset)} images"
    if arguments.out is not None:
        _write(arguments.out, dataset.ground_truth(), evaluator.results(), metrics)
    findings = None
    if arguments.errors:
        from detlab.commands.findings import Findings

        findings = Findings.of(dataset, evaluator.results(), iou_types, precision=arguments.precision)
        if arguments.out is not None:
            findings.write(*(arguments.out / name for name in ERROR_FILES))
            drawn = findings.page(said, dataset, evaluator.results(), pictures=not arguments.no_pictures)
            storage.write_text(arguments.out / ERROR_PAGE, drawn)
    if arguments.json:
        print(
            as_json(metrics) if findings is None else json.dumps({**json.loads(as_json(metrics)), **findings.record()})
        )
        return 0
    print(said)
    for iou_type in iou_types:
        print(f"{iou_type}:")
        print_numbers(iou_type, metrics)
    operating = operating_of(state, path)
    if operating is not None:
        print("\n".join(_operating_lines(operating, state["class_map"]["names"])))
    if findings is not None:
        print(findings.text())
    return 0


def _operating_lines(operating: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """The thresholds that a checkpoint holds, by class."""
    by = "best F1" if operating["by"] == "f1" else f"lowest with a precision of {operating['by'].split()[1]}"
    lines = [
        f"operating thresholds, {by} at {operating['iou_type']} IoU 0.5 on the run's validation part; predict takes these:"
    ]
    columns = (operating[field] for field in ("thresholds", "precision", "recall", "f1"))
    for name, threshold, precision, recall, f1 in zip(names, *columns, strict=True):
        if threshold is None:
            why = "nothing was found" if by == "best F1" else "none gives it"
            lines.append(f"  {printable(name)}: {why}; 0.5 is taken")
        else:
            lines.append(
                f"  {printable(name)}: {threshold:.3f}  precision {precision:.3f}  recall {recall:.3f}  F1 {f1:.3f}"
            )
    return lines


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="detlab evaluate",
        description="Scores a run's best checkpoint, or any checkpoint file, with COCO's numbers: on the run's data set, or "
        "on the one that the overrides name.",
        epilog="example: detlab evaluate outputs/2026-01-31/12-00-00 dataset=pennfudan dataset.root=DIR --out scores",
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="a run's folder, or a checkpoint file")
    parser.add_argument(
        "overrides",
        metavar="OVERRIDE",
        nargs="*",
        default=[],
        help="key=value, group=choice; of " + ", ".join(TAKEN),
    )
    parser.add_argument("--part", default="val", help="part of the data set: train, val (the default) or test")
    parser.add_argument("--out", type=Path, metavar="DIR", help=f"write {', '.join(FILES)} into DIR")
    parser.add_argument("--overwrite", action="store_true", help="replace these files where they exist")
    parser.add_argument(
        "--errors",
        action="store_true",
        help="tell the errors of boxes and masks by kind (after TIDE), with the AP50 that mending each would give, and the "
        f"operating threshold of each class on these images; with --out also in {', '.join(ERROR_FILES)}, and with confusion, "
        f"curves, calibration and the worst images as a page, {ERROR_PAGE}",
    )
    parser.add_argument("--no-pictures", action="store_true", help=f"draw no image into {ERROR_PAGE}")
    parser.add_argument(
        "--precision",
        type=part_from_0_to_1,
        metavar="P",
        help="with --errors: the lowest threshold with at least this precision instead of that of the best F1",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object; null: nothing to measure")
    return parser


def part_from_0_to_1(text: str) -> float:
    """The precision; argparse names this function in its message about a wrong value."""
    value = float(text)
    if not 0 < value <= 1:
        raise ValueError(text)
    return value


def _with_bar(batches: Iterable[Any], count: int) -> Iterable[Any]:
    """The batches, with a bar on stderr where that is a terminal."""
    from rich.console import Console
    from rich.progress import track

    bar = Console(stderr=True)
    return track(batches, "evaluating", total=count, console=bar, transient=True, disable=not bar.is_terminal)


def _write(
    folder: Path, ground_truth: dict[str, Any], results: list[dict[str, Any]], metrics: Mapping[str, float]
) -> None:
    """The three files that say what was scored, and from which `detlab score` computes it again."""
    from detlab import storage

    contents = (json.dumps(ground_truth), json.dumps(results), as_json(metrics) + "\n")
    for name, content in zip(FILES, contents, strict=True):
        storage.write_text(folder / name, content)
