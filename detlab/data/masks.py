"""Images and instance-id masks: one mask file an image, in which each value above 0 is one object."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, cast

import numpy as np
from pycocotools import mask as coco_mask

from detlab.data.dataset import Choice, IndexedDataset, assemble
from detlab.data.faults import Fault, Reading
from detlab.data.folders import SUFFIXES, files_below, read_all
from detlab.data.images import image_size, read_instances
from detlab.data.index import IndexBuilder
from detlab.errors import UserError
from detlab.structures import ClassMap, IouType

Size = tuple[int, int]


def masks(
    *,
    part: str,
    root: str,
    images: str,
    masks: str,
    image_suffix: str,
    mask_suffix: str,
    classes: Sequence[str],
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
    """Images `NAME<image_suffix>.*` and their masks `NAME<mask_suffix>.*`, in two folders or in one.

    A mask has one channel of 1, 8, 16 or 32 bits, or a palette. The masks are read once, at the start; the images when asked for.

    Args:
        part: `train`, `val` or `test`.
        root: the folder that the other two are relative to.
        images: folder of the images, and of folders of them.
        masks: folder of the masks; may be the same.
        image_suffix: what ends an image's name, before its `.png` or the like.
        mask_suffix: the same of a mask's.
        classes: one name, of what all objects are.

    The rest: see `detlab.data.dataset.Choice`.

    Raises:
        UserError: folders that are missing or empty, files of other names, another number of classes than one; what is wrong with
            a single file is a fault, see `read_masks` and `assemble`.
    """
    if len(classes) != 1:
        raise UserError(
            f"dataset.classes: {list(classes)}; masks tell objects, not classes: give one name, such as [object]."
        )
    folder = Path(root).expanduser()
    layout = (images, masks, image_suffix, mask_suffix, classes[0])
    choice = Choice(
        part, None, iou_types, invalid, val_size, test_size, split_seed, split_file, folds, fold, fraction, cache
    )
    read = functools.partial(read_masks, folder, *layout)
    return assemble({"train": read}, choice, name=folder.name, key=f"masks {folder} {layout}")


def read_masks(root: Path, images: str, masks: str, image_suffix: str, mask_suffix: str, class_name: str) -> Reading:
    """Read the masks of a folder of images; ids of images are from 1, in the order of their names.

    An image whose mask is missing, unreadable or of another size is a `Fault`, and is not in the index; so is a mask without image.

    Args:
        root: the folder that the other two are relative to.
        images: folder of the images.
        masks: folder of the masks.
        image_suffix: what ends an image's name, before its `.png` or the like.
        mask_suffix: the same of a mask's.
        class_name: of all objects.

    Raises:
        UserError: a folder that is missing or holds no image; files that are not called so.
    """
    image_of, mask_of = _pairs(root, images, masks, image_suffix, mask_suffix)
    faults: list[Fault] = []
    for stem in sorted(mask_of.keys() - image_of.keys()):
        said = f"a mask without its image {images}/{stem}{image_suffix}.*"
        faults.append(Fault("unknown image", f"{masks}/{mask_of[stem]}", None, said))
    stems = sorted(image_of, key=image_of.__getitem__)

    def read(stem: str) -> tuple[Size, list[bytes]] | Fault:
        name = image_of[stem]
        if stem not in mask_of:
            said = f"an image without its mask {masks}/{stem}{mask_suffix}.*"
            return Fault("annotations missing", name, None, said)
        return _read_pair(name, root / images / name, root / masks / mask_of[stem])

    builder = IndexBuilder(ClassMap((class_name,)), has_outlines=True)
    for image_id, (stem, found) in enumerate(zip(stems, read_all(read, stems, "reading masks"), strict=True), 1):
        if isinstance(found, Fault):
            faults.append(found)
            continue
        size, runs = found
        builder.add_image(image_of[stem], image_id, *size)
        for number, (box, area, counts) in enumerate(zip(*_extents(runs, size), runs, strict=True), 1):
            builder.add_object(annotation_id=number, box=box, label=1, area=area, runs=counts)
    return Reading(builder.build(), root / images, faults, root / masks)


def _pairs(
    root: Path, images: str, masks: str, image_suffix: str, mask_suffix: str
) -> tuple[dict[str, str], dict[str, str]]:
    """The names of the images and those of the masks, by what they share.

    Raises:
        UserError: see `read_masks`.
    """
    image_names, mask_names = _names(root, images, masks), _names(root, masks, images)
    if root / images == root / masks:
        mask_names = [name for name in mask_names if PurePosixPath(name).stem.endswith(mask_suffix)]
    # The folder of the masks may be that of the images, or lie in it.
    taken = {root / masks / name for name in mask_names}
    image_names = [name for name in image_names if root / images / name not in taken]
    return _by_stem(root, images, image_names, image_suffix), _by_stem(root, masks, mask_names, mask_suffix)


def _names(root: Path, folder: str, other: str) -> list[str]:
    """The image files of one of the two folders."""
    path = root / folder
    names = files_below(path, SUFFIXES)
    if not names:
        state = "holds no image" if path.is_dir() else "is no folder"
        raise UserError(
            f"dataset.root={root}: {path} {state}; give the folder that has {' and '.join(sorted({f'{folder}/', f'{other}/'}))}."
        )
    return names


def _by_stem(root: Path, folder: str, names: Sequence[str], suffix: str) -> dict[str, str]:
    """The names by what image and mask share of them.

    Raises:
        UserError: a name that has not the suffix, or two that share it all.
    """
    found: dict[str, str] = {}
    for name in names:
        path = PurePosixPath(name)
        if not path.stem.endswith(suffix):
            raise UserError(
                f"{root / folder / name}: not called NAME{suffix}{path.suffix}, as the files of {folder}/ are."
            )
        stem = name.removesuffix(suffix + path.suffix)
        if stem in found:
            raise UserError(f"{root / folder / name}: {found[stem]} has the same name beside it; keep one of them.")
        found[stem] = name
    return found


def _read_pair(name: str, image: Path, mask: Path) -> tuple[Size, list[bytes]] | Fault:
    """Height and width of an image, and the run lengths of its objects."""
    try:
        size = image_size(image)
    except UserError as error:
        return Fault("image unreadable", name, None, str(error).removeprefix(f"{image}: "))
    try:
        ids = read_instances(mask)
    except UserError as error:
        return Fault("annotations unreadable", name, None, str(error))
    if ids.shape != size:
        said = f"{mask}: {ids.shape[0]} x {ids.shape[1]} pixels, but its image has {size[0]} x {size[1]}"
        return Fault("annotations unreadable", name, None, said)
    return size, instance_runs(ids)


def instance_runs(ids: np.ndarray) -> list[bytes]:
    """The objects of a mask as compressed run lengths, what `detlab.masks.encode` makes of each, without a mask for each.

    Args:
        ids: integer `[H, W]`, of each pixel the number of its object; 0 for none.

    Returns:
        COCO's `counts` of each object, in the order of their numbers.
    """
    height, width = ids.shape
    columns = ids.T.ravel()
    begins = np.concatenate(([0], np.flatnonzero(columns[1:] != columns[:-1]) + 1))
    lengths = np.diff(begins, append=columns.size)
    order = np.argsort(columns[begins], kind="stable")
    objects, firsts = np.unique(columns[begins][order], return_index=True)
    rows: list[dict[str, Any]] = []
    for number, runs in zip(objects.tolist(), np.split(order, firsts[1:]), strict=True):
        if number == 0:
            continue
        ends = begins[runs] + lengths[runs]
        gaps = begins[runs] - np.concatenate(([0], ends[:-1]))
        counts = [*np.stack((gaps, lengths[runs]), 1).ravel().tolist(), columns.size - int(ends[-1])]
        rows.append({"size": [height, width], "counts": counts if counts[-1] else counts[:-1]})
    encoded = cast("list[dict[str, Any]]", coco_mask.frPyObjects(rows, height, width)) if rows else []  # type: ignore[arg-type]
    return [row["counts"] for row in encoded]


def _extents(runs: Sequence[bytes], size: Size) -> tuple[list[list[float]], list[float]]:
    """The enclosing boxes, x0, y0, width, height, and the areas of objects, in pixels."""
    if not runs:
        return [], []
    rles: Any = [{"size": list(size), "counts": counts} for counts in runs]
    boxes: Any = coco_mask.toBbox(rles)
    areas: Any = coco_mask.area(rles)
    return boxes.tolist(), areas.tolist()
