"""COCO files, COCO's own and others', become samples and a ground truth that scores as the file itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SHARED
from omegaconf import DictConfig
from PIL import Image
from pycocotools import mask as coco_mask

from detlab import parts
from detlab.config import build
from detlab.data.coco import _run_lengths, read_coco
from detlab.data.dataset import IndexedDataset, readings_kept
from detlab.errors import UserError
from detlab.evaluation.coco import score
from detlab.structures import DetectionDataset, IouType, check_sample

# shared/README.md: pycocotools 2.0.11 on the reference files.
REFERENCE: dict[IouType, list[float]] = {
    "bbox": [
        0.5045806987, 0.6969727247, 0.5729816670, 0.5856257209, 0.5193996948, 0.5013978986, 0.3868127796, 0.5936795763,
        0.5953529829, 0.6398109626, 0.5664205979, 0.5642905983,
    ],
    "segm": [
        0.3195452759, 0.5622883973, 0.2989265341, 0.3873740316, 0.3101827240, 0.3269339071, 0.2682297226, 0.4154486811,
        0.4168394992, 0.4694498623, 0.3767592267, 0.3814715100,
    ],
    "keypoints": [
        0.5048844884, 0.7227722772, 0.6336633663, 0.4663366337, 0.7504950495, 0.5181818182, 0.7272727273, 0.6363636364,
        0.4666666667, 0.75,
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("iou_type", "truth", "results"),
    [
        ("bbox", "coco_val2014_100/instances_val2014_100", "coco_val2014_100/instances_val2014_fakebbox100_results"),
        ("segm", "coco_val2014_100/instances_val2014_100", "coco_val2014_100/instances_val2014_fakesegm100_results"),
        ("keypoints", "coco_keypoints_139099/gt_dataset", "coco_keypoints_139099/dt_dataset"),
    ],
)
def test_the_ground_truth_scores_as_the_file_does(iou_type: IouType, truth: str, results: str) -> None:
    paths = [SHARED / f"{name}.json" for name in (truth, results)]
    if not all(path.exists() for path in paths):
        pytest.skip(f"{paths[0]} is not here")
    reading = read_coco(paths[0], paths[0].parent, None)
    assert not reading.faults
    dataset = IndexedDataset(reading.index, reading.folder, name="reference", cache=None)  # type: ignore[arg-type]
    rows = json.loads(paths[1].read_text())
    rows = rows["annotations"] if isinstance(rows, dict) else rows
    numbers = score(dataset.ground_truth(), rows, iou_type)
    assert [value for key, value in numbers.items() if key.count("/") == 1] == pytest.approx(
        REFERENCE[iou_type], abs=1e-9
    )


def runs(height: int, width: int, box: tuple[int, int, int, int]) -> dict[str, Any]:
    mask = np.zeros((height, width), np.uint8, order="F")
    x, y, w, h = box
    mask[y : y + h, x : x + w] = 1
    encoded: Any = coco_mask.encode(mask)
    return {"size": [height, width], "counts": encoded["counts"].decode()}


def content() -> dict[str, Any]:
    """Four images whose ids have gaps and stand in no order; polygons, run lengths of both kinds, a crowd region; no `info`."""
    return {
        "categories": [{"id": 18, "name": "dog"}, {"id": 3, "name": "cat"}, {"id": 90, "name": "cow"}],
        "images": [
            {"id": 50, "file_name": "d.png", "height": 12, "width": 16},
            {"id": 7, "file_name": "b.png", "height": 12, "width": 16},
            {"id": 9, "file_name": "a.png", "height": 12, "width": 16},
            {"id": 8, "file_name": "c.png"},
        ],
        "annotations": [
            {"id": 40, "image_id": 7, "category_id": 18, "bbox": [2, 2, 6, 4], "segmentation": [[2, 2, 8, 2, 8, 6, 2, 6]]},
            {"id": 2, "image_id": 9, "category_id": 3, "bbox": [1, 1, 3, 5], "area": 12.5, "iscrowd": 0,
             "segmentation": runs(12, 16, (1, 1, 3, 5))},
            {"id": 11, "image_id": 7, "category_id": 3, "bbox": [0, 0, 16, 12], "iscrowd": 1, "area": 192,
             "segmentation": {"size": [12, 16], "counts": [0, 192]}},
            {"id": 5, "image_id": 8, "category_id": 18, "bbox": [4, 4, 5, 6], "segmentation": [[4, 4, 9, 4, 9, 10, 4, 10]]},
        ],
    }  # fmt: skip


def write(folder: Path, truth: dict[str, Any], name: str = "train.json") -> Path:
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(truth))
    for i, image in enumerate(truth["images"]):
        pixels = np.full((12, 16, 3), 10 * i, np.uint8)
        Image.fromarray(pixels).save(folder / "images" / image["file_name"])
    return folder


Load = Callable[..., DetectionDataset]


@pytest.fixture
def load(composed: Callable[..., DictConfig]) -> Load:
    """The `coco` data set of a folder, through the real config."""

    def load_it(folder: Path, *overrides: str, part: str = "train") -> DetectionDataset:
        cfg = composed(
            "dataset=coco", f"dataset.root={folder}", "dataset.train_annotations=train.json", "dataset.train_images=images",
            "dataset.val_annotations=null", "dataset.val_images=images", "dataset.val_size=1", *overrides,
        )  # fmt: skip
        return build(cfg.dataset, group="dataset", allow=[], part=part)

    return load_it


def everything(load: Load, folder: Path, *overrides: str) -> dict[str, Any]:
    """All samples of both parts by file name."""
    found = {}
    for part in ("train", "val"):
        data = load(folder, *overrides, part=part)
        for i, name in enumerate(data.image_names):
            image, target = data[i]
            check_sample(image, target, data.class_map, data.iou_types, name)
            found[name] = (image, target)
    return found


def test_samples_are_what_the_file_says(tmp_path: Path, load: Load) -> None:
    samples = everything(load, write(tmp_path, content()))
    assert sorted(samples) == ["a.png", "b.png", "c.png", "d.png"]
    image, target = samples["b.png"]
    assert image.shape == (3, 12, 16)
    assert target["image_id"] == 7
    # Labels follow the order of the ids: cat 3, dog 18, cow 90.
    assert target["labels"].tolist() == [2, 1]
    assert target["boxes"].tolist() == [[2, 2, 8, 6], [0, 0, 16, 12]]
    assert target["iscrowd"].tolist() == [0, 1]
    assert target["masks"].sum((1, 2)).tolist() == [24, 192]
    assert target["area"].tolist() == [24, 192]  # the polygon's, where the file has none
    assert samples["a.png"][1]["area"].tolist() == [12.5]
    assert len(samples["d.png"][1]["labels"]) == 0
    assert samples["c.png"][1]["masks"].shape == (1, 12, 16)


def test_the_ground_truth_has_the_files_own_ids_and_numbers(tmp_path: Path, load: Load) -> None:
    truth = load(write(tmp_path, content()), "dataset.val_size=0").ground_truth()
    assert {image["id"]: image["file_name"] for image in truth["images"]}[8] == "c.png"
    assert truth["categories"] == [{"id": 3, "name": "cat"}, {"id": 18, "name": "dog"}, {"id": 90, "name": "cow"}]
    rows = {tuple(row["bbox"]): row for row in truth["annotations"]}
    assert sorted(row["id"] for row in rows.values()) == [1, 2, 3, 4]
    assert rows[1, 1, 3, 5]["category_id"] == 3
    assert rows[2, 2, 6, 4]["segmentation"] == [[2, 2, 8, 2, 8, 6, 2, 6]]
    assert rows[0, 0, 16, 12]["iscrowd"] == 1


def test_classes_are_taken_by_name_and_in_order(tmp_path: Path, load: Load) -> None:
    samples = everything(load, write(tmp_path, content()), "dataset.classes=[dog]")
    assert {name: target["labels"].tolist() for name, (_, target) in samples.items()} == {
        "a.png": [], "b.png": [1], "c.png": [1], "d.png": [],
    }  # fmt: skip
    assert load(tmp_path, "dataset.classes=[dog,cat]").class_map.category_ids == (18, 3)
    with pytest.raises(UserError, match="no class 'horse'; the files have cat, dog, cow"):
        load(tmp_path, "dataset.classes=[horse]")


def test_boxes_alone_may_be_taken(tmp_path: Path, load: Load) -> None:
    data = load(write(tmp_path, content()), "dataset.iou_types=[bbox]")
    assert data.iou_types == ("bbox",)
    assert "masks" not in data[0][1]


def test_parts_may_have_files_of_their_own(tmp_path: Path, load: Load) -> None:
    write(tmp_path, content())
    other = content()
    # Other ids for the same names: labels must agree all the same.
    other["categories"] = [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}]
    other["annotations"] = [{"id": 1, "image_id": 9, "category_id": 1, "bbox": [1, 1, 2, 2]}]
    write(tmp_path, other, "val.json")
    overrides = ("dataset.val_annotations=val.json", "dataset.fraction=0.5", "dataset.iou_types=[bbox]")
    train, val = load(tmp_path, *overrides), load(tmp_path, *overrides, part="val")
    assert (len(train), len(val)) == (2, 4)
    assert val.class_map.names == train.class_map.names == ("cat", "dog", "cow")
    assert val.class_map.category_ids == (2, 1, 3)
    assert [val[i][1]["labels"].tolist() for i in range(4)] == [[2], [], [], []]
    assert val.ground_truth()["annotations"][0]["category_id"] == 1


def test_a_class_that_only_the_validation_file_has_is_an_error(tmp_path: Path, load: Load) -> None:
    write(tmp_path, content())
    other = content()
    other["categories"].append({"id": 4, "name": "horse"})
    write(tmp_path, other, "val.json")
    with pytest.raises(UserError, match=r"val\.json: class 'horse' is none of the training files' cat, dog, cow"):
        load(tmp_path, "dataset.val_annotations=val.json", part="val")


def test_files_are_read_once_for_all_parts(tmp_path: Path, load: Load) -> None:
    write(tmp_path, content())
    with readings_kept() as readings:
        load(tmp_path)
        load(tmp_path, part="val")
    assert len(readings) == 1


def test_parts_of_a_run_are_built_from_the_config(tmp_path: Path, composed: Callable[..., DictConfig]) -> None:
    write(tmp_path, content())
    cfg = composed(
        "dataset=coco", f"dataset.root={tmp_path}", "dataset.train_annotations=train.json", "dataset.train_images=images",
        "dataset.val_annotations=null", "dataset.folds=2", "dataset.fold=1",
    )  # fmt: skip
    data = parts.data_sets(cfg)
    assert {part: len(images) for part, images in data.items()} == {"train": 2, "val": 2}


def test_an_image_of_another_size_than_the_file_says_is_named(tmp_path: Path, load: Load) -> None:
    write(tmp_path, content())
    Image.new("RGB", (16, 13)).save(tmp_path / "images" / "a.png")
    data = load(tmp_path, "dataset.val_size=0")
    with pytest.raises(UserError, match=r"a\.png: 13 x 16 pixels .*annotations say 12 x 16"):
        data[0]


def test_a_turned_photograph_is_taken_as_it_is_seen(tmp_path: Path, load: Load) -> None:
    write(tmp_path, content())
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (12, 16)).save(tmp_path / "images" / "a.jpg", exif=exif)
    truth = content()
    truth["images"][2] = {"id": 9, "file_name": "a.jpg"}
    (tmp_path / "train.json").write_text(json.dumps(truth))
    data = load(tmp_path, "dataset.val_size=0")
    assert data.get_height_and_width(0) == (12, 16)
    assert data[0][0].shape == (3, 12, 16)


def test_missing_images_are_counted_before_a_run(tmp_path: Path, load: Load) -> None:
    write(tmp_path, content())
    (tmp_path / "images" / "b.png").unlink()
    with pytest.raises(UserError, match=r"b\.png: 1 of 4 image file\(s\)"):
        load(tmp_path)
    assert sorted(everything(load, tmp_path, "dataset.invalid=drop")) == ["a.png", "c.png", "d.png"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not JSON"),
        ("[]", "needs the lists images, annotations and categories"),
        ('{"images": [], "annotations": [], "categories": []}', "name at least one class"),
        (
            '{"images": [], "annotations": [], "categories": [{"id": 1}]}',
            "each needs an id, a whole number, and a name",
        ),
        (
            '{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}',
            "id 1 stands twice",
        ),
        (
            '{"images": [{"id": 1}], "annotations": [], "categories": [{"id": 1, "name": "a"}]}',
            "each needs a file_name and an id",
        ),
        (
            '{"images": [{"id": 1, "file_name": "a", "height": 0, "width": 4}], "annotations": [], '
            '"categories": [{"id": 1, "name": "a"}]}',
            "height 0 and width 4; give whole pixels",
        ),
    ],
)
def test_what_is_no_coco_file_is_refused_in_a_line(tmp_path: Path, load: Load, text: str, said: str) -> None:
    (tmp_path / "train.json").write_text(text)
    with pytest.raises(UserError, match=said) as refused:
        load(tmp_path)
    assert "train.json" in str(refused.value)
    assert len(str(refused.value).splitlines()) <= 2


def test_a_file_that_is_not_there_is_named(tmp_path: Path, load: Load) -> None:
    with pytest.raises(UserError, match=r"train\.json: No such file"):
        load(tmp_path)


@pytest.mark.parametrize("seed", range(20))
def test_compressed_run_lengths_are_read_as_pycocotools_writes_them(seed: int) -> None:
    random = np.random.default_rng(seed)
    height, width = random.integers(1, 60, 2)
    mask = np.asfortranarray(random.random((height, width)) < random.random(), dtype=np.uint8)
    encoded: Any = coco_mask.encode(mask)
    lengths = _run_lengths(encoded["counts"])
    flat = np.repeat(np.arange(len(lengths)) % 2, lengths)
    assert torch.equal(torch.from_numpy(flat.reshape(width, height).T.copy()), torch.from_numpy(mask).long())


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("bbox", [1, 2, 3], "no list of x, y, width, height"),
        ("bbox", ["1", "2", "3", "4"], "real number"),
        ("segmentation", [[1, 2, 3]], "a polygon of 3 numbers"),
        ("segmentation", {"size": [12, 16], "counts": [5, 5]}, "run lengths for 10 pixels, but the image has 192"),
        ("segmentation", {"size": [16, 12], "counts": "06"}, r"of size \[16, 12\], but the image has \[12, 16\]"),
        ("segmentation", {"size": [12, 16], "counts": "\x7f"}, "hold the character"),
        ("segmentation", "none", "neither a list of polygons nor run lengths"),
        ("category_id", 4, "category_id 4 is no category's"),
        ("image_id", 1000, "image_id 1000 is no image's"),
    ],
)
def test_what_an_object_says_wrongly_is_named_with_its_id(
    tmp_path: Path, load: Load, field: str, value: Any, said: str
) -> None:
    truth = content()
    truth["annotations"][0][field] = value
    write(tmp_path, truth)
    with pytest.raises(UserError, match=said) as refused:
        load(tmp_path)
    assert "annotation 40" in str(refused.value)
    samples = everything(load, tmp_path, "dataset.invalid=drop")
    assert sum(len(target["labels"]) for _, target in samples.values()) == 3
