"""`detlab score`: how good is a file of COCO results?"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detlab.errors import UserError
from detlab.evaluation.metrics import BACKENDS, METRICS, Metric
from detlab.untrusted import json_of

if TYPE_CHECKING:
    from detlab.structures import IouType


def main(argv: list[str]) -> int:
    """Score results against ground truth and print the numbers.

    Args:
        argv: the arguments after `detlab score`.

    Returns:
        0.

    Raises:
        UserError: a file that is missing, no JSON, or cannot be scored.
        SystemExit: argparse's, on `--help` (0) and on arguments that it does not know (2).
    """
    arguments = _parser().parse_args(argv)
    order = "The order is GT.json RESULTS.json"
    ground_truth = read_json(
        arguments.ground_truth,
        dict,
        f"a COCO ground truth is an object with images, annotations and categories. {order}",
    )
    results = read_json(arguments.results, list, f"COCO results are a list of detections. {order}")
    # Only now: pycocotools and torch take seconds, which --help and a wrong file name should not.
    from detlab.evaluation.coco import score

    iou_type: IouType = arguments.iou_type or _inferred_iou_type(results)
    numbers = score(ground_truth, results, iou_type, sigmas=arguments.sigmas, backend=arguments.backend)
    if arguments.json:
        print(as_json(numbers))
        return 0
    print(f"{iou_type}{'' if arguments.iou_type else ' (by the fields of the results; --iou-type chooses)'}:")
    print_numbers(iou_type, numbers)
    return 0


def as_json(numbers: Mapping[str, float]) -> str:
    """Numbers by name as one JSON object; null where there is nothing to measure."""
    return json.dumps({name: None if math.isnan(value) else value for name, value in numbers.items()})


def print_numbers(iou_type: IouType, numbers: Mapping[str, float]) -> None:
    """The lines of COCO's own summary, and with several classes one more for each; `nan`: nothing to measure."""
    metrics, by_class = METRICS[iou_type], f"{iou_type}/AP/"
    for metric in metrics:
        print(_coco_line(metric, numbers[f"{iou_type}/{metric.name}"]))
    for name, value in numbers.items():
        if name.startswith(by_class):
            print(f"{_coco_line(metrics[0], value)}  {name.removeprefix(by_class)}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="detlab score",
        description="Scores a file of COCO results and prints COCO's numbers.",
        epilog="example: detlab score instances_val2017.json predictions.json --iou-type segm",
        allow_abbrev=False,
    )
    parser.add_argument("ground_truth", metavar="GT.json", type=Path, help="COCO ground truth")
    parser.add_argument("results", metavar="RESULTS.json", type=Path, help="COCO results, such as predictions.json")
    parser.add_argument(
        "--iou-type",
        choices=("bbox", "segm", "keypoints"),
        help="what to score; by default keypoints, else segmentation, else boxes, whichever the results have",
    )
    parser.add_argument(
        "--sigmas",
        type=comma_separated_numbers,
        metavar="S,S,...",
        help="one sigma per keypoint; by default COCO's 17 of a person",
    )
    parser.add_argument(
        "--backend",
        choices=BACKENDS,
        default="auto",
        help="who computes: pycocotools, faster (the same numbers in less time), or auto: faster",
    )
    parser.add_argument(
        "--json", action="store_true", help="one JSON object, AP by class included; null: no ground truth"
    )
    return parser


def comma_separated_numbers(text: str) -> list[float]:
    """The sigmas; argparse names this function in its message about a wrong value."""
    return [float(sigma) for sigma in text.split(",")]


def read_json(path: Path, expected: type, said: str) -> Any:
    """A JSON file's content.

    Args:
        path: the file.
        expected: the type that it must hold.
        said: what that is, as the error will say it.

    Raises:
        UserError: a file that cannot be read, is no JSON, or holds something else.
    """
    try:
        content = json_of(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not JSON at line {error.lineno}, column {error.colno}: {error.msg}.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not JSON: byte {error.start} is no text.") from error
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}).") from error
    if not isinstance(content, expected):
        raise UserError(f"{path}: holds a {type(content).__name__}; {said}.")
    return content


def _inferred_iou_type(results: list[Any]) -> IouType:
    """The richest type that the rows' fields allow; bbox where there is no row."""
    rows = [row for row in results if isinstance(row, dict)]
    if any(row.get("keypoints") for row in rows):
        return "keypoints"
    return "segm" if any(row.get("segmentation") for row in rows) else "bbox"


def _coco_line(metric: Metric, value: float) -> str:
    """One number in the words of COCO's own summary."""
    title = "Average Precision  (AP)" if metric.name.startswith("AP") else "Average Recall     (AR)"
    measured = f"IoU={metric.iou:<9} | area={metric.area:>6} | maxDets={metric.max_detections:>3}"
    return f" {title} @[ {measured} ] = {value:.3f}"
