"""The same objects written in all four formats, from the formats' own descriptions, are the same data set."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from detlab.config import CONF, build
from detlab.data.dataset import IndexedDataset
from detlab.data.loader import EvaluationSamples
from detlab.evaluation.coco import CocoEvaluator
from detlab.structures import Prediction, check_sample

FORMATS = ("coco", "yolo", "voc", "masks")
# In the order of YOLO's numbers; VOC sorts them, and COCO's ids have gaps.
NAMES = ("person", "dog", "bird")
COCO_IDS = {"person": 18, "dog": 3, "bird": 90}
CELL = 24


class Thing(NamedTuple):
    """An object: its class, its extent in whole pixels, and the size of the corner cut out of it, which makes it an L."""

    name: str
    box: tuple[int, int, int, int]  # x0, y0, x1, y1
    notch: int

    @property
    def polygon(self) -> list[int]:
        x0, y0, x1, y1 = self.box
        if not self.notch:
            return [x0, y0, x1, y0, x1, y1, x0, y1]
        x, y = x1 - self.notch, y0 + self.notch
        return [x0, y0, x, y0, x, y, x1, y, x1, y1, x0, y1]

    def mask(self, height: int, width: int) -> np.ndarray:
        x0, y0, x1, y1 = self.box
        pixels = np.zeros((height, width), np.uint8)
        pixels[y0:y1, x0:x1] = 1
        pixels[y0 : y0 + self.notch, x1 - self.notch : x1] = 0
        return pixels


class Picture(NamedTuple):
    stem: str
    height: int
    width: int
    things: list[Thing]


def pictures(names: Sequence[str]) -> list[Picture]:
    """Thirty objects that do not overlap on nine images, one of which is empty."""
    dice = random.Random(5)
    made = []
    for i, count in enumerate((6, 1, 4, 0, 3, 6, 2, 5, 3)):
        rows, columns = (2, 3) if i % 2 else (3, 2)
        cells = [(x * CELL, y * CELL) for x in range(columns) for y in range(rows)]
        things = []
        for x, y in dice.sample(cells, count):
            width, height = dice.randint(6, CELL), dice.randint(6, CELL)
            x0, y0 = x + dice.randint(0, CELL - width), y + dice.randint(0, CELL - height)
            things.append(Thing(dice.choice(names), (x0, y0, x0 + width, y0 + height), dice.choice((0, 3))))
        made.append(Picture(f"p{(7 * i) % 9}", rows * CELL + i, columns * CELL + 2 * i, things))
    assert sum(len(p.things) for p in made) == 30
    return made


def write_images(folder: Path, made: Sequence[Picture]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for picture in made:
        noise = np.random.default_rng(len(picture.things)).integers(
            0, 255, (picture.height, picture.width, 3), np.uint8
        )
        Image.fromarray(noise).save(folder / f"{picture.stem}.png")


def write_coco(root: Path, made: Sequence[Picture]) -> None:
    """https://cocodataset.org/#format-data: ids with gaps, everything in another order than by id."""
    write_images(root / "all", made)
    images = [
        {"id": 1000 - 7 * i, "file_name": f"{p.stem}.png", "height": p.height, "width": p.width}
        for i, p in enumerate(made)
    ]
    annotations = [
        {
            "id": 5 * len(p.things) + 100 * i + j,
            "image_id": 1000 - 7 * i,
            "category_id": COCO_IDS[thing.name],
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "segmentation": [thing.polygon],
            "area": int(thing.mask(p.height, p.width).sum()),
            "iscrowd": 0,
        }
        for i, p in enumerate(made)
        for j, thing in enumerate(p.things)
        for x0, y0, x1, y1 in [thing.box]
    ]
    used = {thing.name for p in made for thing in p.things}
    categories = [{"id": COCO_IDS[name], "name": name} for name in NAMES if name in used]
    random.Random(0).shuffle(annotations)
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "all.json").write_text(json.dumps(content))


def write_yolo(root: Path, made: Sequence[Picture]) -> None:
    """https://docs.ultralytics.com/datasets/segment: a class from 0 and a polygon, normalised; no file for the empty image."""
    write_images(root / "images" / "all", made)
    labels = root / "labels" / "all"
    labels.mkdir(parents=True)
    used = [name for name in NAMES if any(thing.name == name for p in made for thing in p.things)]
    for p in made:
        lines = []
        for thing in p.things:
            numbers = [v / (p.height if k % 2 else p.width) for k, v in enumerate(thing.polygon)]
            lines.append(" ".join([str(used.index(thing.name)), *map(repr, numbers)]))
        if lines:
            (labels / f"{p.stem}.txt").write_text("\n".join(lines) + "\n")
    names = "\n".join(f"  {i}: {name}" for i, name in enumerate(used))
    (root / "data.yaml").write_text(f"path: .\ntrain: images/all\nval:\nnames:\n{names}\n")


def write_voc(root: Path, made: Sequence[Picture]) -> None:
    """The development kit's documentation: pixels from 1, the last one in the box."""
    write_images(root / "JPEGImages", made)
    (root / "Annotations").mkdir()
    for p in made:
        objects = "".join(
            f"<object><name>{t.name}</name><pose>Left</pose><truncated>1</truncated><difficult>0</difficult><bndbox>"
            f"<xmax>{t.box[2]}</xmax><xmin>{t.box[0] + 1}</xmin><ymin>{t.box[1] + 1}</ymin><ymax>{t.box[3]}</ymax>"
            "</bndbox></object>\n"
            for t in p.things
        )
        (root / "Annotations" / f"{p.stem}.xml").write_text(
            f"<annotation><folder>VOC2012</folder><filename>{p.stem}.png</filename><size><width>{p.width}</width>"
            f"<height>{p.height}</height><depth>3</depth></size>\n{objects}</annotation>"
        )


def write_masks(root: Path, made: Sequence[Picture]) -> None:
    """A number for each object, with gaps; 16 bits, since some are above 255."""
    write_images(root / "images", made)
    (root / "masks").mkdir()
    for p in made:
        ids = np.zeros((p.height, p.width), np.uint16)
        for i, thing in enumerate(p.things, 1):
            ids[thing.mask(p.height, p.width) > 0] = 90 * i
        Image.fromarray(ids).save(root / "masks" / f"{p.stem}_mask.png")


WRITERS = {"coco": write_coco, "yolo": write_yolo, "voc": write_voc, "masks": write_masks}
PLACES: dict[str, dict[str, Any]] = {
    "coco": {"train_annotations": "all.json", "train_images": "all", "val_annotations": None},
    "yolo": {},
    "voc": {"train_list": None, "val_list": None},
    "masks": {"classes": ["person"]},
}


def load(fmt: str, root: Path, part: str = "train", **changes: Any) -> IndexedDataset:
    """A part of what the writers wrote, by the shipped config; all images for training, unless it is said otherwise."""
    node: Any = OmegaConf.to_container(OmegaConf.load(CONF / "dataset" / f"{fmt}.yaml"))
    where = {"data": str(root / "data.yaml")} if fmt == "yolo" else {"root": str(root)}
    return build({**node, "val_size": 0, **PLACES[fmt], **where, **changes}, group="dataset", part=part)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders of the formats; all but `masks` have three classes."""
    made = pictures(NAMES)
    roots = {fmt: tmp_path_factory.mktemp(fmt) for fmt in FORMATS[:3]}
    for fmt, root in roots.items():
        WRITERS[fmt](root, made)
    return roots


@pytest.fixture(scope="module")
def of_one_class(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders of the formats, with the same objects of one class."""
    made = pictures(("person",))
    roots = {fmt: tmp_path_factory.mktemp(f"one_{fmt}") for fmt in FORMATS}
    for fmt, root in roots.items():
        WRITERS[fmt](root, made)
    return roots


def objects(dataset: IndexedDataset) -> dict[str, tuple[tuple[int, int], list[tuple[Any, ...]]]]:
    """By the stem of each image its size, and its objects as (box, class, whether crowd, area and mask where it has one)."""
    found: dict[str, Any] = {}
    for i, file_name in enumerate(dataset.image_names):
        image, target = dataset[i]
        check_sample(image, target, dataset.class_map, dataset.iou_types, file_name)
        size = dataset.get_height_and_width(i)
        assert tuple(image.shape[1:]) == size
        rows = []
        for k in range(len(target["labels"])):
            row = (
                tuple(target["boxes"][k].tolist()),
                dataset.class_map.name(int(target["labels"][k])),
                int(target["iscrowd"][k]),
            )
            outline = (float(target["area"][k]), target["masks"][k].numpy().tobytes()) if "masks" in target else ()
            rows.append((*row, *outline))
        found[Path(file_name).stem] = (size, sorted(rows))
    return found


def expected(made: Sequence[Picture], *, outlines: bool) -> dict[str, Any]:
    """What `objects` must give, from the things themselves."""
    found = {}
    for p in made:
        rows = []
        for thing in p.things:
            mask = thing.mask(p.height, p.width)
            outline = (float(mask.sum()), mask.tobytes()) if outlines else ()
            rows.append((tuple(map(float, thing.box)), thing.name, 0, *outline))
        found[p.stem] = ((p.height, p.width), sorted(rows))
    return found


def scores(dataset: IndexedDataset, made: Sequence[Picture], iou_types: Sequence[Any]) -> dict[str, float]:
    """The numbers of detections that are a few pixels off, of another class, twice, missed, or of nothing."""
    evaluator = CocoEvaluator(
        ground_truth=dataset.ground_truth(), class_map=dataset.class_map, iou_types=iou_types, keypoint_sigmas=None
    )
    by_stem = {p.stem: p for p in made}
    for i, name in enumerate(dataset.image_names):
        p = by_stem[Path(name).stem]
        dice = random.Random(p.stem)
        found: list[tuple[Thing, float]] = []
        for thing in p.things:
            x0, y0, x1, y1 = thing.box
            moved = (x0, y0, x1 - dice.randint(0, 4), y1 - dice.randint(0, 4))
            name_said = dice.choice(dataset.class_map.names) if dice.random() < 0.2 else thing.name
            copies = dice.choice((0, 1, 1, 1, 2))
            found += [(Thing(name_said, moved, thing.notch), dice.random()) for _ in range(copies)]
        masks = np.array([t.mask(p.height, p.width) for t, _ in found], np.float32).reshape(-1, 1, p.height, p.width)
        labels = [dataset.class_map.names.index(t.name) + 1 for t, _ in found]
        prediction: Prediction = {
            "boxes": torch.tensor([t.box for t, _ in found], dtype=torch.float32).reshape(-1, 4),
            "labels": torch.tensor(labels, dtype=torch.int64),
            "scores": torch.tensor([score for _, score in found]),
            "masks": torch.from_numpy(masks),
        }
        evaluator.update([dataset[i][1]["image_id"]], [prediction])
    return evaluator.compute()


@pytest.mark.parametrize("fmt", FORMATS[:3])
def test_the_same_thirty_objects_of_three_classes_are_the_same_samples(written: dict[str, Path], fmt: str) -> None:
    # Whole pixels are exact in every format: YOLO's quotients, written in full, differ in the 16th digit, a sample's boxes have 7.
    dataset = load(fmt, written[fmt])
    assert sorted(dataset.class_map.names) == sorted(NAMES)
    assert objects(dataset) == expected(pictures(NAMES), outlines="segm" in dataset.iou_types)
    assert dataset.iou_types == (("bbox",) if fmt == "voc" else ("bbox", "segm"))


@pytest.mark.parametrize("fmt", FORMATS)
def test_the_same_thirty_objects_of_one_class_are_the_same_samples(of_one_class: dict[str, Path], fmt: str) -> None:
    dataset = load(fmt, of_one_class[fmt])
    assert dataset.class_map.names == ("person",)
    assert objects(dataset) == expected(pictures(("person",)), outlines=fmt != "voc")


def test_the_same_detections_have_the_same_numbers_whatever_the_format(
    written: dict[str, Path], of_one_class: dict[str, Path]
) -> None:
    for roots, names in ((written, NAMES), (of_one_class, ("person",))):
        made = pictures(names)
        # The classes in one order, so that detections of another class are the same ones.
        chosen = {fmt: {} if fmt == "masks" else {"classes": list(names)} for fmt in roots}
        found = {fmt: scores(load(fmt, root, **chosen[fmt]), made, ("bbox",)) for fmt, root in roots.items()}
        assert 0.3 < found["coco"]["bbox/AP"] < 0.9
        for numbers in found.values():
            # To 1e-12, since YOLO's boxes have a rounding error in the 16th digit.
            assert numbers == pytest.approx(found["coco"], abs=1e-12, nan_ok=True)
        of_masks = {
            fmt: scores(load(fmt, root, **chosen[fmt]), made, ("segm",)) for fmt, root in roots.items() if fmt != "voc"
        }
        assert 0.3 < of_masks["coco"]["segm/AP"] < 0.9
        for numbers in of_masks.values():
            assert numbers == pytest.approx(of_masks["coco"], abs=1e-12, nan_ok=True)


def test_category_ids_are_the_files_own(written: dict[str, Path]) -> None:
    ids = {fmt: dict(zip(*pair, strict=True)) for fmt in written for pair in [maps(load(fmt, written[fmt]))]}
    assert ids["coco"] == COCO_IDS
    assert ids["yolo"] == {"person": 0, "dog": 1, "bird": 2}
    assert ids["voc"] == {"bird": 1, "dog": 2, "person": 3}


def maps(dataset: IndexedDataset) -> tuple[tuple[str, ...], tuple[int, ...]]:
    return dataset.class_map.names, dataset.class_map.category_ids


@pytest.mark.parametrize("fmt", FORMATS[:3])
def test_classes_takes_a_subset_in_its_order(written: dict[str, Path], fmt: str) -> None:
    dataset = load(fmt, written[fmt], classes=["dog", "person"])
    assert dataset.class_map.names == ("dog", "person")
    truth = dataset.ground_truth()
    assert {a["category_id"] for a in truth["annotations"]} == set(dataset.class_map.category_ids)
    wanted = {
        stem: (size, [row for row in rows if row[1] != "bird"])
        for stem, (size, rows) in expected(pictures(NAMES), outlines=fmt != "voc").items()
    }
    assert objects(dataset) == wanted


@pytest.mark.parametrize("fmt", FORMATS)
def test_an_image_without_objects_is_legal(of_one_class: dict[str, Path], fmt: str) -> None:
    dataset = load(fmt, of_one_class[fmt])
    empty = next(p.stem for p in pictures(("person",)) if not p.things)
    number = [Path(name).stem for name in dataset.image_names].index(empty)
    _, target = EvaluationSamples(dataset)[number]  # type: ignore[misc]
    assert target["boxes"].shape == (0, 4)
    assert len(target["labels"]) == 0


@pytest.mark.parametrize("fmt", FORMATS)
def test_a_split_depends_on_names_and_seed_not_on_the_order_of_a_listing(
    of_one_class: dict[str, Path], fmt: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    def parts() -> dict[str, list[str]]:
        keys = {"val_size": 3, "test_size": 2}
        return {part: list(load(fmt, of_one_class[fmt], part, **keys).image_names) for part in ("train", "val", "test")}

    first, walk = parts(), os.walk

    def backwards(top: Any, *rest: Any, **more: Any) -> Any:
        for place, folders, files in walk(top, *rest, **more):
            folders.sort(reverse=True)
            yield place, folders, sorted(files, reverse=True)

    monkeypatch.setattr(os, "walk", backwards)
    assert parts() == first
    assert [len(first[part]) for part in first] == [4, 3, 2]
    assert len({name for names in first.values() for name in names}) == 9
    other = list(load(fmt, of_one_class[fmt], "val", val_size=3, test_size=2, split_seed=1).image_names)
    assert other != first["val"]


@pytest.mark.parametrize("fmt", FORMATS)
def test_each_image_is_in_one_fold(of_one_class: dict[str, Path], fmt: str) -> None:
    folds = [list(load(fmt, of_one_class[fmt], "val", folds=3, fold=k).image_names) for k in range(3)]
    assert sorted(name for fold in folds for name in fold) == sorted(load(fmt, of_one_class[fmt]).image_names)


@pytest.mark.parametrize("fmt", FORMATS)
def test_every_shared_key_stands_in_the_format_s_config(fmt: str) -> None:
    keys = {name: set(OmegaConf.load(CONF / "dataset" / f"{name}.yaml")) for name in (fmt, "coco")}
    shared = {
        key for key in keys["coco"] if not str(key).startswith(("train_", "val_anno", "val_im", "test_anno", "test_im"))
    }
    assert shared - keys[fmt] <= {"keypoints", "root"}
