"""What `detlab evaluate --errors` tells: errors by kind, and from which score on a class is to be believed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from detlab import pages, storage
from detlab.analysis.calibration import calibration_of
from detlab.analysis.confusion import confusion_of
from detlab.analysis.curves import curves_of
from detlab.analysis.errors import MEANING, Errors
from detlab.analysis.errors_page import MOST_WORST, page
from detlab.analysis.judged import Judged
from detlab.analysis.label_errors import label_errors_of
from detlab.analysis.thresholds import Operating, by_label, given, operating_thresholds
from detlab.analysis.worst import Believed
from detlab.structures import DetectionDataset, IouType
from detlab.untrusted import printable
from detlab.writer import plain

MOST_REVIEWED = 12  # images with likely label errors that are drawn beside the worst ones
LONGER_SIDE = 640  # pixels of a picture on the page
GREY = (150, 150, 150)


@dataclass(frozen=True)
class Findings:
    """The errors of boxes and of masks, and the thresholds by class.

    Args:
        names: of the classes, in the order of the labels.
        errors: by type, as `Errors.summary` gives them.
        thresholds: by type, one for each class.
        precision: that the thresholds were to have; None: they are those of the best F1.
        calibration: by type, see `detlab.analysis.calibration`.
        confusion: by type, `classes` and `counts`, see `detlab.analysis.confusion`.
        curves: by type and class, see `detlab.analysis.curves`.
        label_errors: COCO dict for review, by masks where there are any; see `detlab.analysis.label_errors`.
        worst: `iou_type` (masks where there are any), and `images` as `detlab.analysis.worst` has them.
        believed: what that was told from; None where nothing but keypoints was scored.
    """

    names: tuple[str, ...]
    errors: Mapping[str, dict[str, Any]]
    thresholds: Mapping[str, list[Operating]]
    precision: float | None
    calibration: Mapping[str, dict[str, Any]]
    confusion: Mapping[str, dict[str, Any]]
    label_errors: dict[str, Any]
    curves: Mapping[str, dict[str, list[float] | None]]
    worst: dict[str, Any]
    believed: Believed | None

    @classmethod
    def of(
        cls,
        dataset: DetectionDataset,
        results: list[dict[str, Any]],
        iou_types: Sequence[IouType],
        *,
        precision: float | None,
    ) -> Findings:
        """From a data set and COCO results of all of its images; keypoints have no kinds of errors.

        Raises:
            UserError: ground truth or results that cannot be scored.
        """
        ground_truth, errors, thresholds, calibration, confusion = dataset.ground_truth(), {}, {}, {}, {}
        label_errors: dict[str, Any] = {}
        curves = {}
        believed: Believed | None = None
        for iou_type in iou_types:
            if iou_type != "keypoints":
                judged = Judged.of(ground_truth, results, iou_type)
                kinds = Errors.of(judged)
                errors[iou_type] = kinds.summary()
                found = operating_thresholds(judged, precision=precision)
                least = given([one.threshold for one in found])
                names = judged.truth.class_names
                curves[iou_type] = dict(zip(names, curves_of(judged), strict=True))
                calibration[iou_type] = calibration_of(judged)
                confusion[iou_type] = {"classes": [*names, "background"], "counts": confusion_of(judged, least)}
                label_errors = label_errors_of(kinds, ground_truth, results, least)
                believed = Believed.of(kinds, least)
                thresholds[iou_type] = by_label(found, judged, dataset.class_map)
        worst = {
            "iou_type": None if believed is None else believed.errors.judged.truth.iou_type,
            "images": [] if believed is None else believed.worst(),
        }
        return cls(
            dataset.class_map.names,
            errors,
            thresholds,
            precision,
            calibration,
            confusion,
            label_errors,
            curves,
            worst,
            believed,
        )

    def record(self) -> dict[str, Any]:
        """As JSON has it: `errors` by type, and `thresholds` by type and class."""
        thresholds = {
            iou_type: {name: asdict(one) for name, one in zip(self.names, found, strict=True)}
            for iou_type, found in self.thresholds.items()
        }
        return {
            "errors": plain(self.errors),
            "thresholds": thresholds,
            "precision": self.precision,
            "calibration": plain(self.calibration),
            "confusion": dict(self.confusion),
            "curves": dict(self.curves),
            "worst": self.worst,
        }

    def write(self, record: Path, label_errors: Path) -> None:
        """The record, and the likely label errors, as files.

        Raises:
            OSError: it cannot be written.
        """
        storage.write_text(record, json.dumps(self.record(), indent=2) + "\n")
        storage.write_text(label_errors, json.dumps(self.label_errors) + "\n")

    def page(self, said: str, dataset: DetectionDataset, results: list[dict[str, Any]], *, pictures: bool) -> str:
        """All of it as a page that needs nothing else.

        Args:
            said: what was evaluated on what.
            dataset: that this was computed from.
            results: likewise.
            pictures: whether to draw the worst images, and those with likely label errors.

        Raises:
            UserError: an image that cannot be read.
        """
        worst: dict[Any, list[tuple[str, str]]] = {}
        reviewed = dict(worst)
        if pictures and self.believed is not None:
            first = [one["image_id"] for one in self.worst["images"][:MOST_WORST]]
            worst = pictures_of(dataset, results, self.believed, first)
            others = dict.fromkeys(row["image_id"] for row in self.label_errors["annotations"])
            others = [image_id for image_id in others if image_id not in worst][:MOST_REVIEWED]
            reviewed = pictures_of(dataset, results, self.believed, others)
        return page("What the model gets wrong", said, self.record(), self.label_errors, worst, reviewed)

    def text(self) -> str:
        """For the terminal."""
        lines = []
        for iou_type, told in self.errors.items():
            lines += [f"errors of {iou_type}, AP50 {told['AP50']:.3f}:", "  kind        errors  AP50 mended   gain"]
            for kind, one in told["kinds"].items():
                lines.append(
                    f"  {kind:<10}  {one['count']:>6}  {one['AP50']:>11.3f}  {one['gain']:>5.3f}  {MEANING[kind]}"
                )
            lines.append(f"  {'all':<10}  {'':>6}  {told['all']:>11.3f}  {told['all'] - told['AP50']:>5.3f}")
            lines.append(f"  expected calibration error of the scores {self.calibration[iou_type]['error']:.3f}")
        by = "best F1" if self.precision is None else f"lowest with a precision of {self.precision:g}"
        for iou_type, found in self.thresholds.items():
            lines.append(f"thresholds on these images, {by} at {iou_type} IoU 0.5:")
            for name, one in zip(self.names, found, strict=True):
                if one.threshold is None:
                    lines.append(f"  {printable(name)}: none")
                else:
                    lines.append(
                        f"  {printable(name)}: {one.threshold:.3f}  precision {one.precision:.3f}  recall {one.recall:.3f}  "
                        f"F1 {one.f1:.3f}"
                    )
        if self.label_errors:
            lines.append(f"{len(self.label_errors['annotations'])} likely label error(s)")
        return "\n".join(lines)


def pictures_of(
    dataset: DetectionDataset, results: list[dict[str, Any]], believed: Believed, image_ids: Iterable[Any]
) -> dict[Any, list[tuple[str, str]]]:
    """Of each image what is believed beside the ground truth: green what is right, red what is wrong, grey what does not count.

    Args:
        dataset: with the images.
        results: COCO results rows that were judged.
        believed: what is right and wrong of them.
        image_ids: which.

    Returns:
        By id what each of two pictures shows and its data: URI.
    """
    from detlab.pictures import COLOURS, draw, jpeg, of_rows

    judged = believed.errors.judged
    labels = {category_id: label for label, category_id in enumerate(dataset.class_map.category_ids, start=1)}
    places = {image["id"]: place for place, image in enumerate(dataset.ground_truth()["images"])}
    detected = np.select([judged.right, judged.wrong], [0, 1], 2)
    real = np.select([~judged.counted, believed.found], [2, 0], 1)
    colours = (COLOURS[2], COLOURS[5], GREY)  # right, wrong, neither
    drawn = {}
    for image_id in image_ids:
        image, number = dataset[places[image_id]][0], judged.truth.image_numbers[image_id]
        d = np.flatnonzero(believed.kept & (judged.detections.images == number))
        d = d[np.argsort(judged.detections.scores[d], kind="stable")]  # the best lies over the others
        g = np.flatnonzero(judged.objects.images == number)
        sides = (
            ("prediction", [results[row] for row in judged.rows[d].tolist()], detected[d]),
            ("ground truth", [judged.truth.annotations[row] for row in judged.annotations[g].tolist()], real[g]),
        )
        shown = []
        for said, rows, states in sides:
            picture = draw(
                image, of_rows(rows, labels, (judged.truth.iou_type,)), dataset.class_map, None, threshold=0.0,
                shorter_side=288, colours=[colours[state] for state in states.tolist()],
            )  # fmt: skip
            shown.append((said, pages.jpeg_uri(jpeg(picture, longer_side=LONGER_SIDE))))
        drawn[image_id] = shown
    return drawn
