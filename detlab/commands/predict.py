"""`detlab predict`: what does a run's model see in these images?"""

from __future__ import annotations

import argparse
import csv
import io
import itertools
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detlab.commands.output import new_folder, refuse_existing
from detlab.commands.sources import (
    INDEX,
    RESULTS,
    SUFFIXES,
    TABLE,
    VIDEOS,
    Source,
    as_in_ground_truth,
    film_of,
    find_images,
    videos_apart,
)
from detlab.errors import UserError
from detlab.untrusted import printable

if TYPE_CHECKING:
    from rich.progress import Progress
    from torch import Tensor

    from detlab.commands.video import Frame
    from detlab.detector import Detector, Threshold
    from detlab.structures import ClassMap, Prediction


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
    videos, others = videos_apart(arguments.images)
    sources = find_images(others) if others else []
    if videos and arguments.ground_truth is not None:
        raise UserError(f"--ground-truth: {videos[0]} is a video, whose images no file lists; predict it apart.")
    categories: list[dict[str, Any]] | None = None
    if arguments.ground_truth is not None:
        sources, categories = as_in_ground_truth(sources, arguments.ground_truth)
    if arguments.out is not None:
        _refuse_painting_over(arguments.out, sources)
        names = [RESULTS, INDEX, *([TABLE] if arguments.csv else []), *(source.picture for source in sources)]
        names += [film_of(video) for video in videos]
        _refuse_filming_over(arguments.out, videos)
        refuse_existing(arguments.out, names, overwrite=arguments.overwrite)
    # Only now: torch takes seconds, which --help and a wrong file name should not.
    from detlab.detector import load

    detector = load(arguments.run, device=arguments.device, threshold=None)
    if arguments.size is not None:
        detector.resize_to(*arguments.size)
    class_map = _with_ids_of(detector.class_map, categories, arguments.ground_truth)
    out = arguments.out or new_folder(Path("predictions"), _name_of_run(detector.path))
    out.mkdir(parents=True, exist_ok=True)
    threshold = "operating" if arguments.threshold is None else arguments.threshold
    predictions = _Predictions(detector, class_map, out, threshold, table=arguments.csv)
    return predictions.add_all(sources, videos, arguments.batch_size, every=arguments.every)


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
        "'*.jpg' (** stands for folders). Pictures are turned as their EXIF orientation says. A file may be a video "
        f"({' '.join(VIDEOS)}), which becomes a film of that name: pip install 'detlab[video]'",
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
    parser.add_argument(
        "--csv", action="store_true", help=f"write what is drawn as {TABLE} too: image, name, score, box in pixels"
    )
    parser.add_argument(
        "--size",
        type=min_or_min_max,
        metavar="MIN[,MAX]",
        help="the shorter side that images are resized to before the model sees them, and what the longer one may not exceed, in "
        "pixels; by default as in training",
    )
    parser.add_argument(
        "--batch-size",
        type=number_from_1,
        default=1,
        metavar="N",
        help="so many images at a time, those of one size together in a batch, so that none is padded for another; 1 by default",
    )
    parser.add_argument(
        "--every", type=number_from_1, default=1, metavar="N", help="of a video, one image of so many; 1 by default"
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


def number_from_1(text: str) -> int:
    """Images of a batch."""
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value


def min_or_min_max(text: str) -> tuple[int, int | None]:
    """Sides in pixels, `800` or `800,1333`."""
    least, comma, most = text.partition(",")
    return number_from_1(least), number_from_1(most) if comma else None


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


def _refuse_filming_over(out: Path, videos: Sequence[Path]) -> None:
    """Refuse a folder in which a film would take the place of its video, whatever else may be replaced."""
    for video in videos:
        if (out / film_of(video)).resolve() == video.resolve():
            raise UserError(f"--out: {video} would be replaced by its film; name another folder.")


def _name_of_run(checkpoint: Path) -> str:
    """The name of a checkpoint's run, or its own where it lies in none."""
    path = checkpoint.resolve()
    return path.parent.parent.name if path.parent.name == "checkpoints" else path.stem


def _read(source: Source) -> Tensor:
    """An image, uint8 `[3, H, W]`.

    Raises:
        UserError: it cannot be decoded, or has not the size that the ground truth says.
    """
    from detlab.data.images import read_image

    image = read_image(source.path)
    height, width = image.shape[1:]
    if source.size is not None and source.size != (height, width):
        listed = f"{source.size[0]} x {source.size[1]}"
        raise UserError(
            f"{source.path}: {height} x {width} pixels (height x width), but the ground truth says {listed}."
        )
    return image


def _batches(frames: Iterable[Frame], size: int) -> Iterator[list[Frame]]:
    """So many at a time."""
    left = iter(frames)
    while batch := list(itertools.islice(left, size)):
        yield batch


class _Predictions:
    """Predictions on their way into a folder; of an image's masks only the run lengths stay in memory.

    Args:
        detector: reports all that its model does.
        class_map: the detector's classes, with the ids that the results will have.
        out: the folder.
        threshold: least score of what is drawn; `operating`: each class's own.
        table: whether what is drawn is written as a CSV too.
    """

    def __init__(
        self, detector: Detector, class_map: ClassMap, out: Path, threshold: Threshold, *, table: bool
    ) -> None:
        self.detector, self.class_map, self.out, self.table = detector, class_map, out, table
        self.threshold: Threshold = threshold
        self.rows: list[dict[str, Any]] = []
        self.images: list[dict[str, Any]] = []
        self.next_id = 1  # above all ids so far
        self.believed: list[tuple[str, dict[str, Any]]] = []  # the image's name, and name, score and box of an object

    def add_all(self, sources: Sequence[Source], videos: Sequence[Path], batch_size: int, *, every: int) -> int:
        """Predict all images and videos, so many images at a time, say what became of them, and give the exit status."""
        from rich.console import Console
        from rich.progress import Progress

        console = Console(stderr=True)
        faults: list[str] = []
        try:
            with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
                task = bar.add_task("predicting", total=len(sources))
                for first in range(0, len(sources), batch_size):
                    batch = sources[first : first + batch_size]
                    for name, objects in self._add(batch, faults):
                        if not console.is_terminal:
                            print(f"{name}: {objects} object(s)")
                    bar.advance(task, len(batch))
                for path in videos:
                    said = self._add_video(path, every, batch_size, faults, bar)
                    if said:
                        bar.console.print(said, markup=False, highlight=False)
        finally:  # also after Ctrl-C: what was done is kept
            self._write()
        if self.images:
            print(
                f"{len(self.images)} image(s), {len(self.believed)} object(s) of score {self._least_score()} or more; all "
                f"{len(self.rows)} in {self.out / RESULTS}"
            )
        if faults:
            print(
                f"detlab: {len(faults)} of {len(sources) + len(videos)} {'files' if videos else 'images'} could not be predicted:",
                *faults,
                sep="\n  ",
                file=sys.stderr,
            )
        return 1 if faults else 0

    def _add(self, sources: Sequence[Source], faults: list[str]) -> list[tuple[str, int]]:
        """Predict and draw images, those of one size in one batch; the name and the number of objects drawn of each.

        What cannot be decoded, or has not the size that the ground truth says, is told in `faults`.
        """
        images: dict[Source, Tensor] = {}
        for source in sources:
            try:
                images[source] = _read(source)
            except UserError as error:
                faults.append(str(error))
        found: dict[Source, Prediction] = {}
        by_size = sorted(images, key=lambda source: images[source].shape)
        for _, alike in itertools.groupby(by_size, lambda source: images[source].shape):
            group = list(alike)
            predictions = self.detector.together([images[source] for source in group])
            found |= dict(zip(group, predictions, strict=True))
        return [(source.name, self._keep(source, image, found[source])) for source, image in images.items()]

    def _keep(self, source: Source, image: Tensor, prediction: Prediction) -> int:
        """Draw a prediction into its file and take its rows; the number of objects drawn."""
        from detlab.pictures import save

        picture, objects = self._take(source.name, source.image_id, image, prediction)
        path = self.out / source.picture
        path.parent.mkdir(parents=True, exist_ok=True)
        save(picture, path)
        return objects

    def _take(
        self, name: str, image_id: int, image: Tensor, prediction: Prediction, **more: float
    ) -> tuple[Tensor, int]:
        """Take a prediction's rows; its picture, and the number of objects drawn in it."""
        from detlab.evaluation.results import prediction_to_results
        from detlab.pictures import draw

        height, width = image.shape[1:]
        self.rows += prediction_to_results(image_id, prediction, self.class_map, self.detector.iou_types)
        self.images.append({"id": image_id, "file_name": name, "height": height, "width": width, **more})
        self.next_id = max(self.next_id, image_id + 1)
        points = self.detector.keypoints
        believed = self.detector.believed(prediction, self.threshold)
        self.believed += [(name, each) for each in self.detector.named(believed)]
        picture = draw(image, believed, self.class_map, points, threshold=0, shorter_side=1)
        return picture, len(believed["labels"])

    def _add_video(self, path: Path, every: int, batch_size: int, faults: list[str], bar: Progress) -> str:
        """Predict and film a video; what became of it, in words, if anything. What cannot be decoded is told in `faults`."""
        from detlab.commands.video import Video, filming

        begun = len(self.images), len(self.believed)
        try:
            video = Video(path, every)
            task = bar.add_task(printable(path.name), total=video.count or None)
            with filming(self.out / film_of(path), video.rate) as film:
                for frames in _batches(video, batch_size):
                    predictions = self.detector.together([frame.image for frame in frames])
                    for frame, prediction in zip(frames, predictions, strict=True):
                        name = f"{path.name}#{frame.number}"
                        more = {"frame": frame.number, "seconds": frame.seconds}
                        film.add(self._take(name, self.next_id, frame.image, prediction, **more)[0])
                    bar.advance(task, len(frames))
        except UserError as error:
            faults.append(str(error))
        images, objects = len(self.images) - begun[0], len(self.believed) - begun[1]
        return f"{path}: {images} image(s), {objects} object(s)" if images else ""

    def _least_score(self) -> str:
        """The threshold, in words; of several classes the lowest and the highest."""
        if self.threshold != "operating":
            return f"{self.threshold:g}"
        low, high = (f"{float(value):.2g}" for value in (self.detector.operating.min(), self.detector.operating.max()))
        return low if low == high else f"{low} to {high}, by class,"

    def _write(self) -> None:
        """The results and what explains them; none where there is nothing."""
        if not self.images:
            return
        from detlab import storage
        from detlab.data.keypoints import coco_categories

        info = {"description": f"images that detlab predict saw with {self.detector.path}"}
        categories = coco_categories(self.class_map, self.detector.keypoints)
        index = {"info": info, "images": self.images, "categories": categories}
        storage.write_text(self.out / RESULTS, json.dumps(self.rows))
        storage.write_text(self.out / INDEX, json.dumps(index))
        if self.table:
            storage.write_text(self.out / TABLE, self._csv())

    def _csv(self) -> str:
        """What is drawn, a line an object."""
        from detlab.untrusted import csv_cell

        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["image", "name", "score", "x0", "y0", "x1", "y1"])
        for image, each in self.believed:
            numbers = [round(each["score"], 6), *(round(side, 3) for side in each["box"])]
            writer.writerow(map(csv_cell, (image, each["name"], *numbers)))
        return out.getvalue()
