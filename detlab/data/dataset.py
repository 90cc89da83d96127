"""A data set of image files and an index: what all formats have in common."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision import tv_tensors

from detlab import distributed
from detlab.data.cache import ImageCache
from detlab.data.faults import Reading
from detlab.data.files import missing_images, unreadable_images
from detlab.data.images import read_image
from detlab.data.index import Index, Integers
from detlab.data.invalid import KEEP, settle
from detlab.data.keypoints import coco_categories
from detlab.data.split import check_part, split_from_file, stratified_order, stretch
from detlab.errors import UserError
from detlab.masks import decode
from detlab.structures import ClassMap, IouType, Keypoints, Sample, Target

log = logging.getLogger(__name__)


class IndexedDataset:
    """Image files with the objects that an index says; a `DetectionDataset`.

    Args:
        index: of the part.
        folder: that the index' file names are relative to.
        name: of the data, for the ground truth's `info`.
        cache: of decoded images.
    """

    def __init__(self, index: Index, folder: Path, *, name: str, cache: ImageCache) -> None:
        self.index = index
        self.folder = folder
        self.name = name
        self.class_map: ClassMap = index.class_map
        self.iou_types: tuple[IouType, ...] = index.iou_types
        self.keypoints: Keypoints | None = index.keypoints
        self.image_names: Sequence[str] = index.file_names
        self._cache = cache

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: int) -> Sample:
        """The image as it is seen, and its objects, boxes cut at its border.

        Raises:
            UserError: a file that is missing, cannot be decoded, or has not the size that the annotations say.
        """
        index = range(len(self))[index]
        path = self.folder / self.image_names[index]
        size = self.get_height_and_width(index)
        image = self._cache.image(index, path, read_image)
        if image.shape[1:] != size:
            height, width = image.shape[1:]
            raise UserError(
                f"{path}: {height} x {width} pixels (height x width, upright by EXIF), but the annotations say {size[0]} x "
                f"{size[1]}; correct the file or its annotations (detlab validate lists all)."
            )
        return tv_tensors.Image(image), self._target(index, *size)

    def _target(self, i: int, height: int, width: int) -> Target:
        index = self.index
        objects = slice(int(index.offsets[i]), int(index.offsets[i + 1]))
        xywh = torch.from_numpy(index.boxes[objects])
        boxes = torch.cat((xywh[:, :2], xywh[:, :2] + xywh[:, 2:]), 1).clamp(min=0).float()
        boxes = boxes.minimum(torch.tensor([width, height, width, height], dtype=torch.float32))
        target: Target = {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width)),  # pyright: ignore
            "labels": torch.from_numpy(index.labels[objects].copy()),
            "image_id": int(index.image_ids[i]),
            "area": torch.from_numpy(index.areas[objects]).float(),
            "iscrowd": torch.from_numpy(index.crowd[objects].astype(np.uint8)),
        }
        if index.ignored.any():
            target["ignored"] = torch.from_numpy(index.ignored[objects].copy())
        if index.segmentations is not None:
            outlines = index.segmentations
            rles = [outlines.encoded(j, height, width) for j in range(objects.start, objects.stop)]
            target["masks"] = tv_tensors.Mask(decode(rles, height, width))
        if index.points is not None:
            points = torch.from_numpy(index.points[objects]).float()
            points[..., 0].clamp_(0, width)
            points[..., 1].clamp_(0, height)
            target["keypoints"] = points * (points[..., 2:] > 0)
        return target

    def get_height_and_width(self, index: int) -> tuple[int, int]:
        """Height and width of an image in pixels, as it is seen."""
        height, width = self.index.sizes[index].tolist()
        return height, width

    def ground_truth(self) -> dict[str, Any]:
        """COCO dict of this part, from the index alone; `ignored` objects are crowd regions there, which count for nothing."""
        index = self.index
        sizes = index.sizes.tolist()
        images = [
            {"id": image_id, "file_name": name, "height": height, "width": width}
            for name, image_id, (height, width) in zip(index.file_names, index.image_ids.tolist(), sizes, strict=True)
        ]
        annotations = [
            {"id": i + 1, **self._annotation(i, image, *sizes[image])}
            for i, image in enumerate(index.image_of.tolist())
        ]
        categories = coco_categories(index.class_map, index.keypoints)
        info = {"description": self.name}
        return {"info": info, "images": images, "annotations": annotations, "categories": categories}

    def _annotation(self, i: int, image: int, height: int, width: int) -> dict[str, Any]:
        """COCO's annotation of an object, less its id."""
        index = self.index
        row: dict[str, Any] = {
            "image_id": int(index.image_ids[image]),
            "category_id": index.class_map.category_id(int(index.labels[i])),
            "bbox": index.boxes[i].tolist(),
            "area": float(index.areas[i]),
            "iscrowd": int(index.crowd[i] | index.ignored[i]),
        }
        if index.segmentations is not None:
            row["segmentation"] = index.segmentations.in_coco(i, height, width)
        if index.points is not None:
            row["keypoints"] = index.points[i].ravel().tolist()
            row["num_keypoints"] = int((index.points[i, :, 2] > 0).sum())
        return row


@dataclass(frozen=True)
class Choice:
    """What of a format's files a run takes; the keys that all formats share.

    Args:
        part: `train`, `val` or `test`.
        classes: names, in the order of their labels; None takes all.
        iou_types: what of an object is taken; None takes all.
        invalid: `error`, `drop` or `clip`: what becomes of objects that break the contract; see `detlab.data.invalid`. `drop` and
            `clip` also leave out images that cannot be read, for which every file is decoded once.
        val_size: images for validation, a number or a fraction, where the files have no such part.
        test_size: the same for the test.
        split_seed: of these splits, which are stratified by class.
        split_file: JSON with "train", "val" and perhaps "test", lists of file names, in place of them.
        folds: equal parts of the training files, of which
        fold: is for validation, the others for training; both or neither.
        fraction: of the images for training, above 0, up to 1; smaller subsets are contained in larger ones.
        cache: of decoded images: `none`, `ram` or `disk`.
    """

    part: str
    classes: Sequence[str] | None
    iou_types: Sequence[IouType] | None
    invalid: str
    val_size: float
    test_size: float
    split_seed: int
    split_file: str | None
    folds: int | None
    fold: int | None
    fraction: float
    cache: str


Read = Callable[[], Reading]
Split = Callable[[Sequence[str]], list[int]]
_KEPT: dict[str, Reading] | None = None
_SETTLED: dict[str, Index] = {}


@contextmanager
def readings_kept() -> Iterator[dict[str, Reading]]:
    """Within, files that several parts are made of are read, and their faults dealt with, once.

    Gives what was read, by what it was read from and the part. Another one within is the same.
    """
    global _KEPT
    outer = _KEPT
    _KEPT = {} if outer is None else outer
    try:
        yield _KEPT
    finally:
        _KEPT = outer
        if outer is None:
            _SETTLED.clear()


def _reading(part: str, files: Mapping[str, Read], key: str) -> Reading:
    if _KEPT is None:
        return files[part]()
    if f"{key} {part}" not in _KEPT:
        _KEPT[f"{key} {part}"] = files[part]()
    return _KEPT[f"{key} {part}"]


def assemble(
    files: Mapping[str, Read], choice: Choice, *, name: str, key: str, split: Split | None = None
) -> IndexedDataset:
    """The data set of a part, from what reads its files.

    A part with files of its own is theirs; another is split from those for training. `folds` and `split_file` go before
    the files for validation.

    Args:
        files: readers of the parts `train`, and where they have files of their own, `val` and `test`.
        choice: what is taken.
        name: of the data, for the ground truth's `info`.
        key: what tells these files from others, for `readings_kept`.
        split: the numbers of the part's images among all names, in place of the split that is stratified by class.

    Raises:
        UserError: files that cannot be read, faults in them, classes or parts that they do not have.
    """
    check_part(choice.part)
    own = choice.part if choice.part in files else "train"
    if choice.split_file is not None or (choice.folds is not None and choice.part != "test"):
        own = "train"
    reading = _reading(own, files, key)
    names = choice.classes
    if names is None:
        training = reading if own == "train" else _reading("train", files, key)
        names = training.index.class_map.names
        strange = sorted(set(reading.index.class_map.names) - set(names))
        if strange:
            raise UserError(
                f"{reading.source}: class {strange[0]!r} is none of the training files' {', '.join(names)}; name the classes to "
                "take in dataset.classes."
            )
    kept = f"{key} {own} {names} {choice.iou_types} {choice.invalid}"
    index = _SETTLED[kept] if kept in _SETTLED else _settled(reading, names, choice, lacking_allowed=own != "train")
    if _KEPT is not None:
        _SETTLED[kept] = index
    index = index.select(_chosen(index, choice, files, split, whole=own != "train"))
    return IndexedDataset(index, reading.folder, name=name, cache=ImageCache.of(choice.cache, index))


def _settled(reading: Reading, names: Sequence[str], choice: Choice, *, lacking_allowed: bool) -> Index:
    """What was read, less what is not taken or cannot be learnt from, in the order of the images' names."""
    # First what is taken: what is not cannot be faulty.
    index = reading.index.of_classes(names, lacking_allowed=lacking_allowed)
    if choice.iou_types is not None:
        index = index.only(choice.iou_types)
    index = settle(dataclasses.replace(reading, index=index), choice.invalid)
    index = index.select(np.argsort(np.array(index.file_names[:], dtype=object), kind="stable"))
    return _readable(index, reading, choice.invalid)


def _readable(index: Index, reading: Reading, invalid: str) -> Index:
    """The index without the images whose files are missing or, where faults are dropped, cannot be decoded.

    Raises:
        UserError: a file is missing, where faults are refused.
    """
    missing = missing_images(index, reading.folder)
    if len(missing) and invalid == "error":
        first = reading.folder / index.file_names[int(missing[0])]
        raise UserError(
            f"{first}: {len(missing)} of {len(index)} image file(s) that {reading.source} lists are missing, this is the first; "
            "correct the folder, or leave them out with dataset.invalid=drop."
        )
    if invalid in ("error", KEEP):
        return index
    # By the first process for all: each image is decoded once, and all of them see the same.
    unreadable = distributed.from_first(lambda: unreadable_images(index, reading.folder, besides=missing))
    bad = np.union1d(missing, unreadable)
    if len(bad) and distributed.first():
        log.warning(
            "%s: %d image(s) left out that are missing, unreadable or of another size, the first: %s",
            reading.source,
            len(bad),
            index.file_names[int(bad[0])],
        )
    return index.select(np.setdiff1d(np.arange(len(index)), bad))


def _chosen(
    index: Index, choice: Choice, files: Mapping[str, Read], split: Split | None, *, whole: bool
) -> list[int] | Integers:
    """The images of a part, in the order of their names, where neither a split file nor `split` has another."""
    names = index.file_names[:]
    if choice.split_file is not None:
        return split_from_file(Path(choice.split_file).expanduser(), names, choice.part)
    if whole:
        return np.arange(len(index))
    if split is not None and choice.folds is None:
        return split(names)
    order = stratified_order(names, rarest_classes(index), choice.split_seed)
    val_size = 0 if "val" in files and choice.folds is None else choice.val_size
    test_size = 0 if "test" in files else choice.test_size
    sizes = {"val_size": val_size, "test_size": test_size, "folds": choice.folds, "fold": choice.fold}
    return sorted(stretch(order, choice.part, choice.fraction, **sizes))


def rarest_classes(index: Index) -> list[int]:
    """For each image the label of its objects that the fewest images have, 0 where it has none: its stratum."""
    images, labels = index.image_of, index.labels
    pairs = np.unique(np.stack((images, labels), 1), axis=0)
    frequency = np.bincount(pairs[:, 1], minlength=len(index.class_map) + 1)
    rarest = np.zeros(len(index), np.int64)
    # The last of several assignments holds: the rarest class comes last.
    for image, label in pairs[np.argsort(-frequency[pairs[:, 1]], kind="stable")].tolist():
        rarest[image] = label
    return rarest.tolist()
