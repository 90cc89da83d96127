"""What of two finished runs can be held against each other: records, predictions, and the images that both were scored on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detlab.commands.score import read_json
from detlab.errors import UserError
from detlab.untrusted import json_of, saved_config

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from detlab.structures import DetectionDataset

# What an override may change: where the data lie, and what may be built of them.
TAKEN = ("dataset", "workers", "allow", "hydra.searchpath")
_NEEDED = {"overrides": list, "fingerprints": dict, "classes": list, "state": str}


@dataclass(frozen=True)
class FinishedRun:
    """A run's folder, as far as a comparison reads it."""

    folder: Path
    record: dict[str, Any]  # run.json
    config: DictConfig
    results: list[dict[str, Any]]  # of the best evaluation
    seconds: float | None  # from its start to its end
    speed: float | None  # images a second in training, the median of the lines

    @classmethod
    def read(cls, folder: Path) -> FinishedRun:
        """Read a run's records.

        Raises:
            UserError: it is no run's folder, or one of the files is not there or damaged.
        """
        if not folder.is_dir():
            raise UserError(
                f"{folder}: not a folder; give two runs' folders, or results files with --ground-truth GT.json."
            )
        if not (folder / "run.json").is_file():
            raise UserError(f"{folder}: holds no run.json; it is no run's folder.")
        record = read_json(folder / "run.json", dict, "a run's record is an object")
        for key, kind in _NEEDED.items():
            if key not in record or not isinstance(record[key], kind):
                raise UserError(f"{folder}/run.json: damaged, or of an older detlab; it lacks {key}.")
        if not (folder / "predictions.json").is_file():
            raise UserError(
                f"{folder}: holds no predictions.json, which a run writes after its first evaluation; it is {record['state']}.\n"
                f"Let it evaluate once (resume={folder}), or write them with detlab evaluate {folder} --out DIR."
            )
        path = folder / "config.yaml"
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: cannot be read ({error}).") from None
        results = read_json(folder / "predictions.json", list, "COCO results are a list of detections")
        # Only now: it brings Hydra, which --help should not.
        from detlab.analysis.runs import read_run

        known = read_run(folder, folder)
        return cls(folder, record, saved_config(text, path), results, known.seconds, known.images_per_second())


def check_same_images(a: FinishedRun, b: FinishedRun) -> None:
    """Refuse runs that were not scored on the same images and objects.

    Raises:
        UserError: says what differs.
    """
    then, now = (run.record["fingerprints"].get("val") for run in (a, b))
    if then is not None and then == now and set(a.record["classes"]) == set(b.record["classes"]):
        return
    if set(a.record["classes"]) != set(b.record["classes"]):
        said = f"{a.folder} has {_short(a.record['classes'])}, {b.folder} has {_short(b.record['classes'])} as classes"
    else:
        names = [_names(run.folder) for run in (a, b)]
        only = [sorted(set(mine) - set(theirs)) for mine, theirs in (names, names[::-1])]
        said = f"{a.folder} has {len(names[0])} images, {b.folder} has {len(names[1])}"
        if only[0] or only[1]:
            said += f"; only one has {(only[0] or only[1])[0]}"
        else:
            said += ", of the same names: their order, sizes or objects differ"
    raise UserError(
        f"{said}: they were not validated on the same data, and cannot be compared image by image.\n"
        f"Score both on one data set (detlab evaluate RUN dataset=... --out DIR), and compare the predictions.json of both "
        "with --ground-truth DIR/ground_truth.json."
    )


def _short(names: Sequence[Any]) -> str:
    said = ", ".join(str(name) for name in names[:5])
    return said + (", ..." if len(names) > 5 else "")


def _names(folder: Path) -> list[str]:
    try:
        return [str(name) for name in json_of(folder / "split.json")["val"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def validation_images(run: FinishedRun, overrides: Sequence[str]) -> DetectionDataset:
    """The images that a run was scored on, built from its own overrides and those given; `register()` must have run.

    Raises:
        UserError: an override that does not fit, data that are not there or not the run's any more.
    """
    from detlab import parts
    from detlab.config import check
    from detlab.data.fingerprint import fingerprint
    from detlab.preflight import compose_again
    from detlab.resumption import HARMLESS, PLACES, changes, plain, said

    recorded = [str(override) for override in run.record["overrides"]]
    cfg = compose_again(recorded, overrides, taken=TAKEN, source=f"{run.folder}/run.json")
    check(cfg)
    # Beside the fingerprint, which of drawn data and of a user's own class knows the names alone.
    found = changes(plain(run.config), plain(cfg), passed_over=(*HARMLESS, *PLACES))
    found = {key: pair for key, pair in found.items() if key.startswith("dataset.")}
    if found:
        raise UserError(
            f"{run.folder}: was not scored on this data set: {said(found)}.\n"
            "Only where the data lie may be given here, such as dataset.root=DIR."
        )
    dataset = parts.data_sets(cfg)["val"]
    if fingerprint(dataset) != run.record["fingerprints"]["val"]:
        raise UserError(
            f"{run.folder}: its validation images, or their objects, are not those that it was scored on ({len(dataset)} now).\n"
            "Give back the data as they were (dataset.root=... where they have moved), or score both again: detlab evaluate."
        )
    return dataset


def ground_truths(
    runs: Sequence[FinishedRun], overrides: Sequence[str]
) -> tuple[DetectionDataset, list[dict[str, Any]]]:
    """The images that all runs were scored on, and the ground truth as each run numbers its classes.

    Raises:
        UserError: see `check_same_images`, `validation_images` and `check_same_objects`.
    """
    first = runs[0]
    for run in runs[1:]:
        check_same_images(first, run)
    # Only now: torch takes seconds, which a wrong folder should not.
    from detlab.config import register
    from detlab.resumption import changes, plain

    register()
    dataset = validation_images(first, overrides)
    truths = [dataset.ground_truth()]
    for run in runs[1:]:
        differing = changes(plain(first.config), plain(run.config), passed_over=())
        # Classes in another order have other ids; data that are set up in another way may still be the same.
        if first.record["classes"] != run.record["classes"] or any(key.startswith("dataset.") for key in differing):
            truths.append(validation_images(run, overrides).ground_truth())
            check_same_objects(first, run, (truths[0], truths[-1]))
        else:
            truths.append(truths[0])
    return dataset, truths


def check_same_objects(a: FinishedRun, b: FinishedRun, truths: Sequence[dict[str, Any]]) -> None:
    """Refuse runs whose images have the same names and other sizes or objects.

    Raises:
        UserError: they do.
    """

    def known(truth: dict[str, Any]) -> tuple[Any, Any]:
        images = [(image["id"], image["height"], image["width"]) for image in truth["images"]]
        return images, sorted((row["image_id"], *row["bbox"]) for row in truth["annotations"])

    if known(truths[0]) != known(truths[1]):
        raise UserError(
            f"{a.folder} and {b.folder} have validation images of the same names, but of other sizes or objects: they were not "
            "validated on the same data.\nScore both on one data set: detlab evaluate RUN dataset=... --out DIR."
        )
