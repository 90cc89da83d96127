"""YOLO's format as Ultralytics describes it: a data.yaml, and a text file of boxes, polygons or points for each image."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pycocotools import mask as coco_mask

from detlab.data.dataset import Choice, IndexedDataset, assemble
from detlab.data.faults import Fault, Reading
from detlab.data.folders import SUFFIXES, files_below, read_all
from detlab.data.images import image_size
from detlab.data.index import IndexBuilder
from detlab.data.keypoints import keypoints_from_config
from detlab.data.split import PARTS
from detlab.errors import UserError
from detlab.structures import PERSON, ClassMap, IouType, Keypoints

Size = tuple[int, int]
# What a number may be that is rounded, or a little off; pixels are beyond.
LARGEST_FRACTION = 2.0
# A list of class names that labelling tools leave among the labels.
NO_LABELS = "classes.txt"


def yolo(
    *,
    part: str,
    data: str,
    keypoints: dict[str, Any] | None,
    classes: Sequence[str] | None,
    iou_types: Sequence[IouType] | None,
    invalid: str,
    val_size: float,
    test_size: float,
    split_seed: int,
    split_file: str | None,
    folds: int | None,
    fold: int | None,
    fraction: float,
    cache: str,
) -> IndexedDataset:
    """A data.yaml and what it names (https://docs.ultralytics.com/datasets/detect, .../segment and .../pose).

    An image without a label file has no objects. Category ids are those of the files, from 0.

    Args:
        part: `train`, `val` or `test`.
        data: the data.yaml.
        keypoints: of pose labels (`kpt_shape`): names, flip pairs, sigmas and skeleton, see `keypoints_from_config`; None means
            COCO's of a person, where there are 17.

    The rest: see `detlab.data.dataset.Choice`.

    Raises:
        UserError: files that are missing or not of this form, faults in them; see `read_yolo` and `assemble`.
    """
    description = read_description(Path(data).expanduser(), keypoints)
    files = {name: functools.partial(read_yolo, description, name) for name in description.parts}
    choice = Choice(
        part, classes, iou_types, invalid, val_size, test_size, split_seed, split_file, folds, fold, fraction, cache
    )
    return assemble(files, choice, name=description.source.parent.name, key=f"yolo {description}")


@dataclass(frozen=True)
class Description:
    """What a data.yaml says.

    Args:
        source: the file.
        root: the folder that the parts are relative to.
        parts: folders of images, or .txt files that list them, of `train` and where they are named `val` and `test`.
        class_map: names, and ids from 0.
        keypoints: of pose labels; None where they are not.
        numbers_a_point: 2, x and y, or 3, visibility too.
    """

    source: Path
    root: Path
    parts: Mapping[str, Sequence[str]]
    class_map: ClassMap
    keypoints: Keypoints | None
    numbers_a_point: int


def read_description(path: Path, keypoints: Mapping[str, Any] | None) -> Description:
    """Read a data.yaml. Its `path` is relative to its folder.

    Args:
        path: of the file.
        keypoints: settings of the points of pose labels.

    Raises:
        UserError: no such file, no YAML, or without what it must say.
    """
    try:
        # The loader that leaves every word as it is written: a class may be called `no`, or 1.
        content = yaml.load(path.read_text(encoding="utf-8"), yaml.BaseLoader)
    except OSError as error:
        raise UserError(
            f"dataset.data={path}: {error.strerror}; give a data.yaml as Ultralytics describes it."
        ) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not YAML ({' '.join(str(error).split())}).") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds no keys; it needs train and names.")
    said = {key: value for key, value in content.items() if value not in ("", "null", "~")}
    if "val" not in said and "validation" in said:
        said["val"] = said["validation"]
    if "train" not in said:
        raise UserError(
            f"{path}: train is missing; give a folder of images, a list of folders, or a .txt that lists images."
        )
    root = path.parent / str(said["path"]) if "path" in said else path.parent
    if not root.is_dir():
        raise UserError(
            f"{path}: path: {root} is no folder; give it relative to the folder of this file, or leave it out."
        )
    parts = {part: _entries(said[part], part, path) for part in PARTS if part in said}
    points, numbers = _points(said, keypoints, path)
    return Description(path, root, parts, _class_map(said, path), points, numbers)


def _entries(value: Any, part: str, path: Path) -> list[str]:
    entries = value if isinstance(value, list) else [value]
    if not entries or not all(isinstance(entry, str) for entry in entries):
        raise UserError(
            f"{path}: {part}: {value!r}; give a folder of images, a list of folders, or a .txt that lists images."
        )
    return entries


def _class_map(said: Mapping[str, Any], path: Path) -> ClassMap:
    """The classes in the order of their ids."""
    count = _whole_number(said["nc"], "nc", path) if "nc" in said else None
    names = said["names"] if "names" in said else [f"class_{i}" for i in range(count or 0)]
    pairs: list[tuple[Any, Any]] = list(names.items() if isinstance(names, dict) else enumerate(names))
    if isinstance(names, str) or not pairs or not all(isinstance(name, str) for _, name in pairs):
        raise UserError(f"{path}: names: {str(names)[:80]}; give a list of names, or names by their numbers from 0.")
    ids = [_whole_number(number, "names", path) for number, _ in pairs]
    texts = [name for _, name in pairs]
    for values in (ids, texts):
        twice = [value for value in values if values.count(value) > 1]
        if twice:
            raise UserError(f"{path}: names: {twice[0]!r} stands twice.")
    if count is not None and count != len(pairs):
        raise UserError(f"{path}: nc: {count}, but names has {len(pairs)}; correct one of them, or leave nc out.")
    order = sorted(range(len(ids)), key=ids.__getitem__)
    return ClassMap(tuple(texts[i] for i in order), tuple(ids[i] for i in order))


def _whole_number(value: Any, key: str, path: Path) -> int:
    if isinstance(value, int):
        return value
    if not isinstance(value, str) or not value.isdecimal():
        raise UserError(f"{path}: {key}: {value!r} is not allowed; give a whole number from 0.")
    return int(value)


def _points(said: Mapping[str, Any], settings: Mapping[str, Any] | None, path: Path) -> tuple[Keypoints | None, int]:
    """What the points of pose labels are, and the numbers that each has."""
    if "kpt_shape" not in said:
        if settings is not None:
            raise UserError(f"{path}: dataset.keypoints is given, but kpt_shape, [points, 2 or 3], is missing here.")
        return None, 0
    shape = said["kpt_shape"]
    if not isinstance(shape, list) or len(shape) != 2 or shape[1] not in ("2", "3"):
        raise UserError(f"{path}: kpt_shape: {shape!r} is not allowed; give [points, 2 or 3].")
    count = _whole_number(shape[0], "kpt_shape", path)
    if settings is None:
        mirrored = [str(i) for i in PERSON.mirrored]
        if count != len(PERSON) or ("flip_idx" in said and said["flip_idx"] != mirrored):
            raise UserError(
                f"{path}: kpt_shape: {count} points that are not COCO's 17 of a person; say what they are in dataset.keypoints."
            )
        return PERSON, int(shape[1])
    points = keypoints_from_config(settings, "dataset.keypoints")
    assert points is not None
    if len(points) != count:
        raise UserError(f"{path}: kpt_shape: {count} points, but dataset.keypoints names {len(points)}.")
    return points, int(shape[1])


def read_yolo(description: Description, part: str) -> Reading:
    """Read the images of a part, their sizes by their headers, and their labels; ids of images are from 1, by name.

    Raises:
        UserError: a folder or list that is missing or empty, an image that stands twice, or no label file at all; what is wrong
            with single images and objects becomes a `Fault` each. An object's number is its line in its file.
    """
    images, faults = _images(description, part)
    names = sorted(images)
    builder = IndexBuilder(description.class_map, description.keypoints)
    lines = _Lines(description)
    labelled: list[bool] = []
    seen = read_all(lambda name: _read_image(name, images[name]), names, "reading labels")
    for image_id, (name, found) in enumerate(zip(names, seen, strict=True), 1):
        if isinstance(found, Fault):
            faults.append(found)
            continue
        size, label = found
        builder.add_image(name, image_id, *size)
        # An image that is missing is told of where files are looked for; its objects have no place in pixels.
        if size != (0, 0):
            labelled.append(label is not None)
            lines.add_all(builder, label or "", name, size)
    if labelled and not any(labelled):
        first = images[names[0]]
        raise UserError(
            f"{description.source}: {part}: none of {len(labelled)} image(s) has a label file; that of {first} would be "
            f"{label_path(first)}."
        )
    faults += lines.faults
    return Reading(builder.build(), description.root, faults, description.source)


def _images(description: Description, part: str) -> tuple[dict[str, Path], list[Fault]]:
    """The images of a part by their names below the root, and label files that belong to none.

    Raises:
        UserError: see `read_yolo`.
    """
    images: dict[str, Path] = {}
    faults: list[Fault] = []
    for entry in description.parts[part]:
        place = _place(description, part, entry)
        listed = _listed(place) if place.is_file() else [place / name for name in files_below(place, SUFFIXES)]
        if not listed:
            raise UserError(f"{description.source}: {part}: {place} holds no image.")
        if place.is_dir():
            faults += _labels_without_image(place, listed, description.root)
        for image in listed:
            name = Path(os.path.relpath(image, description.root)).as_posix()
            if name in images:
                raise UserError(f"{description.source}: {part}: the image {name} stands twice.")
            images[name] = image
    return images, faults


def label_path(image: Path) -> Path:
    """The label file of an image: the last folder called `images` in its path becomes `labels`, without one it lies beside it."""
    before, images, after = Path(os.path.abspath(image)).with_suffix(".txt").as_posix().rpartition("/images/")
    return Path(f"{before}/labels/{after}" if images else after)


def _place(description: Description, part: str, entry: str) -> Path:
    """The folder or list that a part names."""
    place = description.root / entry
    if not place.exists() and entry.startswith("../"):
        place = description.root / entry.removeprefix("../")  # so Roboflow writes what lies beside its data.yaml
    if not place.is_dir() and not (place.is_file() and place.suffix == ".txt"):
        said = "is no .txt that lists images" if place.exists() else "does not exist"
        raise UserError(f"{description.source}: {part}: {description.root / entry} {said}; correct path or {part}.")
    return place


def _listed(file: Path) -> list[Path]:
    """The images that a .txt lists, relative to its folder."""
    lines = [line.strip() for line in file.read_text(encoding="utf-8-sig", errors="surrogateescape").splitlines()]
    return [file.parent / line for line in lines if line]


def _labels_without_image(folder: Path, images: Sequence[Path], root: Path) -> list[Fault]:
    """Label files in the folder for the labels of a folder of images, none of which has their name."""
    labels = label_path(folder / "any").parent
    if labels == Path(os.path.abspath(folder)):
        return []  # text files beside images may be anything
    expected = {label_path(image) for image in images}
    strays = [name for name in files_below(labels, (".txt",)) if labels / name not in expected and name != NO_LABELS]
    return [
        Fault(
            "unknown image",
            Path(os.path.relpath(labels / name, root)).as_posix(),
            None,
            "a label file without its image",
        )
        for name in strays
    ]


def _read_image(name: str, image: Path) -> tuple[Size, str | None] | Fault:
    """The size of an image, (0, 0) where it is missing, and the text of its label file, None where that is."""
    try:
        size = image_size(image) if image.is_file() else (0, 0)
    except UserError as error:
        return Fault("image unreadable", name, None, str(error).removeprefix(f"{image}: "))
    label = label_path(image)
    try:
        return size, label.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return size, None
    except (OSError, ValueError) as error:
        return Fault("annotations unreadable", name, None, f"{label}: {error}")


class _Lines:
    """Takes the lines of label files into an index, and keeps account of those that cannot be."""

    def __init__(self, description: Description) -> None:
        self.faults: list[Fault] = []
        self._class_map = description.class_map
        self._label: dict[float, int] = {
            category_id: label for label, category_id in enumerate(description.class_map.category_ids, 1)
        }
        self._points = description.keypoints
        self._numbers_a_point = description.numbers_a_point

    def add_all(self, builder: IndexBuilder, text: str, image: str, size: Size) -> None:
        """Take the objects of an image into the index, or note why not."""
        for number, line in enumerate(text.splitlines(), 1):
            words = line.split()
            if not words:
                continue
            try:
                values = list(map(float, words))
            except ValueError as error:
                self.faults.append(Fault("unreadable object", image, number, str(error)))
                continue
            if values[0] not in self._label:
                said = f"class {words[0]} is none of {', '.join(map(str, self._class_map.category_ids))}"
                self.faults.append(Fault("unknown class", image, number, said))
                continue
            try:
                fields = self._fields(values[1:], size)
            except ValueError as error:
                self.faults.append(Fault("unreadable object", image, number, str(error)))
                continue
            builder.add_object(annotation_id=number, label=self._label[values[0]], **fields)

    def _fields(self, numbers: Sequence[float], size: Size) -> dict[str, Any]:
        """What follows the class in a line, in pixels.

        Raises:
            ValueError: other numbers than the format has.
        """
        if self._points is not None:
            expected = 4 + len(self._points) * self._numbers_a_point
            if len(numbers) != expected:
                raise ValueError(
                    f"{len(numbers) + 1} numbers; a class, a box and {len(self._points)} points are {expected + 1}"
                )
            _check_fractions(numbers[:4])
            return {**_box(numbers[:4], size), "points": self._triples(numbers[4:], size)}
        _check_fractions(numbers)
        if len(numbers) == 4:
            return _box(numbers, size)
        if len(numbers) < 6 or len(numbers) % 2:
            raise ValueError(
                f"{len(numbers) + 1} numbers; a class and a box are 5, a class and a polygon 7 or more, an odd number"
            )
        return _polygon(numbers, size)

    def _triples(self, numbers: Sequence[float], size: Size) -> list[float]:
        """Points as x, y, visibility; without one in the file, those with a negative number are not labelled."""
        rows = np.array(numbers).reshape(-1, self._numbers_a_point)
        visibility = rows[:, 2] if self._numbers_a_point == 3 else np.where((rows < 0).any(1), 0.0, 2.0)
        pixels = np.where(visibility[:, None] == 0, 0.0, rows[:, :2] * (size[1], size[0]))
        return np.concatenate((pixels, visibility[:, None]), 1).ravel().tolist()


def _check_fractions(numbers: Sequence[float]) -> None:
    """Refuse what is no fraction, or nearly one.

    Raises:
        ValueError: names the first such number.
    """
    if math.isfinite(sum(numbers)) and min(numbers) >= -LARGEST_FRACTION and max(numbers) <= LARGEST_FRACTION:
        return
    for number in numbers:
        if not math.isfinite(number):
            raise ValueError(f"{number} is not finite")
        if abs(number) > LARGEST_FRACTION:
            raise ValueError(
                f"{number:g} is in pixels, perhaps; expected fractions of the image's width and height, 0 to 1"
            )


def _box(numbers: Sequence[float], size: Size) -> dict[str, Any]:
    """Box and area of a centre, a width and a height."""
    x, y, width, height = (number * size[1 - k % 2] for k, number in enumerate(numbers))
    # Where the box is a fault, its area is not another one.
    return {"box": [x - width / 2, y - height / 2, width, height], "area": max(width, 0.0) * max(height, 0.0)}


def _polygon(numbers: Sequence[float], size: Size) -> dict[str, Any]:
    """The polygon, kept to hundredths of a pixel, as COCO's are; the box is its extent, the area its mask's."""
    points = np.array(numbers).reshape(-1, 2) * (size[1], size[0])
    first, last = points.min(0), points.max(0)
    polygon = np.round(points, 2).ravel().tolist()
    encoded: Any = coco_mask.frPyObjects([polygon], *size)  # type: ignore[arg-type]
    return {"box": [*first, *(last - first)], "area": float(coco_mask.area(encoded[0])), "polygons": [polygon]}
