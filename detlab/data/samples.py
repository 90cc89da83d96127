"""What is wrong with a data set that has no index: found by going through its samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from detlab.data.faults import Fault
from detlab.data.files import Look, picture_digest
from detlab.data.folders import MANY
from detlab.data.index import Index, IndexBuilder
from detlab.errors import UserError
from detlab.masks import encode
from detlab.structures import DetectionDataset, Target, check_sample


@dataclass(frozen=True)
class Walk:
    """What the samples of one part are.

    Args:
        index: of the samples that keep the contract; objects are numbered from 0 in each.
        faults: of the others, and of ground truth that differs.
        looks: the digest of each image.
    """

    index: Index
    faults: list[Fault]
    looks: list[Look]


def walk(dataset: DetectionDataset, part: str) -> Walk:
    """Go through all samples, in this process, and hold each against the contract and against `ground_truth()`."""
    builder = IndexBuilder(dataset.class_map, dataset.keypoints, has_outlines="segm" in dataset.iou_types)
    faults: list[Fault] = []
    looks: list[Look] = []
    rows: list[_Row] = []
    for i in _with_bar(len(dataset), part):
        name = dataset.image_names[i]
        try:
            image, target = dataset[i]
            check_sample(image, target, dataset.class_map, dataset.iou_types, name)
        except Exception as error:  # a user's own class may raise anything
            faults.append(Fault("broken sample", name, None, _in_words(error, name)))
            continue
        size = (image.shape[1], image.shape[2])
        builder.add_image(name, int(target["image_id"]), *size)
        _add_objects(builder, target)
        rows.append(_Row(name, int(target["image_id"]), size, len(target["labels"])))
        looks.append(Look(part, name, (), picture_digest(image.as_subclass(Tensor))))
    faults += _ids_twice(rows)
    if not faults:
        faults += _truth_faults(dataset, rows)
    return Walk(builder.build(), faults, looks)


@dataclass(frozen=True)
class _Row:
    """What ground truth must say of an image."""

    name: str
    image_id: int
    size: tuple[int, int]
    objects: int


def _with_bar(count: int, part: str) -> Iterator[int]:
    """The numbers from 0; of many with a bar on a terminal."""
    from rich.console import Console
    from rich.progress import track

    bar = Console(stderr=True)
    hidden = count < MANY or not bar.is_terminal
    yield from track(range(count), f"reading samples of {part}", console=bar, transient=True, disable=hidden)


def _in_words(error: Exception, name: str) -> str:
    if isinstance(error, UserError):
        return str(error).removeprefix(f"{name}: ").removesuffix(".")
    return f"raises {type(error).__name__}: {error}"


def _add_objects(builder: IndexBuilder, target: Target) -> None:
    runs: list[Any] = encode(target["masks"].numpy()) if "masks" in target else []
    for i, (x0, y0, x1, y1) in enumerate(target["boxes"].tolist()):
        builder.add_object(
            annotation_id=i,
            box=(x0, y0, x1 - x0, y1 - y0),
            label=int(target["labels"][i]),
            area=float(target["area"][i]),
            crowd=bool(target["iscrowd"][i]),
            runs=runs[i]["counts"] if runs else b"",
            points=target["keypoints"][i].flatten().tolist() if "keypoints" in target else None,
        )


def _ids_twice(rows: list[_Row]) -> Iterator[Fault]:
    first: dict[int, str] = {}
    for row in rows:
        if first.setdefault(row.image_id, row.name) != row.name:
            yield Fault(
                "image id twice", row.name, None, f"image_id {row.image_id} is that of {first[row.image_id]} too"
            )


def _truth_faults(dataset: DetectionDataset, rows: list[_Row]) -> Iterator[Fault]:
    """Where the ground truth, by which predictions are scored, says something else than the samples."""
    kind = "ground truth differs"
    try:
        truth = dataset.ground_truth()
    except UserError as error:
        yield Fault(kind, "", None, str(error))
        return
    told = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}
    counts = Counter(annotation["image_id"] for annotation in truth["annotations"])
    for image_id in told.keys() - {row.image_id for row in rows}:
        yield Fault(kind, "", None, f"ground_truth() has the image {image_id}, of which there is no sample")
    for i, row in enumerate(rows):
        if row.image_id not in told:
            yield Fault(kind, row.name, None, f"ground_truth() has no image {row.image_id}")
        elif not told[row.image_id] == dataset.get_height_and_width(i) == row.size:
            said = (
                f"{told[row.image_id]} in ground_truth(), {dataset.get_height_and_width(i)} by get_height_and_width()"
            )
            yield Fault(kind, row.name, None, f"{row.size} pixels (height, width), but {said}")
        elif counts[row.image_id] != row.objects:
            said = f"{row.objects} object(s) in the sample, but {counts[row.image_id]} in ground_truth()"
            yield Fault(kind, row.name, None, said)
