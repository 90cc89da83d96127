"""COCO's format: one JSON file of images, annotations and categories."""

from __future__ import annotations

import dataclasses
import functools
import gc
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from detlab.data.dataset import Choice, IndexedDataset, assemble
from detlab.data.faults import Fault, Reading, faults_at
from detlab.data.images import image_size
from detlab.data.index import Index, IndexBuilder
from detlab.data.keypoints import keypoints_from_config
from detlab.errors import UserError
from detlab.structures import ClassMap, IouType, Keypoints
from detlab.untrusted import json_of, leads_out


def coco(
    *,
    part: str,
    root: str,
    train_annotations: str,
    train_images: str,
    val_annotations: str | None,
    val_images: str | None,
    test_annotations: str | None,
    test_images: str | None,
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
    """COCO's instances or person-keypoints files, or anybody's of that form (https://cocodataset.org/#format-data).

    Ids may have gaps and stand in any order. `info`, `area` (that of the mask, else of the box), `iscrowd` (0), `num_keypoints` may
    be absent, and so may the `height` and `width` of an image, which are then read from its file.

    Args:
        part: `train`, `val` or `test`.
        root: the folder that the other paths are relative to.
        train_annotations: JSON file.
        train_images: folder that its `file_name`s are relative to.
        val_annotations: the same for validation; None splits the training images.
        val_images: folder; may be the same.
        test_annotations: the same for the test; None splits the training images.
        test_images: folder.
        keypoints: names, flip pairs, sigmas and skeleton, see `keypoints_from_config`; None takes the names and the skeleton of the
            file's categories.

    The rest: see `detlab.data.dataset.Choice`.

    Raises:
        UserError: files that are missing or not of this form, faults in them; see `assemble`.
    """
    folder = Path(root).expanduser()
    named = {
        "train": (train_annotations, train_images),
        "val": (val_annotations, val_images),
        "test": (test_annotations, test_images),
    }
    files = {}
    for name, (file, images) in named.items():
        if file is not None:
            if images is None:
                raise UserError(f"dataset.{name}_images: missing; give the folder of the images of {file}.")
            files[name] = functools.partial(read_coco, folder / file, folder / images, keypoints)
    choice = Choice(
        part, classes, iou_types, invalid, val_size, test_size, split_seed, split_file, folds, fold, fraction, cache
    )
    return assemble(files, choice, name=folder.name, key=f"coco {folder} {named}")


def read_coco(path: Path, images: Path, keypoints: Mapping[str, Any] | None) -> Reading:
    """Read one COCO file.

    Args:
        path: the JSON file.
        images: folder that its `file_name`s are relative to.
        keypoints: settings of the points; None takes the categories' own.

    Raises:
        UserError: no such file, or not of the form; what is wrong with single objects becomes a `Fault` each.
    """
    with _no_search_for_cycles():
        return _read(path, images, keypoints)


@contextmanager
def _no_search_for_cycles() -> Iterator[None]:
    """Millions of new objects without a cycle among them make Python search for cycles again and again, a third of the time."""
    searching = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if searching:
            gc.enable()


def _read(path: Path, images: Path, keypoints: Mapping[str, Any] | None) -> Reading:
    content = _content(path)
    class_map = _class_map(content["categories"], path)
    points = keypoints_from_config(keypoints, "dataset.keypoints") if keypoints is not None else _points(content, path)
    reader = _Objects(path, class_map, points)
    builder = IndexBuilder(class_map, points)
    rows: dict[Any, list[int]] = {}
    annotations = content["annotations"]
    for number, row in enumerate(annotations):
        rows.setdefault(_image_id(row), []).append(number)
    names: set[str] = set()
    ids: set[int] = set()
    for entry in content["images"]:
        name, image_id, size = _image(entry, path, images, reader.faults)
        if name in names:
            raise UserError(f"{path}: images: file_name {name!r} stands twice.")
        if image_id in ids:
            raise UserError(f"{path}: images: id {image_id} stands twice, the second time with file_name {name!r}.")
        names.add(name)
        ids.add(image_id)
        builder.add_image(name, image_id, *size)
        for number in rows.pop(entry["id"], ()):
            reader.add(builder, annotations[number], number, name, size)
            annotations[number] = None  # not needed again: large files take gigabytes as Python objects
    for image_id, numbers in rows.items():
        for number in numbers:
            said = f"image_id {image_id!r} is no image's" if image_id is not None else "has no image_id"
            reader.refuse("unknown image", "", annotations[number], number, said)
    index = builder.build()
    return Reading(index, images, [*reader.faults, *_ids_twice(index)], path)


def _image_id(row: Any) -> Any:
    """What an annotation says; None where nothing that could be an image's."""
    image_id = row.get("image_id") if isinstance(row, dict) else None
    return None if isinstance(image_id, list | dict) else image_id


def _ids_twice(index: Index) -> Iterator[Fault]:
    """The annotations whose id another one before them has."""
    again = np.ones(len(index.annotation_ids), np.bool_)
    again[np.unique(index.annotation_ids, return_index=True)[1]] = False
    for fault in faults_at("annotation id twice", index, again, lambda _: "another annotation has the same id"):
        yield dataclasses.replace(fault, row=None)


def _content(path: Path) -> dict[str, Any]:
    try:
        content = json_of(path)
    except OSError as error:
        raise UserError(
            f"{path}: {error.strerror}; give a COCO file in dataset.train_annotations and the like."
        ) from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); perhaps cut off. Take another copy.") from None
    lists = ("images", "annotations", "categories")
    if not isinstance(content, dict) or any(not isinstance(content.get(key), list) for key in lists):
        raise UserError(f"{path}: no COCO file; it needs the lists images, annotations and categories.")
    return content


def _class_map(categories: Sequence[Any], path: Path) -> ClassMap:
    """The classes in the order of their ids."""
    try:
        pairs = sorted((int(category["id"]), str(category["name"])) for category in categories)
    except (TypeError, KeyError, ValueError, OverflowError):
        raise UserError(f"{path}: categories: each needs an id, a whole number, and a name.") from None
    if not pairs:
        raise UserError(f"{path}: categories: the list is empty; name at least one class.")
    for k, key in enumerate(("id", "name")):
        values = [pair[k] for pair in pairs]
        twice = [value for value in values if values.count(value) > 1]
        if twice:
            raise UserError(f"{path}: categories: {key} {twice[0]!r} stands twice.")
    return ClassMap(tuple(name for _, name in pairs), tuple(number for number, _ in pairs))


def _points(content: Mapping[str, Any], path: Path) -> Keypoints | None:
    """The points that the categories name, the same for all that name any; None where no object has points."""
    if not any(isinstance(row, dict) and row.get("keypoints") for row in content["annotations"]):
        return None
    named = [category for category in content["categories"] if category.get("keypoints")]
    if not named or any(category["keypoints"] != named[0]["keypoints"] for category in named):
        why = "the categories name different ones" if named else "no category names them"
        raise UserError(
            f"{path}: categories: objects have keypoints, but {why}; say what they are in dataset.keypoints."
        )
    names = [str(name) for name in named[0]["keypoints"]]
    skeleton = named[0].get("skeleton") or []
    try:
        limbs = [[names[a - 1], names[b - 1]] for a, b in skeleton]
    except (TypeError, ValueError, IndexError):
        raise UserError(f"{path}: categories: skeleton {skeleton}: expected pairs of numbers from 1.") from None
    node = {"names": names, "flip_pairs": None, "sigmas": None, "skeleton": limbs}
    return keypoints_from_config(node, "dataset.keypoints")


def _image(entry: Any, path: Path, folder: Path, faults: list[Fault]) -> tuple[str, int, tuple[int, int]]:
    """File name, id, and height and width of an entry of `images`; 0 and 0 where neither it nor the file says them."""
    try:
        name, image_id = str(entry["file_name"]), int(np.int64(int(entry["id"])))
    except (TypeError, KeyError, ValueError, OverflowError):
        raise UserError(
            f"{path}: images: {str(entry)[:80]}: each needs a file_name and an id, a whole number."
        ) from None
    if leads_out(name) or not name.isprintable():
        raise UserError(f"{path}: images: file_name {name!r} leads out of {folder}, or cannot be printed; correct it.")
    height, width = entry.get("height"), entry.get("width")
    if height is None or width is None:
        file, size = folder / name, (0, 0)
        try:
            size = image_size(file) if file.is_file() else size
        except UserError as error:
            said = str(error).removeprefix(f"{file}: ").removesuffix(".")
            faults.append(Fault("image unreadable", name, None, said))
        return name, image_id, size
    if not all(isinstance(side, int) and 0 < side < 2**31 for side in (height, width)):
        raise UserError(f"{path}: images: {name}: height {height!r} and width {width!r}; give whole pixels above 0.")
    return name, image_id, (height, width)


class _Objects:
    """Takes annotations into an index, and keeps account of those that cannot be."""

    def __init__(self, path: Path, class_map: ClassMap, points: Keypoints | None) -> None:
        self.faults: list[Fault] = []
        self._path = path
        self._label = {category_id: label for label, category_id in enumerate(class_map.category_ids, 1)}
        self._points = points

    def refuse(self, kind: str, image: str, row: Any, number: int, said: str) -> None:
        """Take note of an object that is not taken."""
        annotation = row["id"] if isinstance(row, dict) and "id" in row else f"at place {number}"
        self.faults.append(Fault(kind, image or self._path.name, annotation, said))

    def add(self, builder: IndexBuilder, row: dict[str, Any], number: int, image: str, size: tuple[int, int]) -> None:
        """Take an annotation into the index, or note why not."""
        category_id: Any = row.get("category_id")
        label = self._label.get(category_id) if not isinstance(category_id, list | dict) else None
        if label is None:
            said = f"category_id {category_id!r} is no category's"
            self.refuse("unknown class", image, row, number, said)
            return
        try:
            fields = self._fields(row, size)
            annotation_id = row["id"] if isinstance(row.get("id"), int) else number
            builder.add_object(annotation_id=annotation_id, label=label, **fields)
            self._count_points(row, annotation_id, image, fields)
        except (TypeError, ValueError, KeyError, OverflowError) as error:
            said = f"lacks {error}" if isinstance(error, KeyError) else str(error)
            self.refuse("unreadable object", image, row, number, said)

    def _fields(self, row: dict[str, Any], size: tuple[int, int]) -> dict[str, Any]:
        box = row["bbox"]
        if not isinstance(box, list) or len(box) != 4:
            raise ValueError(f"bbox {str(box)[:60]} is no list of x, y, width, height")
        fields: dict[str, Any] = {"box": box, "crowd": bool(row.get("iscrowd"))}
        runs = b""
        outline = row.get("segmentation")
        if isinstance(outline, dict):
            fields["runs"] = runs = _compressed(outline, size)
        elif outline:
            fields["polygons"] = _polygons(outline)
        area = row.get("area")
        if area is None:
            area = _area(runs, fields.get("polygons"), box, size)
        fields["area"] = area
        if self._points is not None and row.get("keypoints"):
            fields["points"] = self._triples(row["keypoints"])
        return fields

    def _count_points(self, row: dict[str, Any], annotation_id: int, image: str, fields: dict[str, Any]) -> None:
        """Note where `num_keypoints` is another number than that of the labelled points."""
        said = row.get("num_keypoints")
        labelled = sum(visibility > 0 for visibility in fields["points"][2::3]) if "points" in fields else 0
        if self._points is not None and said is not None and said != labelled:
            text = f"num_keypoints {said!r}, but {labelled} of its points are labelled"
            self.faults.append(Fault("keypoint count", image, annotation_id, text))

    def _triples(self, values: Any) -> list[float]:
        assert self._points is not None
        if not isinstance(values, list) or len(values) != 3 * len(self._points):
            count = len(values) if isinstance(values, list) else "no"
            raise ValueError(f"keypoints: {count} numbers; expected x, y, visibility of {len(self._points)} points")
        return values


def _polygons(outline: Any) -> list[list[float]]:
    if not isinstance(outline, list) or not all(isinstance(part, list) for part in outline):
        raise ValueError("segmentation is neither a list of polygons nor run lengths")
    odd = [len(part) for part in outline if len(part) % 2]
    if odd:
        raise ValueError(f"segmentation: a polygon of {odd[0]} numbers; expected pairs of x, y")
    return outline


def _compressed(outline: Mapping[str, Any], size: tuple[int, int]) -> bytes:
    """Run lengths, compressed or not, as compressed ones that cover the image.

    Raises:
        ValueError: not so.
    """
    said = outline.get("size")
    if size == (0, 0) and isinstance(said, list) and len(said) == 2:
        size = (said[0], said[1])  # the image is missing, and nothing else says its size
    if said != list(size):
        raise ValueError(f"segmentation: run lengths of size {said}, but the image has {list(size)}")
    counts = outline.get("counts")
    if isinstance(counts, str):
        runs = counts.encode("ascii")
        lengths = _run_lengths(runs)
    elif isinstance(counts, list) and all(isinstance(count, int) for count in counts):
        lengths = counts
        if any(count < 0 for count in counts) or sum(counts) != math.prod(size):
            raise ValueError(f"segmentation: run lengths for {sum(counts)} pixels, but the image has {math.prod(size)}")
        encoded: Any = coco_mask.frPyObjects({"size": list(size), "counts": counts}, *size)  # type: ignore[arg-type]
        runs = encoded["counts"]
    else:
        raise ValueError("segmentation: counts are neither a string nor a list of whole numbers")
    if any(length < 0 for length in lengths) or sum(lengths) != math.prod(size):
        raise ValueError(f"segmentation: run lengths for {sum(lengths)} pixels, but the image has {math.prod(size)}")
    return runs


def _run_lengths(runs: bytes) -> list[int]:
    """The lengths in COCO's compressed ASCII: 5 bits a character, low ones first, from the fourth on less the last but one.

    pycocotools reads a damaged string without a word, and beyond its end.

    Raises:
        ValueError: it ends within a number, or has other characters.
    """
    lengths: list[int] = []
    value, shift = 0, 0
    for character in runs:
        digit = character - 48
        if not 0 <= digit < 64:
            raise ValueError(f"segmentation: counts hold the character {chr(character)!r}")
        value |= (digit & 31) << shift
        shift += 5
        if digit & 32:
            continue
        if digit & 16:
            value -= 1 << shift
        lengths.append(value + lengths[-2] if len(lengths) > 2 else value)
        value, shift = 0, 0
    if shift:
        raise ValueError("segmentation: counts end within a number")
    return lengths


def _area(runs: bytes, polygons: Any, box: Sequence[float], size: tuple[int, int]) -> float:
    """The area that a file left out: that of the mask, else of the box."""
    if polygons and all(len(part) >= 6 and np.isfinite(part).all() for part in polygons):
        merged: Any = coco_mask.merge(coco_mask.frPyObjects(polygons, *size))  # type: ignore[arg-type]
        return float(coco_mask.area(merged))
    if runs:
        return float(coco_mask.area({"size": list(size), "counts": runs}))
    return float(box[2]) * float(box[3])
