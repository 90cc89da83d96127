"""What the files of a data set say, whatever their format: one flat index of arrays, no Python object per annotation."""

from __future__ import annotations

import dataclasses
import itertools
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from detlab.errors import UserError
from detlab.structures import RLE, ClassMap, IouType, Keypoints

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]
# What polygons are kept in: hundredths of a pixel, the precision of COCO's files, where these give every number back exactly.
HUNDREDTHS = np.int32


def offsets_of(lengths: Iterable[int]) -> Integers:
    """Where runs of such lengths begin in a row, int64 `[n + 1]`, the last one its end."""
    counts = np.fromiter(lengths, np.int64)
    return np.concatenate(([0], np.cumsum(counts)))


def gather_runs(offsets: Integers, chosen: Integers) -> tuple[Integers, Integers]:
    """The elements of some runs.

    Args:
        offsets: of all runs, `[n + 1]`.
        chosen: numbers of runs, in the order wanted.

    Returns:
        The places of their elements, and their new offsets.
    """
    lengths = np.diff(offsets)[chosen]
    new = offsets_of(lengths)
    places = np.arange(new[-1]) - np.repeat(new[:-1], lengths) + np.repeat(offsets[:-1][chosen], lengths)
    return places, new


class Strings(Sequence[str]):
    """Many short strings as one array of bytes: workers share it without copying, as they cannot do with `str`."""

    def __init__(self, strings: Iterable[str]) -> None:
        encoded = [string.encode("utf-8", "surrogateescape") for string in strings]
        self._bytes = np.frombuffer(b"".join(encoded), np.uint8)
        self._offsets = offsets_of(len(string) for string in encoded)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        i = range(len(self))[index]
        return self._bytes[self._offsets[i] : self._offsets[i + 1]].tobytes().decode("utf-8", "surrogateescape")

    def take(self, chosen: Integers) -> Strings:
        """Some of them, in the order given."""
        taken = Strings.__new__(Strings)
        places, taken._offsets = gather_runs(self._offsets, chosen)
        taken._bytes = self._bytes[places]
        return taken

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self._bytes.nbytes + self._offsets.nbytes


@dataclass(frozen=True)
class Segmentations:
    """The outlines of N objects: polygons, run lengths, or nothing.

    Object i has the polygons `polygons_of[i]` to `polygons_of[i + 1]`, polygon j the numbers x, y, x, y, ... from
    `coordinates_of[j]` to `coordinates_of[j + 1]`; or it has the compressed run lengths `counts` from `counts_of[i]` on.
    """

    polygons_of: Integers  # [N + 1]
    coordinates_of: Integers  # [polygons + 1]
    coordinates: NDArray[Any]  # float64 in pixels, or int32 in hundredths of them
    counts_of: Integers  # [N + 1]
    counts: NDArray[np.uint8]  # COCO's ASCII

    def __len__(self) -> int:
        return len(self.polygons_of) - 1

    @property
    def are_polygons(self) -> NDArray[np.bool_]:
        """Which objects have polygons, `[N]`."""
        return np.diff(self.polygons_of) > 0

    @property
    def are_runs(self) -> NDArray[np.bool_]:
        """Which objects have run lengths, `[N]`."""
        return np.diff(self.counts_of) > 0

    def polygons(self, i: int) -> list[Floats]:
        """The polygons of an object, each float64 x, y, x, y, ... in pixels, as the file has them."""
        numbers = range(self.polygons_of[i], self.polygons_of[i + 1])
        parts = [self.coordinates[self.coordinates_of[j] : self.coordinates_of[j + 1]] for j in numbers]
        return [part / 100 if part.dtype == HUNDREDTHS else part for part in parts]

    def in_coco(self, i: int, height: int, width: int) -> list[list[float]] | RLE | None:
        """COCO's `segmentation` of an object: polygons as lists, compressed run lengths, or None."""
        if self.counts_of[i] < self.counts_of[i + 1]:
            counts = self.counts[self.counts_of[i] : self.counts_of[i + 1]].tobytes().decode("ascii")
            return {"size": [height, width], "counts": counts}
        return [part.tolist() for part in self.polygons(i)] or None

    def encoded(self, i: int, height: int, width: int) -> RLE:
        """The pixels of an object as compressed run lengths; an object without an outline has none."""
        segmentation = self.in_coco(i, height, width)
        if isinstance(segmentation, dict):
            return segmentation
        parts: Any = coco_mask.frPyObjects(segmentation or [[0.0] * 6], height, width)  # type: ignore[arg-type]
        merged: Any = coco_mask.merge(parts)
        return {"size": [height, width], "counts": merged["counts"].decode("ascii")}

    def take(self, objects: Integers) -> Segmentations:
        """Those of some objects, in the order given."""
        polygons, polygons_of = gather_runs(self.polygons_of, objects)
        places, coordinates_of = gather_runs(self.coordinates_of, polygons)
        runs, counts_of = gather_runs(self.counts_of, objects)
        return Segmentations(polygons_of, coordinates_of, self.coordinates[places], counts_of, self.counts[runs])

    def of_at_least_three_points(self) -> Segmentations:
        """The same objects without the polygons that are shorter."""
        long = np.diff(self.coordinates_of) >= 6
        object_of = np.repeat(np.arange(len(self)), np.diff(self.polygons_of))
        places, coordinates_of = gather_runs(self.coordinates_of, np.flatnonzero(long))
        polygons_of = offsets_of(np.bincount(object_of[long], minlength=len(self)))
        return dataclasses.replace(
            self, polygons_of=polygons_of, coordinates_of=coordinates_of, coordinates=self.coordinates[places]
        )

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return sum(getattr(self, f.name).nbytes for f in dataclasses.fields(self))


class SegmentationsBuilder:
    """Takes the outlines of objects one by one."""

    def __init__(self) -> None:
        self._polygons, self._lengths, self._coordinates = array("q"), array("q"), array("d")
        self._runs, self._counts = array("q"), bytearray()

    def add_nothing(self) -> None:
        """An object without an outline."""
        self._polygons.append(0)
        self._runs.append(0)

    def add_polygons(self, polygons: Sequence[Sequence[float]]) -> None:
        """An object's polygons, x, y, x, y, ... in pixels.

        Raises:
            TypeError, OverflowError: not numbers; nothing is added then.
        """
        flat = array("d")
        for polygon in polygons:
            flat.extend(polygon)
        self._polygons.append(len(polygons))
        self._lengths.extend(map(len, polygons))
        self._coordinates.extend(flat)
        self._runs.append(0)

    def add_runs(self, counts: str | bytes) -> None:
        """An object's compressed run lengths."""
        encoded = counts.encode("ascii") if isinstance(counts, str) else counts
        self._polygons.append(0)
        self._runs.append(len(encoded))
        self._counts += encoded

    def build(self) -> Segmentations:
        """The arrays."""
        coordinates: NDArray[Any] = np.frombuffer(self._coordinates, np.float64) if self._coordinates else np.zeros(0)
        with np.errstate(invalid="ignore", over="ignore"):
            hundredths = np.rint(coordinates * 100)
            if bool((np.abs(hundredths) < 2**31).all() and (hundredths / 100 == coordinates).all()):
                coordinates = hundredths.astype(HUNDREDTHS)
        return Segmentations(
            offsets_of(self._polygons),
            offsets_of(self._lengths),
            coordinates,
            offsets_of(self._runs),
            np.frombuffer(bytes(self._counts), np.uint8),
        )


@dataclass(frozen=True)
class Index:
    """The images of one part and their objects: image i has the objects `offsets[i]` to `offsets[i + 1]`.

    Numbers are as the files have them; what may be learnt of them is `IndexedDataset`'s to say.
    """

    class_map: ClassMap
    file_names: Strings  # [M], as the file has them
    image_ids: Integers  # [M], the file's own, or from 1
    sizes: NDArray[np.int32]  # [M, 2], height and width in pixels
    offsets: Integers  # [M + 1]
    annotation_ids: Integers  # [N], as the file numbers them: its id, a line, a place in the list
    boxes: Floats  # [N, 4], x0, y0, width, height in pixels
    labels: Integers  # [N], 1..K
    areas: Floats  # [N], pixels
    crowd: NDArray[np.bool_]  # [N], regions that hold many objects
    ignored: NDArray[np.bool_]  # [N], objects that are neither learnt nor counted: VOC's `difficult`
    segmentations: Segmentations | None = None
    keypoints: Keypoints | None = None
    points: Floats | None = None  # [N, P, 3]: x, y, visibility

    def __post_init__(self) -> None:
        images, objects = len(self.file_names), int(self.offsets[-1])
        assert len(self.image_ids) == len(self.sizes) == len(self.offsets) - 1 == images
        for name in ("annotation_ids", "boxes", "labels", "areas", "crowd", "ignored"):
            assert len(getattr(self, name)) == objects, name
        assert (self.keypoints is None) == (self.points is None)

    def __len__(self) -> int:
        return len(self.file_names)

    @property
    def iou_types(self) -> tuple[IouType, ...]:
        """What the files hold."""
        have: tuple[tuple[IouType, bool], ...] = (
            ("bbox", True),
            ("segm", self.segmentations is not None),
            ("keypoints", self.points is not None),
        )
        return tuple(name for name, here in have if here)

    @property
    def image_of(self) -> Integers:
        """For each object the number of its image, `[N]`."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        values = [getattr(self, f.name) for f in dataclasses.fields(self)]
        return sum(value.nbytes for value in values if hasattr(value, "nbytes"))

    def boxes_xyxy(self) -> Floats:
        """The boxes by their corners, float64 `[N, 4]`."""
        with np.errstate(invalid="ignore"):  # -inf + inf, in a damaged file
            return np.concatenate((self.boxes[:, :2], self.boxes[:, :2] + self.boxes[:, 2:]), 1)

    def select(self, images: Sequence[int] | Integers) -> Index:
        """The index of some images, in the order given."""
        chosen = np.asarray(images, np.int64)
        objects, offsets = gather_runs(self.offsets, chosen)
        return dataclasses.replace(
            self,
            file_names=self.file_names.take(chosen),
            image_ids=self.image_ids[chosen],
            sizes=self.sizes[chosen],
            **self._objects(objects),
            offsets=offsets,
        )

    def keep(self, objects: NDArray[np.bool_]) -> Index:
        """The same images with only those objects where `objects` (`[N]`) is true."""
        counts = np.bincount(self.image_of[objects], minlength=len(self))
        return dataclasses.replace(self, **self._objects(np.flatnonzero(objects)), offsets=offsets_of(counts))

    def _objects(self, chosen: Integers) -> dict[str, Any]:
        """The fields of some objects."""
        names = ("annotation_ids", "boxes", "labels", "areas", "crowd", "ignored")
        return {
            **{name: getattr(self, name)[chosen] for name in names},
            "segmentations": None if self.segmentations is None else self.segmentations.take(chosen),
            "points": None if self.points is None else self.points[chosen],
        }

    def only(self, iou_types: Sequence[IouType]) -> Index:
        """The index without the outlines or points that are not wanted.

        Raises:
            UserError: something is wanted that the files do not hold.
        """
        lacking = [name for name in iou_types if name not in self.iou_types]
        if lacking:
            raise UserError(
                f"dataset.iou_types: {lacking[0]!r}, but the files hold only {', '.join(self.iou_types)}; null takes all."
            )
        index = self
        if "segm" not in iou_types:
            index = dataclasses.replace(index, segmentations=None)
        if "keypoints" not in iou_types:
            index = dataclasses.replace(index, points=None, keypoints=None)
        return index

    def of_classes(self, names: Sequence[str], *, lacking_allowed: bool) -> Index:
        """The same images with the objects of some classes, whose labels become 1..K in the order of `names`.

        Args:
            names: of the classes.
            lacking_allowed: whether a name may be none of the files' classes; it is given an id that they do not use.

        Raises:
            UserError: a class that the files do not have; with both lists.
        """
        have = self.class_map.names
        missing = [name for name in names if name not in have]
        if missing and not lacking_allowed:
            raise UserError(f"dataset.classes: no class {missing[0]!r}; the files have {', '.join(have)}.")
        unused = itertools.count(max(self.class_map.category_ids) + 1)
        id_of = dict(zip(have, self.class_map.category_ids, strict=True))
        ids = tuple(id_of[name] if name in id_of else next(unused) for name in names)
        class_map = ClassMap(tuple(names), ids)
        if class_map == self.class_map:
            return self
        label_of = np.zeros(len(have) + 1, np.int64)
        for label, name in enumerate(names, 1):
            if name in id_of:
                label_of[have.index(name) + 1] = label
        labels = label_of[self.labels]
        return dataclasses.replace(self, labels=labels, class_map=class_map).keep(labels > 0)


@dataclass
class IndexBuilder:
    """Takes images, each followed by its objects, and makes their index."""

    class_map: ClassMap
    keypoints: Keypoints | None = None
    has_outlines: bool = False
    _names: list[str] = field(default_factory=list)
    _image_ids: array[int] = field(default_factory=lambda: array("q"))
    _sizes: array[int] = field(default_factory=lambda: array("i"))
    _counts: array[int] = field(default_factory=lambda: array("q"))
    _annotation_ids: array[int] = field(default_factory=lambda: array("q"))
    _boxes: array[float] = field(default_factory=lambda: array("d"))
    _labels: array[int] = field(default_factory=lambda: array("q"))
    _areas: array[float] = field(default_factory=lambda: array("d"))
    _flags: bytearray = field(default_factory=bytearray)
    _outlines: SegmentationsBuilder = field(default_factory=SegmentationsBuilder)
    _points: array[float] = field(default_factory=lambda: array("d"))

    def add_image(self, name: str, image_id: int, height: int, width: int) -> None:
        """An image; the objects that follow are its."""
        self._names.append(name)
        self._image_ids.append(image_id)
        self._sizes.extend((height, width))
        self._counts.append(0)

    def add_object(
        self,
        *,
        annotation_id: int,
        box: Sequence[float],
        label: int,
        area: float,
        crowd: bool = False,
        ignored: bool = False,
        polygons: Sequence[Sequence[float]] = (),
        runs: str | bytes = b"",
        points: Sequence[float] | None = None,
    ) -> None:
        """An object of the last image.

        Args:
            annotation_id: as the file numbers it.
            box: x0, y0, width, height in pixels.
            label: 1..K.
            area: in pixels.
            crowd: whether it is a region of many objects.
            ignored: whether it is neither learnt nor counted.
            polygons: its outline, each polygon x, y, x, y, ...; or
            runs: its compressed run lengths, of its image's size.
            points: x, y, visibility, ... of its P keypoints; None where it has none.

        Raises:
            TypeError, OverflowError: no numbers; nothing is added then.
        """
        four, size, number = array("d", box), float(area), array("q", [annotation_id])
        triples = array("d")
        if self.keypoints is not None:
            triples.extend(points if points is not None else [0.0] * (3 * len(self.keypoints)))
        if polygons:
            self._outlines.add_polygons(polygons)
            self.has_outlines = True
        elif runs:
            self._outlines.add_runs(runs)
            self.has_outlines = True
        else:
            self._outlines.add_nothing()
        self._points.extend(triples)
        self._boxes.extend(four)
        self._areas.append(size)
        self._annotation_ids.extend(number)
        self._labels.append(label)
        self._flags.append(crowd + 2 * ignored)
        self._counts[-1] += 1

    def build(self) -> Index:
        """The index."""
        flags = np.frombuffer(bytes(self._flags), np.uint8)
        points = None
        if self.keypoints is not None:
            points = np.array(self._points, np.float64).reshape(-1, len(self.keypoints), 3)
        return Index(
            class_map=self.class_map,
            file_names=Strings(self._names),
            image_ids=np.array(self._image_ids, np.int64),
            sizes=np.array(self._sizes, np.int32).reshape(-1, 2),
            offsets=offsets_of(self._counts),
            annotation_ids=np.array(self._annotation_ids, np.int64),
            boxes=np.array(self._boxes, np.float64).reshape(-1, 4),
            labels=np.array(self._labels, np.int64),
            areas=np.array(self._areas, np.float64),
            crowd=(flags & 1) > 0,
            ignored=(flags & 2) > 0,
            segmentations=self._outlines.build() if self.has_outlines else None,
            keypoints=self.keypoints,
            points=points,
        )
