"""What does somebody's COCO file hold, and where are the images that it lists?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from detlab.commands.score import read_json
from detlab.errors import UserError
from detlab.untrusted import leads_out

if TYPE_CHECKING:
    from detlab.data.faults import Reading
    from detlab.structures import IouType

_FORM = "a COCO file is an object with the lists images, annotations and categories"


@dataclass(frozen=True)
class Annotated:
    """A COCO file and its images.

    Args:
        file: the JSON file, absolute.
        images: the folder that its file names are relative to, absolute.
        classes: names, in the order of their ids.
        count: of images.
        objects: of annotations that can be read.
        faults: how many things are wrong with it, as far as the file alone tells.
        iou_types: what its objects can be learnt from and scored on.
        shorter_side: of the images, the median, in pixels.
        longest_side: of all images, in pixels.
    """

    file: Path
    images: Path
    classes: tuple[str, ...]
    count: int
    objects: int
    faults: int
    iou_types: tuple[IouType, ...]
    shorter_side: int
    longest_side: int

    @property
    def root(self) -> Path:
        """The nearest folder above both."""
        folder = self.file.parent
        while not self.images.is_relative_to(folder):
            folder = folder.parent
        return folder


def look_at(file: Path, images: Path | None) -> Annotated:
    """Read a COCO file and find its images.

    Args:
        file: JSON.
        images: their folder; None searches beside the file.

    Raises:
        UserError: a file that cannot be read or is not of the form, no images, or images that are not there.
    """
    content = read_json(file, dict, _FORM)
    lists = [key for key in ("images", "annotations", "categories") if not isinstance(content.get(key), list)]
    if lists:
        raise UserError(f"{file}: lacks the list {lists[0]}; {_FORM}.")
    names = [row.get("file_name") if isinstance(row, dict) else None for row in content["images"]]
    for number, name in enumerate(names):
        if not isinstance(name, str) or not name or leads_out(name):
            raise UserError(f"{file}: images[{number}]: file_name {name!r} is no name of a file below a folder.")
    if len(names) < 2:
        raise UserError(f"{file}: lists {len(names)} image(s); two at least are needed, to train on and to validate.")
    file, folder = file.resolve(), _folder_of(file.resolve(), images, [str(name) for name in names])
    from detlab.data.coco import read_coco

    return _summary(file, folder, read_coco(file, folder, None))


def _summary(file: Path, folder: Path, reading: Reading) -> Annotated:
    import numpy as np

    index = reading.index
    return Annotated(
        file=file,
        images=folder,
        classes=index.class_map.names,
        count=len(index),
        objects=len(index.labels),
        faults=len(reading.faults),
        iou_types=index.iou_types,
        shorter_side=int(np.median(index.sizes.min(1))),
        longest_side=int(index.sizes.max()),
    )


def _folder_of(file: Path, given: Path | None, names: Sequence[str]) -> Path:
    """The folder that holds all images.

    Raises:
        UserError: none does.
    """
    tried = [given.expanduser().resolve()] if given is not None else list(dict.fromkeys(_likely_folders(file)))
    if not tried[0].is_dir():
        raise UserError(
            f"--images: {tried[0]} is no folder; name the one that the file names in {file} are relative to."
        )
    lacking = {folder: [name for name in names if not (folder / name).is_file()] for folder in tried}
    best = min(lacking, key=lambda folder: len(lacking[folder]))
    absent = lacking[best]
    if len(absent) == len(names) and given is None:
        looked = ", ".join(map(str, tried[:6])) + (" ..." if len(tried) > 6 else "")
        raise UserError(
            f"{file}: its images ({names[0]} ...) were not found in {looked}.\nName their folder: --images DIR"
        )
    if absent:
        raise UserError(
            f"{best}: lacks {len(absent)} of the {len(names)} images in {file}, the first is {absent[0]}.\n"
            "Put them there, take them out of the file, or name another folder: --images DIR"
        )
    return best


def _likely_folders(file: Path) -> Iterator[Path]:
    """The file's own folder, those beside it, and those beside its folder, as in COCO's `annotations/` and `train2017/`."""
    for folder in (file.parent, file.parent.parent):
        yield folder
        yield from sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
