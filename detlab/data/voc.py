"""Pascal VOC's format: an XML file of boxes for each image, and lists of the images of each part."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from detlab.data.dataset import Choice, IndexedDataset, assemble
from detlab.data.faults import Fault, Reading
from detlab.data.folders import SUFFIXES, files_below, read_all
from detlab.data.images import image_size
from detlab.data.index import IndexBuilder
from detlab.errors import UserError
from detlab.structures import ClassMap, IouType

Size = tuple[int, int]
# Where an element's line stands, among its attributes, of which VOC has none.
LINE = "line"


def voc(
    *,
    part: str,
    root: str,
    annotations: str,
    images: str,
    train_list: str | None,
    val_list: str | None,
    test_list: str | None,
    one_based: bool,
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
    """VOC's folders, or anybody's of that form (the development kit's documentation, http://host.robots.ox.ac.uk/pascal/VOC).

    Its pixels are counted from 1, and the last one belongs to its box: x0 = xmin - 1, y0 = ymin - 1, x1 = xmax, y1 = ymax.
    `difficult` objects are not learnt, and count neither for nor against a detector. The classes are those that objects of any
    part have, by name.

    Args:
        part: `train`, `val` or `test`.
        root: the folder that the other paths are relative to.
        annotations: folder of `NAME.xml`.
        images: folder of `NAME.jpg`, or of another suffix.
        train_list: a file with a NAME a line; None takes all annotations that no other list has.
        val_list: the same for validation; None splits the training images.
        test_list: the same for the test; None splits the training images.
        one_based: False for tools that count from 0 and write the corner behind the last pixel: x0 = xmin, x1 = xmax.

    The rest: see `detlab.data.dataset.Choice`.

    Raises:
        UserError: folders or lists that are missing or empty, faults in them; see `read_voc` and `assemble`.
    """
    folders = Folders(Path(root).expanduser(), annotations, images)
    lists = {"train": train_list, "val": val_list, "test": test_list}
    read = functools.partial(read_voc, folders, lists, one_based=one_based)
    files = {name: functools.partial(read, name) for name in lists if name == "train" or lists[name] is not None}
    choice = Choice(
        part, classes, iou_types, invalid, val_size, test_size, split_seed, split_file, folds, fold, fraction, cache
    )
    return assemble(files, choice, name=folders.root.name, key=f"voc {folders} {lists} {one_based}")


@dataclass(frozen=True)
class Folders:
    """Where VOC's files lie.

    Args:
        root: the folder that the others are relative to.
        annotations: of the XML files.
        images: of the images.
    """

    root: Path
    annotations: str
    images: str


@dataclass(frozen=True)
class _Object:
    """An `<object>`: its line, and what it says."""

    line: int
    name: str
    corners: tuple[float, float, float, float]  # xmin, ymin, xmax, ymax
    difficult: bool


@dataclass(frozen=True)
class _Annotation:
    """What an XML file says: the image, as it names it, and its size, where it does; the objects, and what cannot be read."""

    file_name: str | None
    size: Size | None
    objects: list[_Object]
    faults: list[Fault]
    is_whole: bool = True


def read_voc(folders: Folders, lists: Mapping[str, str | None], part: str, *, one_based: bool) -> Reading:
    """Read the annotations of a part; ids of images are from 1, by name.

    Args:
        folders: where they lie.
        lists: of the images of each part.
        part: a key of `lists`.
        one_based: whether pixels are counted from 1, and the last one belongs to its box.

    Raises:
        UserError: a folder or list that is missing or empty, a name that a list has twice, no object in any file, two images of one
            name; what is wrong with single files and objects becomes a `Fault` each. An object's number is the line that it begins
            on.
    """
    place = folders.root / folders.annotations
    xml_files = {name[: -len(".xml")]: place / name for name in files_below(place, (".xml",))}
    if not xml_files:
        state = "holds no *.xml" if place.is_dir() else "is no folder"
        raise UserError(
            f"dataset.root={folders.root}: {place} {state}; give the folder that has {folders.annotations}/ and {folders.images}/."
        )
    parts = _listed(folders.root, lists, list(xml_files))
    # Of all parts: a class has the same id in each.
    stems = sorted(xml_files.keys() & {stem for listed in parts.values() for stem in listed})
    read = read_all(lambda stem: _read_annotation(xml_files[stem]), stems, "reading annotations")
    found = dict(zip(stems, read, strict=True))
    images = _Images(folders)
    builder = IndexBuilder(_class_map(found, place))
    faults: list[Fault] = []
    for image_id, stem in enumerate(sorted(parts[part]), 1):
        if stem not in found:
            said = f"{parts[part][stem]}: no {folders.annotations}/{stem}.xml"
            faults.append(Fault("annotations missing", stem, None, said))
            continue
        name = images.name(stem, found[stem].file_name)
        try:
            size = found[stem].size or images.size(name)
        except UserError as error:
            faults.append(Fault("image unreadable", name, None, str(error).removeprefix(f"{images.folder / name}: ")))
            continue
        faults += [dataclasses.replace(fault, image=name) for fault in found[stem].faults]
        if found[stem].is_whole:
            builder.add_image(name, image_id, *size)
            # An image that is missing is told of where files are looked for.
            _add_objects(builder, found[stem].objects if size != (0, 0) else [], one_based=one_based)
    if all(file is None for file in lists.values()):
        faults += images.not_listed(parts["train"])
    return Reading(builder.build(), images.folder, faults, place)


def _listed(root: Path, lists: Mapping[str, str | None], stems: Sequence[str]) -> dict[str, dict[str, str]]:
    """The images of each part, and where they are listed; without a list, `train` has those that the others have not."""
    parts = {part: _read_list(root, part, file) for part, file in lists.items() if file is not None}
    if "train" not in parts:
        others = {stem for listed in parts.values() for stem in listed}
        parts["train"] = {stem: "" for stem in stems if stem not in others}
    return parts


def _read_list(root: Path, part: str, file: str) -> dict[str, str]:
    """The images that a file lists, and the line of each.

    Raises:
        UserError: no such file, nothing in it, a name twice.
    """
    try:
        lines = (root / file).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(
            f"dataset.{part}_list: {root / file}: {reason}; give a file with the name of an image a line, or null."
        ) from None
    listed: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        stem = line.strip()
        if stem in listed:
            raise UserError(f"{root / file}, line {number}: {stem} stands twice.")
        if stem:
            listed[stem] = f"{file}, line {number}"
    if not listed:
        raise UserError(f"dataset.{part}_list: {root / file}: names no image.")
    return listed


def _class_map(annotations: Mapping[str, _Annotation], place: Path) -> ClassMap:
    names = {o.name for annotation in annotations.values() for o in annotation.objects}
    if not names:
        faults = [fault for annotation in annotations.values() for fault in annotation.faults]
        first = f"; the first of {len(faults)} fault(s): {faults[0]}" if faults else ""
        raise UserError(f"{place}: {len(annotations)} file(s) without an object{first}.")
    return ClassMap(tuple(sorted(names)))


def _add_objects(builder: IndexBuilder, objects: Sequence[_Object], *, one_based: bool) -> None:
    """Take the objects of an image into the index."""
    for o in objects:
        x0, y0, x1, y1 = o.corners
        if one_based:
            x0, y0 = x0 - 1, y0 - 1
        width, height = x1 - x0, y1 - y0
        # Where the box is a fault, its area is not another one.
        area = max(width, 0.0) * max(height, 0.0)
        label = builder.class_map.names.index(o.name) + 1
        builder.add_object(
            annotation_id=o.line, box=(x0, y0, width, height), label=label, area=area, ignored=o.difficult
        )


class _Images:
    """The images of a folder, by their names without suffix."""

    def __init__(self, folders: Folders) -> None:
        self.folder = folders.root / folders.images
        self._names: dict[str, list[str]] = defaultdict(list)
        for name in files_below(self.folder, SUFFIXES):
            self._names[name.rpartition(".")[0]].append(name)

    def name(self, stem: str, file_name: str | None) -> str:
        """The image of an annotation; where it is missing, its name as VOC would have it.

        Raises:
            UserError: several, and its `<filename>` is none of them.
        """
        names = self._names[stem] if stem in self._names else [f"{stem}.jpg"]
        if len(names) > 1 and file_name not in names:
            raise UserError(
                f"{self.folder}: {' and '.join(names)} have one name; keep one of them, or say which in <filename>."
            )
        return names[0] if file_name is None or len(names) == 1 else file_name

    def size(self, name: str) -> Size:
        """Height and width of an image by its header; (0, 0) where it is missing.

        Raises:
            UserError: it cannot be read.
        """
        return image_size(self.folder / name) if (self.folder / name).is_file() else (0, 0)

    def not_listed(self, stems: Mapping[str, str]) -> list[Fault]:
        """Images that have no annotation."""
        names = [name for stem in sorted(self._names.keys() - stems.keys()) for name in self._names[stem]]
        return [Fault("image not listed", name, None, "an image without annotation; it is left out") for name in names]


def _read_annotation(path: Path) -> _Annotation:
    """Read an XML file; one that cannot be read is a fault."""
    try:
        root = _parsed(path.read_bytes())
        if root.tag != "annotation":
            raise ValueError(f"begins with <{root.tag}>, not with <annotation>")
    except (OSError, ValueError, LookupError, expat.ExpatError) as error:
        unreadable = Fault("annotations unreadable", "", None, f"{path}: {error}")
        return _Annotation(None, None, [], [unreadable], is_whole=False)
    objects: list[_Object] = []
    faults: list[Fault] = []
    for element in root.findall("object"):
        line = int(element.attrib[LINE])
        try:
            objects.append(_object(element, line))
        except ValueError as error:
            faults.append(Fault("unreadable object", "", line, f"{path.name}: {error}"))
    return _Annotation(root.findtext("filename"), _size(root), objects, faults)


def _parsed(content: bytes) -> Element:
    """The elements of an XML text, each with its line.

    Raises:
        ValueError, LookupError, expat.ExpatError: not XML, of an encoding that nobody knows, or with a DOCTYPE, which may declare
            entities that grow without bound or name other files.
    """
    builder, parser = TreeBuilder(), expat.ParserCreate()

    def refuse(*_: object) -> None:
        raise ValueError("has a DOCTYPE, which no annotation needs; remove it")

    def start(tag: str, attributes: dict[str, str]) -> None:
        builder.start(tag, {**attributes, LINE: str(parser.CurrentLineNumber)})

    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.Parse(content, True)
    return builder.close()


def _size(root: Element) -> Size | None:
    """Height and width as the file says; None where it does not, or has 0."""
    height, width = (root.findtext(f"size/{side}", "").strip() for side in ("height", "width"))
    if not (height.isdecimal() and width.isdecimal()) or not 0 < int(height) * int(width) < 2**31:
        return None
    return int(height), int(width)


def _object(element: Element, line: int) -> _Object:
    """An `<object>`.

    Raises:
        ValueError: it lacks something, or has what is no number.
    """
    name = _text(element, "name")
    xmin, ymin, xmax, ymax = (_number(element, f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax"))
    difficult = _text(element, "difficult") if element.find("difficult") is not None else "0"
    if not name or difficult not in ("0", "1"):
        raise ValueError(f"<difficult> is {difficult!r}; expected 0 or 1" if name else "<name> is empty")
    return _Object(line, name, (xmin, ymin, xmax, ymax), difficult == "1")


def _text(element: Element, tag: str) -> str:
    found = element.findtext(tag)
    if found is None:
        raise ValueError(f"<{element.tag}> lacks <{tag.replace('/', '><')}>")
    return found.strip()


def _number(element: Element, tag: str) -> float:
    text = _text(element, tag)
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"<{tag.replace('/', '><')}> is {text!r}; expected a number of pixels")
    return number
