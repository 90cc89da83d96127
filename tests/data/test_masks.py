"""Images and instance-id masks: how they find each other, what a mask may be, and what is said of files that are not right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SHARED, write_pennfudan
from omegaconf import OmegaConf
from PIL import Image

from detlab.config import CONF, build
from detlab.data.dataset import IndexedDataset
from detlab.data.images import read_instances
from detlab.data.masks import instance_runs
from detlab.errors import UserError
from detlab.masks import enclosing_boxes, encode

SIZE = (40, 60)
PENNFUDAN = {"images": "PNGImages", "masks": "PedMasks", "classes": ["pedestrian"]}


def load(root: Path, part: str = "train", *, fmt: str = "masks", **changes: Any) -> IndexedDataset:
    node: Any = OmegaConf.to_container(OmegaConf.load(CONF / "dataset" / f"{fmt}.yaml"))
    return build({**node, "root": str(root), "val_size": 0, **changes}, group="dataset", part=part)


def instances() -> np.ndarray:
    """Three objects, of which the second lies in two pieces and the third fills the last column."""
    ids = np.zeros(SIZE, np.uint8)
    ids[3:20, 5:15] = 1
    ids[0:4, 20:30] = ids[36:40, 25:40] = 7
    ids[:, 50:60] = 200
    return ids


def write(root: Path, name: str, mask: Image.Image, *, suffix: str = ".png") -> Path:
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", SIZE[::-1], "gray").save(root / "images" / f"{name}{suffix}")
    mask.save(root / "masks" / f"{name}_mask.png")
    return root


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """Three images with the same mask."""
    for name in ("a", "b", "c"):
        write(tmp_path / "good", name, Image.fromarray(instances()))
    return tmp_path / "good"


def test_each_value_above_0_is_one_object_with_its_box_area_and_mask(good: Path) -> None:
    target = load(good)[0][1]
    assert "masks" in target
    pixels = [(instances() == value).astype(np.uint8) for value in (1, 7, 200)]
    assert (target["masks"].numpy() == np.stack(pixels)).all()
    assert target["boxes"].tolist() == [[5, 3, 15, 20], [20, 0, 40, 40], [50, 0, 60, 40]]
    assert target["area"].tolist() == [170, 100, 400]
    assert load(good).class_map.names == ("object",)


def test_run_lengths_are_those_of_the_masks_one_by_one() -> None:
    random = np.random.default_rng(0)
    for k in range(200):
        shape, dtype = random.integers(1, 12, 2), (np.uint8, np.uint16, np.int32)[k % 3]
        ids = random.integers(0, 4, shape).astype(dtype) * (1 if k % 2 else 60)
        pixels = np.stack([ids == value for value in np.unique(ids[ids > 0])] or [np.zeros(shape, bool)])
        expected = [rle["counts"].encode() for rle in encode(pixels)] if (ids > 0).any() else []
        assert instance_runs(ids) == expected


def test_boxes_enclose_their_masks(good: Path) -> None:
    write(good, "a", Image.fromarray(np.random.default_rng(1).integers(0, 9, SIZE, np.uint8)))
    target = load(good)[0][1]
    assert "masks" in target
    assert (target["boxes"].numpy() == enclosing_boxes(target["masks"].numpy())).all()


@pytest.mark.parametrize(
    ("mask", "suffix", "values"),
    [
        (Image.fromarray(instances().astype(np.uint16) * 300), ".png", (300, 2100, 60000)),
        (Image.fromarray(instances().astype(np.int32) * 70000), ".tif", (70000, 490000, 14000000)),
        (Image.fromarray(instances() > 0), ".png", (1,)),
    ],
    ids=["16 bits", "32 bits", "1 bit"],
)
def test_a_mask_may_have_1_16_or_32_bits(good: Path, mask: Image.Image, suffix: str, values: tuple[int, ...]) -> None:
    (good / "masks" / "a_mask.png").unlink()
    path = good / "masks" / f"a_mask{suffix}"
    mask.save(path)
    ids = read_instances(path)
    assert sorted(set(ids[ids > 0].tolist())) == list(values)
    assert len(load(good)[0][1]["labels"]) == len(values)


def test_a_palette_is_read_by_its_places_not_by_its_colours(good: Path) -> None:
    same = load(good)[0][1]
    mask = Image.fromarray(instances()).convert("P")
    mask.putdata(instances().ravel().tolist())
    mask.putpalette([value for i in range(256) for value in (255 - i, i, 128)])
    write(good, "a", mask)
    with Image.open(good / "masks" / "a_mask.png") as stored:
        assert stored.mode == "P"
    found = load(good)[0][1]
    assert "masks" in found
    assert "masks" in same
    assert torch.equal(found["masks"], same["masks"])


def test_a_mask_is_turned_as_its_orientation_says(tmp_path: Path) -> None:
    root = write(tmp_path / "r", "a", Image.fromarray(instances()))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", SIZE[::-1]).save(root / "images" / "a.png", exif=exif)
    with pytest.raises(UserError, match=r"a_mask\.png: 40 x 60 pixels, but its image has 60 x 40"):
        load(root)
    Image.fromarray(instances()).save(root / "masks" / "a_mask.png", exif=exif)
    target = load(root)[0][1]
    assert "masks" in target
    assert (target["masks"][0].numpy() == np.rot90(instances() == 1, -1)).all()


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        ("RGB", "a mask of 3 channels (RGB); expected one, with the number of the object in each pixel"),
        ("RGBA", "a mask of 4 channels (RGBA); expected one"),
        ("LA", "a mask of 2 channels (LA); expected one"),
        ("F", "a mask with values that are not whole or below 0 (F)"),
        ("negative", "a mask with values that are not whole or below 0 (I)"),
        ("size", "10 x 10 pixels, but its image has 40 x 60"),
        ("damaged", "not readable as an image"),
    ],
)
def test_a_mask_that_is_not_right_is_refused_by_name_or_left_out_with_its_image(
    good: Path, mode: str, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = good / "masks" / "b_mask.png"
    path.unlink()
    made = {
        "negative": Image.fromarray(instances().astype(np.int32) - 1),
        "size": Image.new("L", (10, 10)),
        "damaged": Image.new("L", (10, 10)),
    }
    mask = made[mode] if mode in made else Image.new(mode, SIZE[::-1])
    path = path.with_suffix(".tif") if mode in ("F", "negative") else path
    mask.save(path)
    if mode == "damaged":
        path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(UserError) as caught:
        load(good)
    assert str(caught.value).startswith(f"{good / 'masks'}: b.png: {path}: ")
    assert said in str(caught.value)
    assert "annotations unreadable" in str(caught.value)
    # As background it would teach what is wrong.
    dropped = load(good, invalid="drop")
    assert list(dropped.image_names) == ["a.png", "c.png"]
    assert dropped.index.image_ids.tolist() == [1, 3]
    assert "1 annotations unreadable" in caplog.text


def test_masks_and_images_without_each_other_are_refused_or_left_out(good: Path) -> None:
    (good / "images" / "b.png").unlink()
    with pytest.raises(UserError, match=r"masks/b_mask\.png: a mask without its image images/b\.\*"):
        load(good)
    (good / "masks" / "a_mask.png").unlink()
    with pytest.raises(UserError, match="2 in all: 1 unknown image, 1 annotations missing"):
        load(good)
    assert list(load(good, invalid="drop").image_names) == ["c.png"]


def test_an_image_that_cannot_be_read_is_refused_or_left_out(good: Path) -> None:
    (good / "images" / "b.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"masks: b\.png: not readable as an image .*\(image unreadable"):
        load(good)
    assert list(load(good, invalid="drop").image_names) == ["a.png", "c.png"]


def test_images_of_any_suffix_find_their_masks_also_in_folders(tmp_path: Path) -> None:
    root = tmp_path / "r"
    for folder, suffix in (("x", ".jpg"), ("y", ".TIF"), ("y", ".webp")):
        name = f"{folder}/{suffix[1:]}"
        for place in ("images", "masks"):
            (root / place / folder).mkdir(parents=True, exist_ok=True)
        write(root, name, Image.fromarray(instances()), suffix=suffix)
    (root / "images" / "x" / "notes.md").write_text("no image")
    (root / "masks" / ".hidden.png").write_text("no image")
    assert list(load(root).image_names) == ["x/jpg.jpg", "y/TIF.TIF", "y/webp.webp"]


@pytest.mark.parametrize("masks", [".", "inner"])
def test_the_masks_may_lie_in_the_folder_of_the_images(tmp_path: Path, masks: str) -> None:
    (tmp_path / "inner").mkdir()
    for name in ("a", "b"):
        Image.new("RGB", SIZE[::-1]).save(tmp_path / f"{name}_image.jpg")
        Image.fromarray(instances()).save(tmp_path / masks / f"{name}.label.png")
    dataset = load(tmp_path, images=".", masks=masks, image_suffix="_image", mask_suffix=".label")
    assert list(dataset.image_names) == ["a_image.jpg", "b_image.jpg"]
    assert len(dataset[1][1]["labels"]) == 3


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"images": "gone"}, r"dataset\.root=.*: .*gone is no folder; give the folder that has gone/ and masks/"),
        ({"masks": "empty"}, r"dataset\.root=.*: .*empty holds no image"),
        ({"mask_suffix": "_label"}, r"a_mask\.png: not called NAME_label\.png, as the files of masks/ are"),
        ({"image_suffix": "_x"}, r"a\.png: not called NAME_x\.png, as the files of images/ are"),
        ({"classes": ["cat", "dog"]}, r"dataset\.classes: \['cat', 'dog'\]; masks tell objects, not classes"),
        ({"classes": []}, r"dataset\.classes: \[\]; masks tell objects"),
        ({"iou_types": ["keypoints"]}, r"dataset\.iou_types: 'keypoints', but the files hold only bbox, segm"),
    ],
)
def test_keys_that_do_not_fit_the_folders_are_refused_in_a_line(good: Path, changes: Any, said: str) -> None:
    (good / "empty").mkdir()
    with pytest.raises(UserError, match=said) as caught:
        load(good, **changes)
    assert "\n" not in str(caught.value)


def test_two_images_for_one_mask_are_refused(good: Path) -> None:
    Image.new("RGB", SIZE[::-1]).save(good / "images" / "a.jpg")
    with pytest.raises(UserError, match=r"a\.png: a\.jpg has the same name beside it; keep one of them"):
        load(good)


def same(one: IndexedDataset, other: IndexedDataset) -> None:
    """Two data sets with the same ground truth, and the same samples, a few of them compared."""
    truths = [dataset.ground_truth() for dataset in (one, other)]
    for key in ("images", "annotations", "categories"):
        assert truths[0][key] == truths[1][key]
    for i in range(0, len(one), 20):
        (image, target), (image2, target2) = one[i], other[i]
        assert torch.equal(image, image2)
        assert target.keys() == target2.keys()
        assert all(np.array_equal(np.asarray(target[key]), np.asarray(target2[key])) for key in target)


def test_pennfudan_is_this_format_with_another_split(tmp_path: Path) -> None:
    root = write_pennfudan(tmp_path / "PennFudanPed", 5)
    # Two folds are split by the same rule.
    for fold in (0, 1):
        keys = {"folds": 2, "fold": fold}
        same(load(root, "val", **PENNFUDAN, **keys), load(root, "val", fmt="pennfudan", **keys))


@pytest.mark.slow
def test_the_real_pennfudan_through_masks_is_what_pennfudan_gives() -> None:
    root = SHARED / "data" / "PennFudanPed"
    if not root.is_dir():
        pytest.skip("the real Penn-Fudan is not in ../shared/data")
    split = {"split_file": str(SHARED / "data" / "pennfudan_split_0.json")}
    for part, count in (("train", 120), ("val", 50)):
        masks = load(root, part, **PENNFUDAN, **split)
        assert len(masks) == count
        same(masks, load(root, part, fmt="pennfudan", **split))
