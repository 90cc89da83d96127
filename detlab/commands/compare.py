"""`detlab compare`: which of two runs is better, and can one tell with this many images?"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detlab.commands.compared_runs import FinishedRun, ground_truths
from detlab.commands.output import new_folder, refuse_existing
from detlab.commands.predict import score_from_0_to_1
from detlab.commands.score import comma_separated_numbers, read_json
from detlab.errors import UserError
from detlab.untrusted import printable

if TYPE_CHECKING:
    from detlab.analysis.comparison import Compared
    from detlab.structures import ClassMap, DetectionDataset, IouType

PAGE, NUMBERS = "comparison.html", "comparison.json"


@dataclass(frozen=True)
class _Inputs:
    """Two detectors' results on one ground truth each, which is the same but for the order of its classes."""

    results: tuple[list[Any], list[Any]]
    truths: tuple[dict[str, Any], dict[str, Any]]
    sigmas: Sequence[float] | None
    dataset: DetectionDataset | None = None  # for pictures
    runs: tuple[FinishedRun, FinishedRun] | None = None
    config: dict[str, tuple[Any, Any]] | None = None
    facts: list[tuple[str, Any, Any]] = field(default_factory=list)
    seeds_alone: bool = False  # of all keys that change a result the seed alone differs


def main(argv: list[str]) -> int:
    """Compare two runs, or two results files, and write a page of it.

    Args:
        argv: the arguments after `detlab compare`.

    Returns:
        0.

    Raises:
        UserError: no such run, runs that were not scored on the same images, files that are in the way.
        SystemExit: argparse's, on `--help` (0) and on arguments that it does not know (2).
    """
    arguments = _parser().parse_intermixed_args(argv)
    if arguments.out is not None:
        refuse_existing(arguments.out, (PAGE, NUMBERS), overwrite=arguments.overwrite)
    if arguments.ground_truth is not None and arguments.overrides:
        raise UserError(
            f"{arguments.overrides[0]}: overrides are for two runs; with --ground-truth nothing is composed."
        )
    if arguments.ground_truth is None and (matches_several(arguments.a) or matches_several(arguments.b)):
        from detlab.commands import compared_groups

        return compared_groups.main(arguments)
    inputs = _of_files(arguments) if arguments.ground_truth is not None else _of_runs(arguments)
    comparisons = _compared(inputs, arguments)
    captions, pictures = _pictures(inputs, comparisons, arguments)
    out = arguments.out or new_folder(Path("comparisons"), f"{name_of(arguments.a)}-{name_of(arguments.b)}")
    out.mkdir(parents=True, exist_ok=True)
    content = _content(inputs, comparisons, arguments, captions)
    _write(out, inputs, comparisons, arguments, content, list(zip(captions, pictures, strict=False)))
    if arguments.json:
        print(json.dumps(content))
        return 0
    _print(inputs, comparisons)
    print(f"{out / PAGE}, {out / NUMBERS}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="detlab compare",
        description="Says in what two runs differ: settings, numbers, and the images on which one is right where the other is "
        f"not; and by a paired bootstrap over the images whether they can be told apart. Writes {PAGE} and {NUMBERS}.",
        epilog="example: detlab compare outputs/2026-01-31/12-00-00 outputs/2026-01-31/13-00-00",
        allow_abbrev=False,
    )
    parser.add_argument(
        "a",
        metavar="A",
        type=Path,
        help="a run's folder; a quoted pattern such as 'SWEEP/*lr=0.01*' for several seeds of one setting, whose mean is compared; "
        "with --ground-truth, a COCO results file",
    )
    parser.add_argument("b", metavar="B", type=Path, help="another one")
    parser.add_argument(
        "overrides",
        metavar="OVERRIDE",
        nargs="*",
        default=[],
        help="such as dataset.root=DIR, where the data have moved",
    )
    parser.add_argument(
        "--ground-truth", type=Path, metavar="GT.json", help="A and B are results files on this ground truth"
    )
    parser.add_argument(
        "--sigmas", type=comma_separated_numbers, metavar="S,S,...", help="with --ground-truth: one sigma per keypoint"
    )
    parser.add_argument(
        "--resamples", type=number_from_100, default=1000, help="of the bootstrap (default: %(default)s)"
    )
    parser.add_argument("--seed", type=number_from_0, default=0, help="of the bootstrap (default: %(default)s)")
    parser.add_argument(
        "--threshold",
        type=score_from_0_to_1,
        default=0.5,
        help="least score of what counts, and is drawn, image by image (default: %(default)s); AP takes all",
    )
    parser.add_argument(
        "--pictures", type=number_from_0, default=8, help="how many images to draw (default: %(default)s)"
    )
    parser.add_argument("--no-pictures", action="store_true", help="draw none; reads no image")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="where to write; by default a new folder comparisons/<A>-<B>"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace files of DIR where they exist")
    parser.add_argument("--json", action="store_true", help="print one JSON object; null: nothing to measure")
    return parser


def number_from_100(text: str) -> int:
    """The number of resamples, of which the ends of an interval need some; argparse names this function."""
    value = int(text)
    if not 100 <= value <= 1_000_000:
        raise ValueError(text)
    return value


def number_from_0(text: str) -> int:
    """A whole number; argparse names this function in its message about a wrong value."""
    value = int(text)
    if value < 0:
        raise ValueError(text)
    return value


def name_of(path: Path) -> str:
    """A run's, a file's or a pattern's name as part of a folder's."""
    return re.sub(r"[^\w.-]", "_", path.resolve().stem if path.is_file() else path.resolve().name)


def matches_several(path: Path) -> bool:
    """Whether it is a pattern rather than the name of something that is there."""
    return any(mark in str(path) for mark in "*?[") and not path.exists()


def _of_files(arguments: argparse.Namespace) -> _Inputs:
    order = "The order is A.json B.json --ground-truth GT.json"
    truth = read_json(arguments.ground_truth, dict, f"a COCO ground truth is an object. {order}")
    a, b = (read_json(path, list, f"COCO results are a list. {order}") for path in (arguments.a, arguments.b))
    return _Inputs((a, b), (truth, truth), arguments.sigmas)


def _of_runs(arguments: argparse.Namespace) -> _Inputs:
    if arguments.sigmas is not None:
        raise UserError("--sigmas: belongs to --ground-truth; a run's data set has its own.")
    a, b = FinishedRun.read(arguments.a), FinishedRun.read(arguments.b)
    dataset, (truth, other) = ground_truths((a, b), arguments.overrides)
    from detlab.resumption import HARMLESS, STOPPING, changes, plain

    configs = plain(a.config), plain(b.config)
    return _Inputs(
        (a.results, b.results),
        (truth, other),
        dataset.keypoints.sigmas if dataset.keypoints is not None else None,
        dataset,
        (a, b),
        changes(*configs, passed_over=()),
        _facts(a, b),
        set(changes(*configs, passed_over=tuple(key for key in HARMLESS if key not in STOPPING))) == {"seed"},
    )


def _facts(a: FinishedRun, b: FinishedRun) -> list[tuple[str, Any, Any]]:
    """What the records say of both."""

    def of(run: FinishedRun) -> dict[str, Any]:
        position = run.record["position"] if isinstance(run.record.get("position"), dict) else {}
        return {
            "state": run.record["state"],
            "overrides": " ".join(str(override) for override in run.record["overrides"]),
            "best step": position.get("best_step"),
            "parameters": run.record.get("parameters"),
            "seconds": run.seconds,
            "images a second": None if run.speed is None else round(run.speed, 2),
        }

    first, second = of(a), of(b)
    return [(name, first[name], second[name]) for name in first]


def _compared(inputs: _Inputs, arguments: argparse.Namespace) -> dict[IouType, Compared]:
    """The comparison for each type that both results and the ground truth have."""
    from detlab.analysis.comparison import compared
    from detlab.evaluation.coco import matched

    images = inputs.truths[0].get("images")
    if isinstance(images, list) and not images:
        raise UserError("ground truth: it has no images; there is nothing to compare.")
    found: dict[IouType, Compared] = {}
    for iou_type in shared_types(inputs.results, inputs.truths[0]):
        a, b = (
            matched(truth, results, iou_type, sigmas=inputs.sigmas)
            for truth, results in zip(inputs.truths, inputs.results, strict=True)
        )
        found[iou_type] = compared(
            a,
            b,
            iou_type,
            images=len({image["id"] for image in inputs.truths[0]["images"]}),
            resamples=arguments.resamples,
            seed=arguments.seed,
            threshold=arguments.threshold,
            seeds_alone=inputs.seeds_alone,
        )
    return found


def shared_types(results: Sequence[list[Any]], ground_truth: Mapping[str, Any]) -> list[IouType]:
    """What all can be scored for; boxes where nothing is known."""
    from detlab.evaluation.results import SCORED_FIELD

    def has(rows: Any, name: str) -> bool:
        return isinstance(rows, list) and any(isinstance(row, dict) and row.get(name) for row in rows)

    sides = [rows for rows in results if rows]
    truth = ground_truth.get("annotations")
    shared: list[IouType] = [t for t, name in SCORED_FIELD.items() if all(has(rows, name) for rows in (*sides, truth))]
    return shared if sides and shared else ["bbox"]


def _pictures(
    inputs: _Inputs, comparisons: Mapping[IouType, Compared], arguments: argparse.Namespace
) -> tuple[list[str], list[bytes]]:
    """Captions of the images on which the two differ most, and their pictures (JPEG) where there are images."""
    from detlab.analysis.comparison import most_different

    images = sorted(inputs.truths[0]["images"], key=lambda image: image["id"])
    chosen = most_different(list(comparisons.values()), arguments.pictures)
    captions = [_caption(images[i], i, comparisons) for i in chosen]
    # Every row has been held against what its types need, and against nothing else: a box is drawn where boxes were compared.
    if inputs.dataset is None or arguments.no_pictures or "bbox" not in comparisons:
        return captions, []
    index = {image["id"]: i for i, image in enumerate(inputs.truths[0]["images"])}
    shown = [(index[images[i]["id"]], images[i]["id"]) for i in chosen]
    pictures = [_picture(inputs, *which, list(comparisons), arguments.threshold) for which in shown]
    return captions, pictures


def _caption(image: Mapping[str, Any], number: int, comparisons: Mapping[IouType, Compared]) -> str:
    """An image's name, and what each is right and wrong in."""
    said = []
    for iou_type, found in comparisons.items():
        counts = [f"{e.right[number]} found, {e.missed[number]} missed, {e.wrong[number]} wrong" for e in found.errors]
        said.append(f"{iou_type} A {counts[0]}; B {counts[1]}")
    return f"{image.get('file_name', image['id'])}: " + ". ".join(said)


def _picture(inputs: _Inputs, index: int, image_id: Any, iou_types: Sequence[IouType], threshold: float) -> bytes:
    """A's predictions, B's and the ground truth, beside each other."""
    from torchvision.utils import make_grid

    from detlab.pictures import draw, jpeg, of_rows

    assert inputs.dataset is not None
    image, target = inputs.dataset[index]
    predictions = [
        of_rows(
            [row for row in rows if row["image_id"] == image_id], _labels(truth, inputs.dataset.class_map), iou_types
        )
        for rows, truth in zip(inputs.results, inputs.truths, strict=True)
    ]
    fields = set().union(*predictions)
    truth = {name: value for name, value in target.items() if name in fields}
    drawn = [
        draw(image, objects, inputs.dataset.class_map, inputs.dataset.keypoints, threshold=threshold, shorter_side=288)
        for objects in (*predictions, truth)
    ]
    return jpeg(make_grid(drawn, nrow=3, padding=4, pad_value=255))


def _labels(truth: Mapping[str, Any], class_map: ClassMap) -> dict[Any, int]:
    """Labels by category id; two runs with classes in another order have other ids, but the same names."""
    labels = {name: label for label, name in enumerate(class_map.names, 1)}
    return {category["id"]: labels[category["name"]] for category in truth["categories"]}


def _content(
    inputs: _Inputs, comparisons: Mapping[IouType, Compared], arguments: argparse.Namespace, captions: Sequence[str]
) -> dict[str, Any]:
    """The one JSON object."""
    from detlab.analysis.comparison import as_plain

    return {
        "a": str(arguments.a),
        "b": str(arguments.b),
        "images": len(inputs.truths[0]["images"]),
        **as_plain(comparisons),
        "config": inputs.config,
        "runs": {name: {"a": a, "b": b} for name, a, b in inputs.facts},
        "images_that_differ_most": list(captions),
    }


def _write(
    out: Path,
    inputs: _Inputs,
    comparisons: Mapping[IouType, Compared],
    arguments: argparse.Namespace,
    content: Mapping[str, Any],
    pictures: Sequence[tuple[str, bytes]],
) -> None:
    from detlab import storage
    from detlab.analysis.comparison_page import page

    titles = (str(arguments.a), str(arguments.b))
    storage.write_text(out / PAGE, page(titles, inputs.facts, inputs.config, comparisons, pictures))
    storage.write_text(out / NUMBERS, json.dumps(content, indent=2) + "\n")


def _print(inputs: _Inputs, comparisons: Mapping[IouType, Compared]) -> None:
    """The essentials, on the terminal; what could not be measured is left out."""
    from detlab.analysis.bootstrap import CAVEAT

    for key, (a, b) in (inputs.config or {}).items():
        print(printable(f"{key}: {a} -> {b}"))
    for name, a, b in inputs.facts:
        if name != "overrides":
            print(printable(f"{name}: {a} -> {b}"))
    for found in comparisons.values():
        print(f"{'':<28} {'A':>8} {'B':>8} {'B - A':>8}")
        measured = {name: (a, b) for name, (a, b) in found.numbers.items() if a == a and b == b}
        for name, (a, b) in measured.items():
            print(printable(f"{name:<28} {a:8.4f} {b:8.4f} {b - a:+8.4f}"))
        print(printable("\n".join(found.verdicts)))
    print(CAVEAT)
