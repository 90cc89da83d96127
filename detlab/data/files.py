"""What is wrong with the image files of an index: missing, not what the annotations say, or the same picture twice."""

from __future__ import annotations

import functools
import hashlib
import os
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image
from torch import Tensor

from detlab.data.faults import Fault
from detlab.data.folders import read_all
from detlab.data.images import UNREADABLE, image_size, read_image
from detlab.data.index import Index, Integers
from detlab.errors import UserError


def missing_images(index: Index, folder: Path) -> Integers:
    """The numbers of the images whose file is not there, by listing each folder once."""
    by_folder: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for i, name in enumerate(index.file_names):
        path = PurePosixPath(name)
        by_folder[str(path.parent)].append((path.name, i))
    missing: list[int] = []
    for parent, names in by_folder.items():
        place = folder / parent
        present = set(os.listdir(place)) if place.is_dir() else set()
        missing += [i for name, i in names if name not in present]
    return np.array(sorted(missing), np.int64)


def unreadable_images(index: Index, folder: Path, *, besides: Integers) -> Integers:
    """The numbers of the images whose file cannot be decoded, or has another size than the index says; decodes them all."""

    def fits(i: int) -> bool:
        try:
            image = read_image(folder / index.file_names[i])
        except UserError:
            return False
        return list(image.shape[1:]) == index.sizes[i].tolist()

    asked = np.setdiff1d(np.arange(len(index)), besides).tolist()
    with _warnings_ignored():
        fit = list(read_all(fits, asked, "decoding images"))
    return np.array([i for i, good in zip(asked, fit, strict=True) if not good], np.int64)


def _warnings_ignored() -> warnings.catch_warnings:
    """Of the files' oddities. Around all threads: within them what is ignored would be set and reset out of turn."""
    return warnings.catch_warnings(action="ignore")


@dataclass(frozen=True)
class Look:
    """What one image is.

    Args:
        part: of the data set.
        image: its name.
        faults: what is wrong with it.
        digest: the same for the same picture; None where it could not be looked at.
    """

    part: str
    image: str
    faults: tuple[Fault, ...]
    digest: bytes | None


def look_at_files(parts: Mapping[str, tuple[Index, Path]], *, decode: bool) -> list[Look]:
    """Look at every image file, in threads.

    Args:
        parts: of each its index, and the folder that the file names are relative to.
        decode: whether to decode the pixels; else the headers are read, and of files of one length the bytes.
    """
    items = [(part, folder, index, i) for part, (index, folder) in parts.items() for i in range(len(index))]
    missing = {part: set(missing_images(index, folder).tolist()) for part, (index, folder) in parts.items()}
    lengths = Counter() if decode else Counter(_length(folder / index.file_names[i]) for _, folder, index, i in items)

    def look(item: tuple[str, Path, Index, int]) -> Look:
        part, folder, index, i = item
        name = index.file_names[i]
        if i in missing[part]:
            return Look(part, name, (Fault("image missing", name, None, f"no file {folder / name}"),), None)
        read = _decoded if decode else functools.partial(_header, twins=lengths)
        try:
            size, digest = read(folder / name)
        except UserError as error:
            said = str(error).removeprefix(f"{folder / name}: ").removesuffix(".")
            return Look(part, name, (Fault("image unreadable", name, None, said),), None)
        return Look(part, name, tuple(_size_faults(folder / name, name, size, index.sizes[i].tolist())), digest)

    with _warnings_ignored():
        return list(read_all(look, items, "looking at images"))


def _length(path: Path) -> int:
    """The bytes of a file; 0 where there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _refuse_empty(path: Path) -> None:
    if path.is_file() and not _length(path):
        raise UserError(f"{path}: an empty file, of 0 bytes.")


def _decoded(path: Path) -> tuple[tuple[int, int], bytes]:
    """Height and width of an image as it is seen, and the digest of its pixels."""
    _refuse_empty(path)
    image = read_image(path)
    return (image.shape[1], image.shape[2]), picture_digest(image)


def picture_digest(image: Tensor) -> bytes:
    """The same for images of the same pixels, uint8 `[3, H, W]`."""
    return hashlib.sha256(repr(tuple(image.shape)).encode() + image.contiguous().numpy().tobytes()).digest()


def _header(path: Path, twins: Counter[int]) -> tuple[tuple[int, int], bytes | None]:
    """The same from a file's header, with the digest of its bytes where others are as long."""
    _refuse_empty(path)
    size = image_size(path)
    return size, hashlib.sha256(path.read_bytes()).digest() if twins[_length(path)] > 1 else None


def _size_faults(path: Path, name: str, size: tuple[int, int], said: list[int]) -> Iterator[Fault]:
    """What is wrong with the size of an image, height and width as it is seen, beside what its annotations say."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and size[0] * size[1] > limit:
        yield Fault("image very large", name, None, f"{size[0]} x {size[1]} pixels (height x width)")
    if list(size) == said or 0 in said:
        return
    words = (
        f"{size[0]} x {size[1]} pixels (height x width, upright by EXIF), but the annotations say {said[0]} x {said[1]}"
    )
    turned = _stored_size(path) == said
    yield Fault("image turned" if turned else "image of another size", name, None, words)


def _stored_size(path: Path) -> list[int] | None:
    """Height and width of an image as it lies in its file, before EXIF's orientation turns it."""
    try:
        with Image.open(path) as image:
            return [image.height, image.width]
    except UNREADABLE:
        return None


def same_images(looks: Iterable[Look]) -> Iterator[tuple[str, Fault]]:
    """The images that have the pixels, or the bytes, of one before them; with their part."""
    first: dict[bytes, Look] = {}
    for look in looks:
        if look.digest is None:
            continue
        other = first.setdefault(look.digest, look)
        if other is not look:
            kind = "image twice" if other.part == look.part else "image in two parts"
            yield look.part, Fault(kind, look.image, None, f"the same picture as {other.image} in {other.part}")
