"""Damaged data: `detlab validate` names the image and the object, and training does what `dataset.invalid` says."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TINY
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from detlab import parts
from detlab.commands.validate import Verdict, verdict_on
from detlab.config import CONF
from detlab.data.faults import KINDS
from detlab.data.loader import checked_sample
from detlab.errors import UserError

HEIGHT, WIDTH = 60, 80
NAN, INF = float("nan"), float("inf")
GONE = object()
Damage = Callable[[Path], None]


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def configured(choice: str, **values: Any) -> DictConfig:
    """What a run and `detlab validate` read of a configuration for the data."""
    node = OmegaConf.to_container(OmegaConf.load(CONF / "dataset" / f"{choice}.yaml"))
    assert isinstance(node, dict)
    return OmegaConf.create({"dataset": {**node, **values}, "model": {}, "allow": [], "overfit": None})


# ---------------------------------------------------------------------------------------------------------------------
# COCO: 4 images of 3 objects for training, 2 for validation; the middle object of each is a dog, the others are persons
# with a head and a foot. Annotation 201 is the dog of t1.png, 202 a person there.


def coco_part(names: list[str], first: int) -> dict[str, Any]:
    images, annotations = [], []
    for k, name in enumerate(names, first):
        images.append({"id": 10 * k, "file_name": name, "height": HEIGHT, "width": WIDTH})
        for j in range(3):
            x, y, w, h = 5 + 25 * j, 4 + 3 * k, 16 + k, 20 + j
            points = [] if j == 1 else [x + w / 2, y + 2, 2, x + w / 2, y + h - 2, 1]
            annotations.append(
                {
                    "id": 100 * k + j,
                    "image_id": 10 * k,
                    "category_id": 5 if j == 1 else 1,
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": 0,
                    "segmentation": [rectangle(x, y, w, h)],
                    "keypoints": points,
                    "num_keypoints": len(points) // 3,
                }
            )
    categories = [{"id": 5, "name": "dog"}, {"id": 1, "name": "person"}]
    return {"images": images, "annotations": annotations, "categories": categories}


def rectangle(x: float, y: float, w: float, h: float) -> list[float]:
    return [x, y, x + w, y, x + w, y + h, x, y + h]


def write_coco(root: Path) -> None:
    (root / "images").mkdir(parents=True)
    for file, names, first in (
        ("train.json", ["t0.png", "t1.png", "t2.png", "t3.jpg"], 1),
        ("val.json", ["v0.png", "v1.png"], 5),
    ):
        (root / file).write_text(json.dumps(coco_part(names, first)))
        for k, name in enumerate(names, first):
            Image.fromarray(noise(k)).save(root / "images" / name)


def configured_coco(root: Path) -> DictConfig:
    return configured(
        "coco",
        root=str(root),
        train_annotations="train.json",
        val_annotations="val.json",
        train_images="images",
        val_images="images",
        keypoints={"names": ["head", "foot"], "sigmas": [0.1, 0.1]},
    )


def content(change: Callable[[dict[str, Any]], None], *files: str) -> Damage:
    """Change what the JSON files say."""

    def damage(root: Path) -> None:
        for file in files or ("train.json",):
            said = json.loads((root / file).read_text())
            change(said)
            (root / file).write_text(json.dumps(said))

    return damage


def row(annotation: int = 201, **values: Any) -> Damage:
    """Change fields of one annotation."""

    def change(said: dict[str, Any]) -> None:
        found = next(row for row in said["annotations"] if row["id"] == annotation)
        found.update({key: value for key, value in values.items() if value is not GONE})
        for key in [key for key, value in values.items() if value is GONE]:
            del found[key]

    return content(change)


def person(**values: Any) -> Damage:
    return row(202, **values)


def box(x: float, y: float, w: float, h: float) -> Damage:
    """Another place for an object, its outline with it."""
    return row(bbox=[x, y, w, h], area=abs(w * h), segmentation=[rectangle(x, y, w, h)])


def every_box(convert: Callable[[list[float]], list[float]]) -> Damage:
    def change(said: dict[str, Any]) -> None:
        for found in said["annotations"]:
            found["bbox"] = convert(found["bbox"])
            for key in ("area", "segmentation", "keypoints", "num_keypoints"):
                del found[key]

    return content(change, "train.json", "val.json")


def text(written: str, file: str = "train.json") -> Damage:
    return lambda root: (root / file).write_text(written) and None


def image(change: Callable[[Path], None], name: str = "t1.png") -> Damage:
    """Change an image file."""
    return lambda root: change(root / "images" / name)


def set_(*path: Any, to: Any) -> Damage:
    """Set a value in the training file, or delete it."""

    def change(said: Any) -> None:
        for key in path[:-1]:
            said = said[key]
        if to is GONE:
            del said[path[-1]]
        else:
            said[path[-1]] = to

    return content(change)


def appended(key: str, value: Any) -> Damage:
    return content(lambda said: said[key].append(value))


def duplicated(**values: Any) -> Damage:
    return content(lambda said: said["annotations"].append({**said["annotations"][4], **values}))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def into_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def into_link(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.with_name("nowhere.png"))


def turned(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise(4)).save(path, exif=exif)


def resized(path: Path) -> None:
    Image.fromarray(noise(2)[:50]).save(path)


def floats(path: Path) -> None:
    Image.fromarray(noise(2)[..., 0].astype(np.float32)).save(path, format="TIFF")


def copy(source: str, target: str) -> Damage:
    return lambda root: shutil.copy(root / "images" / source, root / "images" / target) and None


def as_bitmap(root: Path) -> None:
    """The same pixels in other bytes, under a name that lies about the format."""
    Image.open(root / "images" / "t0.png").save(root / "images" / "v0.png", format="BMP")


def runs(**values: Any) -> Damage:
    return row(segmentation={"size": [HEIGHT, WIDTH], **values})


def without_dogs_in_val(said: dict[str, Any]) -> None:
    said["annotations"] = [found for found in said["annotations"] if found["category_id"] != 5]


def renamed(name: str) -> Damage:
    def change(said: dict[str, Any]) -> None:
        said["categories"].append({"id": 9, "name": name})
        said["annotations"][1]["category_id"] = 9

    return content(change, "train.json", "val.json")


@dataclass(frozen=True)
class Case:
    """One kind of damage.

    Args:
        name: what is damaged.
        damage: does it, to a folder of good data.
        kind: what validate calls it; None where the files cannot be read at all: `said` is then in the refusal.
        image: that validate names.
        annotation: that validate names.
        drop: objects that are left in both parts with `dataset.invalid=drop`; None where every run refuses the data.
        clip: the same with `clip`.
        also: further kinds that are found, of errors and warnings.
        unseen: whether it is an error that no run can see.
        said: in the refusal.
    """

    name: str
    damage: Damage
    kind: str | None
    image: str = "t1.png"
    annotation: Any = None
    drop: int | None = 18
    clip: int | None = 18
    also: tuple[str, ...] = ()
    unseen: bool = False
    said: str = ""


def bad(name: str, damage: Damage, kind: str, annotation: Any = 201, clip: int = 17, **more: Any) -> Case:
    """An object that is an error."""
    return Case(name, damage, kind, annotation=annotation, drop=17, clip=clip, **more)


def odd(name: str, damage: Damage, kind: str, annotation: Any = 201, left: int = 18, **more: Any) -> Case:
    """A warning: everything is learnt."""
    return Case(name, damage, kind, annotation=annotation, drop=left, clip=left, **more)


def lost(name: str, damage: Damage, kind: str, image: str = "t1.png", **more: Any) -> Case:
    """An image that is an error, of three objects."""
    return Case(name, damage, kind, image, drop=15, clip=15, **more)


def refused(name: str, damage: Damage, said: str) -> Case:
    return Case(name, damage, None, "", None, None, None, said=said)


UNREADABLE = partial(bad, kind="unreadable object")
COCO = [
    bad("box with NaN", row(bbox=[30, 10, NAN, 21]), "box not finite"),
    bad("box with infinity", row(bbox=[-INF, 10, 18, 21]), "box not finite"),
    bad("box of no width", row(bbox=[30, 10, 0, 21]), "box empty"),
    bad("box of negative height", row(bbox=[30, 10, 18, -21]), "box empty"),
    bad("box that float32 makes empty", box(30, 10, 1e-9, 21), "box empty", also=("box under a pixel",)),
    bad("box over the right border", box(70, 10, 20, 21), "box outside", clip=18, also=("polygon outside",)),
    bad("box over the upper border", box(30, -9, 18, 21), "box outside", clip=18, also=("polygon outside",)),
    bad("box far out of the image", box(300, 10, 18, 21), "box outside", also=("polygon outside",)),
    bad("box as large as a number can be", row(bbox=[30, 10, 1e300, 21]), "box outside", clip=18,
        also=("mask off its box",)),
    UNREADABLE("box missing", row(bbox=GONE)),
    UNREADABLE("box of three numbers", row(bbox=[30, 10, 18])),
    UNREADABLE("box of words", row(bbox=["30", "10", "18", "21"])),
    UNREADABLE("box null", row(bbox=None)),
    odd("box under a pixel", box(30, 10, 0.5, 21), "box under a pixel"),
    odd("object twice", duplicated(id=299), "box twice", 299, 19),
    Case("boxes in 0..1", every_box(lambda b: [b[0] / 80, b[1] / 60, b[2] / 80, b[3] / 60]), "boxes in 0..1", "t0.png",
         100, None, None, also=("box under a pixel",)),
    Case("boxes by corners", every_box(lambda b: [b[0], b[1], b[0] + b[2], b[1] + b[3]]), "boxes by corners", "t0.png",
         102, None, None, also=("box outside",)),
    bad("class unknown", row(category_id=2), "unknown class"),
    bad("class null", row(category_id=None), "unknown class"),
    bad("class a list", row(category_id=[5]), "unknown class"),
    bad("image unknown", row(image_id=11), "unknown image", image="train.json"),
    bad("image missing in the annotation", row(image_id=GONE), "unknown image", image="train.json"),
    bad("image a list", row(image_id=[20]), "unknown image", image="train.json"),
    bad("annotation a number", content(lambda said: said["annotations"].__setitem__(4, 7)), "unknown image",
        "at place 4", image="train.json"),
    UNREADABLE("annotation id too large", row(id=10**30), annotation=10**30),
    odd("annotation id twice", row(202, id=201), "annotation id twice"),
    bad("area negative", row(area=-5), "area impossible"),
    bad("area NaN", row(area=NAN), "area impossible"),
    bad("area infinite", row(area=INF), "area impossible"),
    UNREADABLE("area a word", row(area="large")),
    odd("area of a fifth", row(area=70), "area off"),
    odd("area in another unit", row(area=37800), "area off"),
    bad("polygon of two points", row(segmentation=[[30, 10, 48, 31]]), "polygon too short", also=("polygon without area",)),
    bad("polygon of two points beside a whole one",
        row(segmentation=[rectangle(30, 10, 18, 21), [30, 10, 48, 31]]), "polygon too short", clip=18,
        also=("polygon without area",)),
    bad("polygon of no points", row(segmentation=[[]]), "polygon too short"),
    UNREADABLE("polygon of an odd count", row(segmentation=[[30, 10, 48, 10, 48, 31, 30]])),
    UNREADABLE("polygon of words", row(segmentation=[["a", "b", "c", "d", "e", "f"]])),
    UNREADABLE("polygon not in a list", row(segmentation=rectangle(30, 10, 18, 21))),
    bad("polygon with NaN", row(segmentation=[[30, 10, 48, NAN, 48, 31, 30, 31]]), "polygon not finite"),
    bad("outline empty", row(segmentation=[]), "outline missing"),
    bad("outline missing", row(segmentation=GONE), "outline missing"),
    UNREADABLE("outline a word", row(segmentation="none")),
    odd("polygon out of the image", row(segmentation=[rectangle(30, 10, 18, 90)]), "polygon outside",
        also=("mask off its box",)),
    odd("polygon in a line", row(segmentation=[rectangle(30, 10, 18, 21), [30, 10, 48, 31, 39, 20.5]]),
        "polygon without area"),
    odd("mask elsewhere", row(segmentation=[rectangle(5, 35, 18, 21)]), "mask off its box"),
    bad("run lengths of no pixel", runs(counts=[HEIGHT * WIDTH]), "mask empty"),
    UNREADABLE("run lengths of another size", row(segmentation={"size": [60, 60], "counts": [3600]})),
    UNREADABLE("run lengths of too few pixels", runs(counts=[100, 200])),
    UNREADABLE("run lengths below 0", runs(counts=[5000, -200])),
    UNREADABLE("run lengths of words", runs(counts=["a"])),
    UNREADABLE("run lengths cut off", runs(counts="Po")),
    UNREADABLE("run lengths with a wrong letter", runs(counts="P!1")),
    UNREADABLE("run lengths missing", runs()),
    UNREADABLE("keypoints too few", person(keypoints=[60, 12, 2]), annotation=202),
    UNREADABLE("keypoints of words", person(keypoints=[60, "12", 2, 60, 30, 1]), annotation=202),
    bad("keypoints with NaN", person(keypoints=[60, NAN, 2, 60, 30, 1]), "keypoints not finite", 202),
    bad("visibility 3", person(keypoints=[60, 12, 3, 60, 30, 1]), "keypoint visibility", 202),
    bad("keypoint out of the image", person(keypoints=[60, 12, 2, 95, 30, 1]), "keypoint outside", 202, 18,
        also=("keypoint off its box",)),
    odd("keypoint out of its box", person(keypoints=[60, 12, 2, 5, 30, 1]), "keypoint off its box", 202),
    odd("num_keypoints wrong", person(num_keypoints=7), "keypoint count", 202),
    odd("class absent from val", content(without_dogs_in_val, "val.json"), "class absent", None, 16, image=""),
    odd("class written in two ways", renamed("Per son"), "class names alike", None, image=""),
    odd("background a class", renamed("__background__"), "background class", None, image=""),
    lost("image missing", image(Path.unlink), "image missing"),
    lost("image a dangling link", image(into_link), "image unreadable"),
    lost("image a folder", image(into_folder), "image unreadable"),
    lost("image empty", image(lambda path: path.write_bytes(b"") and None), "image unreadable"),
    lost("image a text", image(lambda path: path.write_text("hello") and None), "image unreadable"),
    lost("PNG cut off", image(cut), "image unreadable"),
    lost("JPEG cut off", image(cut, "t3.jpg"), "image unreadable", "t3.jpg"),
    lost("image of 32-bit floats", image(floats), "image unreadable"),
    lost("image of another size", image(resized), "image of another size"),
    lost("image turned by EXIF", image(turned, "t3.jpg"), "image turned", "t3.jpg"),
    lost("size unknown and image unreadable", lambda root: (cut_header(root), None)[1], "image unreadable"),
    odd("image twice", copy("t0.png", "t1.png"), "image twice", None),
    Case("image in both parts", copy("t0.png", "v0.png"), "image in two parts", "v0.png", unseen=True),
    Case("image in both parts in another format", as_bitmap, "image in two parts", "v0.png", unseen=True),
    refused("image id twice", set_("images", 1, "id", to=10), "id 10 stands twice"),
    refused("file name twice", set_("images", 1, "file_name", to="t0.png"), "file_name 't0.png' stands twice"),
    refused("file name missing", set_("images", 1, "file_name", to=GONE), "needs a file_name and an id"),
    refused("image id a word", set_("images", 1, "id", to="second"), "needs a file_name and an id"),
    refused("image id too large", set_("images", 1, "id", to=2**63), "needs a file_name and an id"),
    refused("image a word", set_("images", 1, to="t1.png"), "needs a file_name and an id"),
    refused("height 0", set_("images", 1, "height", to=0), "t1.png: height 0 and width 80"),
    refused("height negative", set_("images", 1, "height", to=-60), "t1.png: height -60 and width 80"),
    refused("height a word", set_("images", 1, "height", to="60"), "t1.png: height '60' and width 80"),
    refused("category id twice", set_("categories", 0, "id", to=1), "id 1 stands twice"),
    refused("category name twice", set_("categories", 0, "name", to="person"), "name 'person' stands twice"),
    refused("category id infinite", set_("categories", 0, "id", to=INF), "needs an id, a whole number"),
    refused("category of val unknown", content(lambda said: said["categories"].append({"id": 8, "name": "cat"}),
                                               "val.json"), "class 'cat' is none of the training files'"),
    refused("no categories", set_("categories", to=[]), "the list is empty"),
    refused("annotations missing", set_("annotations", to=GONE), "needs the lists"),
    refused("JSON cut off", text('{"images": ['), "not JSON"),
    refused("JSON a list", text("[]"), "no COCO file"),
    refused("bytes that are no text", lambda root: (root / "train.json").write_bytes(b"\xff\xfe{") and None, "not JSON"),
    refused("annotations file missing", lambda root: (root / "val.json").unlink(), "val.json: No such file"),
]  # fmt: skip


def cut_header(root: Path) -> None:
    (root / "images" / "t1.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    set_("images", 1, "height", to=GONE)(root)


# ---------------------------------------------------------------------------------------------------------------------
# YOLO, VOC and masks: what only they can have. Two images of two objects each for training, one for validation.


def write_yolo(root: Path) -> None:
    for i, name in enumerate(("train/a", "train/b", "val/c")):
        for folder in ("images", "labels"):
            (root / folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(i)).save(root / "images" / f"{name}.png")
        (root / "labels" / f"{name}.txt").write_text("0 0.25 0.5 0.2 0.3\n1 0.75 0.5 0.2 0.3\n")
    (root / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [person, dog]\n")


def label(line: str) -> Damage:
    """Another second line for b."""
    return lambda root: (root / "labels/train/b.txt").write_text(f"0 0.25 0.5 0.2 0.3\n{line}\n") and None


def write_voc(root: Path) -> None:
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for i, name in enumerate("abc"):
        Image.fromarray(noise(i)).save(root / "JPEGImages" / f"{name}.jpg")
        objects = (
            "\n<object><name>person</name><bndbox><xmin>11</xmin><ymin>21</ymin><xmax>30</xmax><ymax>50</ymax></bndbox></object>"
            "\n<object><name>dog</name><bndbox><xmin>41</xmin><ymin>21</ymin><xmax>60</xmax><ymax>50</ymax></bndbox></object>\n"
        )
        size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"
        (root / "Annotations" / f"{name}.xml").write_text(f"<annotation>{size}{objects}</annotation>")
    (root / "ImageSets/Main/train.txt").write_text("a\nb\n")
    (root / "ImageSets/Main/val.txt").write_text("c\n")


def xml(old: str, new: str) -> Damage:
    """Another word for the last of its kind in b."""

    def damage(root: Path) -> None:
        path = root / "Annotations" / "b.xml"
        before, found, after = path.read_text().rpartition(old)
        assert found
        path.write_text(before + new + after)

    return damage


def write_masks(root: Path) -> None:
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for i, name in enumerate("abc"):
        Image.fromarray(noise(i)).save(root / "images" / f"{name}.png")
        ids = np.zeros((HEIGHT, WIDTH), np.uint8)
        ids[10:40, 10:30], ids[10:40, 40:60] = 1, 2
        Image.fromarray(ids).save(root / "masks" / f"{name}_mask.png")


def mask(change: Callable[[Path], None]) -> Damage:
    return lambda root: change(root / "masks" / "b_mask.png")


def colours(path: Path) -> None:
    Image.fromarray(noise(0)).save(path)


def smaller(path: Path) -> None:
    Image.fromarray(np.ones((HEIGHT, 50), np.uint8)).save(path)


FORMATS: dict[str, tuple[Callable[[Path], None], Callable[[Path], DictConfig]]] = {
    "coco": (write_coco, configured_coco),
    "yolo": (write_yolo, lambda root: configured("yolo", data=str(root / "data.yaml"))),
    "voc": (write_voc, lambda root: configured("voc", root=str(root))),
    "masks": (write_masks, lambda root: configured("masks", root=str(root), val_size=1)),
}
IN_B = "images/train/b.png"
OTHERS = [
    ("yolo", Case("class of another number", label("2 0.75 0.5 0.2 0.3"), "unknown class", IN_B, 2, 5, 5)),
    ("yolo", Case("class a word", label("dog 0.75 0.5 0.2 0.3"), "unreadable object", IN_B, 2, 5, 5)),
    ("yolo", Case("box of three numbers", label("1 0.75 0.5 0.2"), "unreadable object", IN_B, 2, 5, 5)),
    ("yolo", Case("box of NaN", label("1 nan 0.5 0.2 0.3"), "unreadable object", IN_B, 2, 5, 5)),
    ("yolo", Case("box in pixels", label("1 60 30 16 18"), "unreadable object", IN_B, 2, 5, 5)),
    ("yolo", Case("box over the border", label("1 0.95 0.5 0.2 0.3"), "box outside", IN_B, 2, 5, 6)),
    ("yolo", Case("labels that are no text", lambda root: (root / "labels/train/b.txt").write_bytes(b"\xff\xff") and None,
                  "annotations unreadable", IN_B, None, 4, 4)),
    ("yolo", Case("labels without image", lambda root: (root / "labels/train/z.txt").write_text("0 0.5 0.5 0.1 0.1") and None,
                  "unknown image", "labels/train/z.txt", None, 6, 6)),
    ("yolo", Case("image unreadable", lambda root: cut(root / IN_B), "image unreadable", IN_B, None, 4, 4)),
    ("yolo", refused("no labels at all", lambda root: shutil.rmtree(root / "labels" / "train"), "has a label file")),
    ("yolo", refused("names missing", text("train: images/train\n", "data.yaml"), "names:")),
    ("voc", Case("corner a word", xml("<xmax>60", "<xmax>sixty"), "unreadable object", "b.jpg", 3, 5, 5)),
    ("voc", Case("corner missing", xml("<xmax>60</xmax>", ""), "unreadable object", "b.jpg", 3, 5, 5)),
    ("voc", Case("corners swapped", xml("<xmax>60", "<xmax>30"), "box empty", "b.jpg", 3, 5, 5)),
    ("voc", Case("box over the border", xml("<xmax>60", "<xmax>90"), "box outside", "b.jpg", 3, 5, 6)),
    ("voc", Case("XML cut off", lambda root: cut(root / "Annotations" / "b.xml"), "annotations unreadable", "b.jpg", None,
                 4, 4)),
    ("voc", Case("annotation missing", lambda root: (root / "Annotations" / "b.xml").unlink(), "annotations missing", "b",
                 None, 4, 4)),
    ("voc", Case("image missing", lambda root: (root / "JPEGImages" / "b.jpg").unlink(), "image missing", "b.jpg", None,
                 4, 4)),
    ("voc", Case("size wrong", xml("<width>80", "<width>70"), "image of another size", "b.jpg", None, 4, 4)),
    ("voc", refused("list empty", text("", "ImageSets/Main/train.txt"), "names no image")),
    ("masks", Case("mask missing", mask(Path.unlink), "annotations missing", "b.png", None, 4, 4)),
    ("masks", Case("mask cut off", mask(cut), "annotations unreadable", "b.png", None, 4, 4)),
    ("masks", Case("mask of colours", mask(colours), "annotations unreadable", "b.png", None, 4, 4)),
    ("masks", Case("mask of another size", mask(smaller), "annotations unreadable", "b.png", None, 4, 4)),
    ("masks", Case("mask without image", lambda root: (root / "images" / "b.png").unlink(), "unknown image",
                   "masks/b_mask.png", None, 4, 4)),
]  # fmt: skip
CASES = [("coco", case) for case in COCO] + OTHERS
every_case = pytest.mark.parametrize(
    ("form", "case"), [pytest.param(form, case, id=f"{form}: {case.name}") for form, case in CASES]
)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of good data in each format."""
    made = {}
    for form, (write, _) in FORMATS.items():
        made[form] = tmp_path_factory.mktemp("good") / form
        write(made[form])
    return made


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The damaged copies that there are already, each by its case: nothing that is tested changes them."""
    return {"": tmp_path_factory.mktemp("damaged")}


@pytest.fixture
def damaged(good: dict[str, Path], folders: dict[str, Path], form: str, case: Case) -> DictConfig:
    """The configuration of a damaged copy."""
    name = f"{form} {case.name}"
    if name not in folders:
        folders[name] = shutil.copytree(good[form], folders[""] / str(len(folders)))
        case.damage(folders[name])
    return FORMATS[form][1](folders[name])


def kinds(verdict: Verdict) -> set[str]:
    """The errors and warnings."""
    return {found.fault.kind for found in verdict.faults if KINDS[found.fault.kind].severity != "note"}


def loaded(cfg: DictConfig, invalid: str) -> int:
    """Load everything with this `dataset.invalid`, and count the objects."""
    cfg.dataset.invalid = invalid
    return gone_through(cfg)


def gone_through(cfg: DictConfig) -> int:
    """Build both parts, hold each sample against the contract as a run does, and count the objects."""
    data = parts.data_sets(cfg)
    for dataset in data.values():
        assert len(dataset.ground_truth()["images"]) == len(dataset)
    return sum(len(checked_sample(set_, i)[1]["labels"]) for set_ in data.values() for i in range(len(set_)))


def test_there_are_at_least_sixty_kinds_of_damage() -> None:
    assert len({(form, case.name) for form, case in CASES}) == len(CASES) >= 60


@pytest.mark.parametrize("form", FORMATS)
def test_nothing_is_wrong_with_good_data(good: dict[str, Path], form: str) -> None:
    cfg = FORMATS[form][1](good[form])
    assert kinds(verdict_on(cfg, decode=True)) == set()
    for invalid in ("error", "drop", "clip"):
        assert loaded(cfg, invalid) == (18 if form == "coco" else 6)


@every_case
def test_validate_names_the_kind_the_image_and_the_annotation(damaged: DictConfig, case: Case) -> None:
    if case.kind is None:
        with pytest.raises(UserError) as raised:
            verdict_on(damaged, decode=True)
        assert case.said in str(raised.value)
        return
    verdict = verdict_on(damaged, decode=True)
    where = [(f.fault.image, f.fault.annotation) for f in verdict.faults if f.fault.kind == case.kind]
    assert (case.image, case.annotation) in where
    if case.kind not in ("boxes in 0..1", "boxes by corners"):
        assert len(where) == 1
    assert kinds(verdict) == {case.kind, *case.also}
    assert (verdict.count("error") > 0) == (KINDS[case.kind].severity == "error")


@every_case
def test_training_on_errors_is_refused_in_two_lines_that_name_them(damaged: DictConfig, case: Case) -> None:
    if case.kind is not None and (KINDS[case.kind].severity != "error" or case.unseen):
        assert loaded(damaged, "error") == case.drop
        return
    with pytest.raises(UserError) as raised:
        loaded(damaged, "error")
    said = str(raised.value)
    assert 1 <= len(said.splitlines()) <= 2
    assert case.said in said
    assert case.image in said
    if case.annotation is not None:
        assert f"{case.image}, annotation {case.annotation}: " in said


@every_case
def test_what_is_left_after_drop_and_clip_keeps_the_contract(damaged: DictConfig, case: Case) -> None:
    for invalid, left in (("drop", case.drop), ("clip", case.clip)):
        if left is not None:
            assert loaded(damaged, invalid) == left
            continue
        with pytest.raises(UserError) as raised:
            loaded(damaged, invalid)
        assert len(str(raised.value).splitlines()) <= 2


# ---------------------------------------------------------------------------------------------------------------------
# A user's own class: what is wrong with a sample is said of the sample.

OWN = """
import numpy as np
import torch


class Samples(torch.utils.data.Dataset):
    def __init__(self, change):
        self.change = change

    def __len__(self):
        return 6

    def __getitem__(self, i):
        image = torch.from_numpy(np.random.default_rng(i).integers(0, 255, (3, 60, 80), dtype=np.uint8))
        boxes = torch.tensor([[5.0, 5.0, 25.0, 40.0], [40.0, 5.0, 60.0, 40.0]])
        masks = torch.zeros(2, 60, 80, dtype=torch.uint8)
        masks[0, 5:40, 5:25] = masks[1, 5:40, 40:60] = 1
        target = {"boxes": boxes, "labels": torch.tensor([1, 2]), "masks": masks, "image_id": i}
        sample = {"image": image, "target": target}
        if i == WHICH:
            exec(self.change, {"torch": torch}, sample)
        return sample["image"], sample["target"]
"""
OWN_CASES = [
    ("box with NaN", "target['boxes'][1, 0] = float('nan')", "broken sample", "object 1 has a box that is not finite"),
    ("box turned round", "target['boxes'][1, 2] = 30", "broken sample", "object 1 has a box of zero or negative width"),
    ("box outside", "target['boxes'][1, 2] = 99", "broken sample", "object 1 has a box outside its image"),
    ("label 0", "target['labels'][1] = 0", "broken sample", "object 1 has label 0"),
    ("label beyond the classes", "target['labels'][1] = 3", "broken sample", "object 1 has label 3"),
    ("labels too few", "target['labels'] = target['labels'][:1]", "broken sample", "boxes is"),
    ("masks of another size", "target['masks'] = target['masks'][:, :50]", "broken sample", "masks is"),
    ("masks missing", "del target['masks']", "broken sample", "lacks masks"),
    ("boxes missing", "del target['boxes']", "broken sample", "lacks boxes"),
    ("boxes of words", "target['boxes'] = 'none'", "broken sample", "cannot be read"),
    ("image of one dimension", "image = image[0, 0]", "broken sample", "the image has shape"),
    ("target a list", "target = [target]", "broken sample", "expected the pair"),
    ("keypoints that nobody described", "target['keypoints'] = torch.zeros(2, 5, 3)", "broken sample", "has keypoints"),
    ("a failure of the class", "target['no such key']", "broken sample", "raises KeyError"),
    ("image id twice", "target['image_id'] = OTHER", "image id twice", "is that of"),
]


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], DictConfig]]:
    """The configuration of a data set whose fifth sample of six is changed."""
    monkeypatch.syspath_prepend(tmp_path)

    def configured_own(change: str) -> DictConfig:
        (tmp_path / "own_samples.py").write_text(OWN.replace("WHICH", "4"))
        dataset = {"_target_": "own_samples.Samples", "change": change}
        cfg = configured("custom", dataset=dataset, classes=["person", "dog"], val_size=2)
        cfg.allow = ["own_samples"]
        return cfg

    yield configured_own
    sys.modules.pop("own_samples", None)


def test_nothing_is_wrong_with_good_samples(own: Callable[[str], DictConfig]) -> None:
    verdict = verdict_on(own("pass"), decode=True)
    assert kinds(verdict) == set()
    assert {name for part in parts.data_sets(own("pass")).values() for name in part.image_names} == {
        f"Samples[{i}]" for i in range(6)
    }


@pytest.mark.parametrize(("change", "kind", "said"), [case[1:] for case in OWN_CASES], ids=[c[0] for c in OWN_CASES])
def test_a_sample_of_an_own_class_that_breaks_the_contract_is_named_and_never_learnt(
    own: Callable[[str], DictConfig], change: str, kind: str, said: str
) -> None:
    data = parts.data_sets(own("pass"))
    # The neighbour of the changed sample in its part.
    part = next(names for set_ in data.values() if "Samples[4]" in (names := list(set_.image_names)))
    assert part[0] != "Samples[4]"
    cfg = own(change.replace("OTHER", part[0].removeprefix("Samples[").removesuffix("]")))
    verdict = verdict_on(cfg, decode=True)
    (found,) = [f for f in verdict.faults if KINDS[f.fault.kind].severity == "error"]
    assert (found.fault.kind, found.fault.image) == (kind, "Samples[4]")
    assert said in found.fault.said
    # Where the class itself fails, its own error ends the run.
    with pytest.raises((UserError, KeyError), match=r"no such key" if "KeyError" in said else r"Samples\[4\]"):
        gone_through(cfg)


def test_a_mask_without_pixels_in_a_sample_of_an_own_class_is_named(own: Callable[[str], DictConfig]) -> None:
    verdict = verdict_on(own("target['masks'][1] = 0"), decode=True)
    (found,) = [f.fault for f in verdict.faults if KINDS[f.fault.kind].severity == "error"]
    assert (found.kind, found.image, found.annotation) == ("mask empty", "Samples[4]", 1)


# ---------------------------------------------------------------------------------------------------------------------
# Real runs.


@pytest.mark.slow
@pytest.mark.parametrize(
    ("invalid", "status", "said"),
    [
        ("error", 2, "t2.png, annotation 302: category_id 2 is no category's (unknown class; "),
        (
            "drop",
            0,
            "train.json: 2 object(s) dropped, 0 clipped (1 unknown class, 1 box outside); detlab validate names them",
        ),
        (
            "clip",
            0,
            "train.json: 1 object(s) dropped, 1 clipped (1 unknown class, 1 box outside); detlab validate names them",
        ),
    ],
)
def test_a_run_does_what_invalid_says_and_counts_it_once_in_its_log(
    detlab: Callable[..., int],
    good: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    invalid: str,
    status: int,
    said: str,
) -> None:
    root = shutil.copytree(good["coco"], tmp_path / "coco")
    box(70, 10, 20, 21)(root)
    row(302, category_id=2)(root)
    tiny = [o for o in TINY if not o.startswith("dataset")]
    overrides = (
        f"dataset.root={root}",
        "dataset.train_annotations=train.json",
        "dataset.val_annotations=val.json",
        "dataset.train_images=images",
        "dataset.val_images=images",
        "dataset.keypoints={names: [head, foot], sigmas: [0.1, 0.1]}",
        f"dataset.invalid={invalid}",
    )
    assert detlab(*tiny, "dataset=coco", *overrides, "hydra.run.dir=run") == status
    written = capsys.readouterr()
    assert (written.out + written.err).count(said) == 1
