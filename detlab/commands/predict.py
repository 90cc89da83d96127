"""`detlab predict`: what does a run's model see in these images?"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detlab.commands.output import new_folder, refuse_existing
from detlab.commands.sources import INDEX, RESULTS, SUFFIXES, Source, as_in_ground_truth, find_images
from detlab.errors import UserError

if TYPE_CHECKING:
    from detlab.detector import Detector, Threshold
    from detlab.structures import ClassMap


def main(argv: list[str]) -> int:
    """Write predictions for images: a picture of each, COCO results, and the list of images that their ids mean.

    Args:
        argv: the arguments after `detlab predict`.

    Returns:
        0; 1 where images could not be read, the others being done.

    Raises:
        UserError: no such run or image, an image that the ground truth does not list, files that are in the way.
        SystemExit: argparse's, on `--help` (0) and on arguments that it does not know (2).
    """
    arguments = _parser().parse_intermixed_args(argv)
    sources = find_images(arguments.images)
    categories: list[dict[str, Any]] | None = None
    if arguments.ground_truth is not None:
        sources, categories = as_in_ground_truth(sources, arguments.ground_truth)
    if arguments.out is not None:
        _refuse_painting_over(arguments.out, sources)
        names = [RESULTS, INDEX, *(source.picture for source in sources)]
        refuse_existing(arguments.out, names, overwrite=arguments.overwrite)
    # Only now: torch takes seconds, which --help and a wrong file name should not.
    from detlab.detector import load

    detector = load(arguments.run, device=arguments.device, threshold=None)
    class_map = _with_ids_of(detector.class_map, categories, arguments.ground_truth)
    out = arguments.out or new_folder(Path("predictions"), _name_of_run(detector.path))
    out.mkdir(parents=True, exist_ok=True)
    threshold = "operating" if arguments.threshold is None else arguments.threshold
    return _Predictions(detector, class_map, out, threshold).add_all(sources)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="detlab predict",
        description="Draws what a run's best model, or any checkpoint's, detects in images, and writes it as COCO results: "
        f"{RESULTS} with all detections, {INDEX} with the images and classes that its ids mean.",
        epilog="example: detlab predict outputs/2026-01-31/12-00-00 photos 'more/*.jpg' --threshold 0.7",
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="a run's folder, or a checkpoint file")
    parser.add_argument(
        "images",
        metavar="IMAGE",
        nargs="+",
        help=f"a file; a folder, of which every {' '.join(SUFFIXES)} is taken, also from folders below it; or a pattern such as "
        "'*.jpg' (** stands for folders). Pictures are turned as their EXIF orientation says",
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="where to write; by default a new folder predictions/<name of the run>"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace files of DIR where they exist")
    parser.add_argument(
        "--threshold",
        type=score_from_0_to_1,
        help="least score of what is drawn, and counted; by default each class's operating threshold, which the checkpoint knows "
        f"(else 0.5); {RESULTS} has all that the model reports",
    )
    parser.add_argument("--device", default="auto", help="auto (the default), cpu, cuda, cuda:1, mps")
    parser.add_argument(
        "--ground-truth",
        type=Path,
        metavar="GT.json",
        help="take the ids of images (by file_name, which may be the end of a path) and of classes (by name) from this COCO "
        f"file, so that `detlab score` takes {RESULTS} beside it",
    )
    return parser


def score_from_0_to_1(text: str) -> float:
    """The threshold; argparse names this function in its message about a wrong value."""
    value = float(text)
    if not 0 <= value <= 1:
        raise ValueError(text)
    return value


def _with_ids_of(class_map: ClassMap, categories: Sequence[Mapping[str, Any]] | None, path: Path | None) -> ClassMap:
    """The model's classes, with the ids of the ground truth where there is one.

    Raises:
        UserError: the ground truth lacks a class that the model may report.
    """
    from detlab.structures import ClassMap

    if categories is None:
        return class_map
    ids = {category["name"]: category["id"] for category in categories}
    lacking = [name for name in class_map.names if name not in ids]
    if lacking:
        raise UserError(f"{path}: has no category {lacking[0]!r}, which the model reports; it has {', '.join(ids)}.")
    return ClassMap(class_map.names, tuple(ids[name] for name in class_map.names))


def _refuse_painting_over(out: Path, sources: Sequence[Source]) -> None:
    """Refuse a folder in which a picture would take the place of an image, whatever else may be replaced."""
    images = {source.path.resolve() for source in sources}
    for picture in (out / source.picture for source in sources):
        if picture.resolve() in images:
            raise UserError(f"--out: {picture} is one of the images and would be painted over; name another folder.")


def _name_of_run(checkpoint: Path) -> str:
    """The name of a checkpoint's run, or its own where it lies in none."""
    path = checkpoint.resolve()
    return path.parent.parent.name if path.parent.name == "checkpoints" else path.stem


class _Predictions:
    """Predictions on their way into a folder; of an image's masks only the run lengths stay in memory.

    Args:
        detector: reports all that its model does.
        class_map: the detector's classes, with the ids that the results will have.
        out: the folder.
        threshold: least score of what is drawn; `operating`: each class's own.
    """

    def __init__(self, detector: Detector, class_map: ClassMap, out: Path, threshold: Threshold) -> None:
        self.detector, self.class_map, self.out = detector, class_map, out
        self.threshold: Threshold = threshold
        self.rows: list[dict[str, Any]] = []
        self.images: list[dict[str, Any]] = []
        self.drawn = 0

    def add_all(self, sources: Sequence[Source]) -> int:
        """Predict all images, say what became of them, and give the exit status."""
        from rich.console import Console
        from rich.progress import track

        bar = Console(stderr=True)
        faults = []
        try:
            for source in track(sources, "predicting", console=bar, transient=True, disable=not bar.is_terminal):
                try:
                    objects = self._add(source)
                except UserError as error:
                    faults.append(str(error))
                else:
                    if not bar.is_terminal:
                        print(f"{source.name}: {objects} object(s)")
        finally:  # also after Ctrl-C: what was done is kept
            self._write()
        print(
            f"{len(self.images)} image(s), {self.drawn} object(s) of score {self._least_score()} or more; all {len(self.rows)} in "
            f"{self.out / RESULTS}"
        )
        if faults:
            print(
                f"detlab: {len(faults)} of {len(sources)} images could not be predicted:",
                *faults,
                sep="\n  ",
                file=sys.stderr,
            )
        return 1 if faults else 0

    def _add(self, source: Source) -> int:
        """Predict and draw one image; the number of objects drawn.

        Raises:
            UserError: it cannot be decoded, or has not the size that the ground truth says.
        """
        from detlab.data.images import read_image
        from detlab.evaluation.results import prediction_to_results
        from detlab.pictures import draw, save

        image = read_image(source.path)
        height, width = image.shape[1:]
        if source.size is not None and source.size != (height, width):
            listed = f"{source.size[0]} x {source.size[1]}"
            raise UserError(
                f"{source.path}: {height} x {width} pixels (height x width), but the ground truth says {listed}."
            )
        prediction = self.detector(image)[0]
        self.rows += prediction_to_results(source.image_id, prediction, self.class_map, self.detector.iou_types)
        self.images.append({"id": source.image_id, "file_name": source.name, "height": height, "width": width})
        points = self.detector.keypoints
        believed = self.detector.believed(prediction, self.threshold)
        picture = draw(image, believed, self.class_map, points, threshold=0, shorter_side=1)
        path = self.out / source.picture
        path.parent.mkdir(parents=True, exist_ok=True)
        save(picture, path)
        objects = len(believed["labels"])
        self.drawn += objects
        return objects

    def _least_score(self) -> str:
        """The threshold, in words; of several classes the lowest and the highest."""
        if self.threshold != "operating":
            return f"{self.threshold:g}"
        low, high = (f"{float(value):.2g}" for value in (self.detector.operating.min(), self.detector.operating.max()))
        return low if low == high else f"{low} to {high}, by class,"

    def _write(self) -> None:
        from detlab import storage
        from detlab.data.keypoints import coco_categories

        info = {"description": f"images that detlab predict saw with {self.detector.path}"}
        categories = coco_categories(self.class_map, self.detector.keypoints)
        index = {"info": info, "images": self.images, "categories": categories}
        storage.write_text(self.out / RESULTS, json.dumps(self.rows))
        storage.write_text(self.out / INDEX, json.dumps(index))
