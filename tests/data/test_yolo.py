"""YOLO's format: what a data.yaml may say, what the lines of labels become, and what is said of files that are not right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from detlab.config import CONF, build
from detlab.data.dataset import IndexedDataset
from detlab.data.yolo import label_path
from detlab.errors import UserError
from detlab.structures import PERSON

WIDTH, HEIGHT = 100, 40
DATA = "train: images/train\nval: images/val\nnames: [cat, dog]\n"


def load(root: Path, part: str = "train", **changes: Any) -> IndexedDataset:
    node: Any = OmegaConf.to_container(OmegaConf.load(CONF / "dataset" / "yolo.yaml"))
    return build({**node, "data": str(root / "data.yaml"), **changes}, group="dataset", part=part)


def write(root: Path, labels: dict[str, str | None], data: str = DATA) -> Path:
    """A data.yaml, a grey image for each name, and its label file where there is a text for it."""
    root.mkdir(exist_ok=True)
    (root / "data.yaml").write_text(data)
    for name, text in labels.items():
        image = root / "images" / f"{name}.png"
        image.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (WIDTH, HEIGHT), 128).save(image)
        if text is not None:
            label = root / "labels" / f"{name}.txt"
            label.parent.mkdir(parents=True, exist_ok=True)
            label.write_text(text)
    return root


BOX = "0 0.5 0.5 0.2 0.5\n"  # x 40 to 60, y 10 to 30
GOOD: dict[str, str | None] = {"train/a": BOX, "train/b": "1 0.1 0.25 0.1 0.1\n0 0.5 0.5 0.2 0.5\n", "val/c": BOX}


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """Two images for training and one for validation, with boxes."""
    return write(tmp_path / "good", GOOD)


def test_a_line_is_a_box_by_its_centre_in_fractions_of_the_image(good: Path) -> None:
    dataset = load(good)
    target = dataset[1][1]
    assert dataset.iou_types == ("bbox",)
    # In float64 and float32 these products are exact or rounded to the nearest.
    assert target["boxes"].tolist() == [[5.0, 8.0, 15.0, 12.0], [40.0, 10.0, 60.0, 30.0]]
    assert [dataset.class_map.name(k) for k in target["labels"].tolist()] == ["dog", "cat"]
    assert target["area"].tolist() == [40.0, 400.0]
    assert dataset.index.annotation_ids.tolist() == [1, 1, 2]


def test_six_digits_are_a_box_to_half_a_millionth_of_the_side(tmp_path: Path) -> None:
    x0, y0, x1, y1 = 7, 3, 40, 29
    numbers = ((x0 + x1) / 2 / WIDTH, (y0 + y1) / 2 / HEIGHT, (x1 - x0) / WIDTH, (y1 - y0) / HEIGHT)
    root = write(tmp_path / "r", {"train/a": "0 " + " ".join(f"{n:.6f}" for n in numbers), "val/b": BOX})
    # The centre and half the width are each rounded by up to 0.5e-6 of the side; float32 adds less.
    assert load(root)[0][1]["boxes"][0].tolist() == pytest.approx([x0, y0, x1, y1], abs=1e-6 * WIDTH)


def test_a_box_that_rounding_puts_over_the_border_is_cut_there(tmp_path: Path) -> None:
    root = write(tmp_path / "r", {"train/a": "0 0.5 0.5 1.000002 1.000002", "val/b": BOX})
    assert load(root)[0][1]["boxes"].tolist() == [[0.0, 0.0, 100.0, 40.0]]


def test_a_line_of_pairs_is_a_polygon_whose_extent_is_the_box(tmp_path: Path) -> None:
    root = write(tmp_path / "r", {"train/a": "1 0.1 0.25 0.3 0.25 0.3 0.75 0.1 0.75\n", "val/b": BOX})
    dataset = load(root)
    _, target = dataset[0]
    assert dataset.iou_types == ("bbox", "segm")
    assert target["boxes"].tolist() == [[10.0, 10.0, 30.0, 30.0]]
    assert target["area"].tolist() == [400.0]
    assert "masks" in target
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[10:30, 10:30] = 1
    assert (target["masks"][0].numpy() == expected).all()
    assert dataset.ground_truth()["annotations"][0]["segmentation"] == [[10, 10, 30, 10, 30, 30, 10, 30]]


def test_pixels_are_those_of_the_image_as_it_is_seen(tmp_path: Path) -> None:
    root = write(tmp_path / "r", {"train/a": BOX, "val/b": BOX})
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying, seen upright
    path = root / "images" / "train" / "a.jpg"
    Image.new("RGB", (WIDTH, HEIGHT)).save(path, exif=exif)
    path.with_suffix(".png").unlink()
    dataset = load(root)
    image, target = dataset[0]
    assert tuple(image.shape[1:]) == dataset.get_height_and_width(0) == (WIDTH, HEIGHT)
    assert target["boxes"].tolist() == [[16.0, 25.0, 24.0, 75.0]]


def test_the_parts_are_the_files_own_and_a_missing_one_is_split_off(good: Path) -> None:
    assert list(load(good).image_names) == ["images/train/a.png", "images/train/b.png"]
    assert list(load(good, "val").image_names) == ["images/val/c.png"]
    assert len(load(good, "test")) == 0
    write(good, GOOD, "train: images/train\nval: null\ntest:\nnames: [cat, dog]\n")
    parts = [list(load(good, part, val_size=1).image_names) for part in ("train", "val")]
    assert sorted(parts[0] + parts[1]) == ["images/train/a.png", "images/train/b.png"]
    assert len(parts[1]) == 1


@pytest.mark.parametrize(
    "data",
    [
        "path: {root}\ntrain: images/train\nval: images/val\nnames: {{0: cat, 1: dog}}\nnc: 2\n",
        "path: ../good\ntrain: [images/train]\nvalidation: images/val\nnames: {{1: dog, 0: cat}}\ndownload: https://nowhere\n",
        "train: train.txt\nval: images/val\nnames:\n  - cat\n  - dog\n",
        "train: ../images/train\nval: ../images/val\nnames: ['cat', 'dog']\n",
        "train: {root}/images/train\nval: {root}/images/val\nnames: [cat, dog]\n",
    ],
    ids=["dict", "list", "txt", "roboflow", "absolute"],
)
def test_a_data_yaml_may_say_the_same_in_other_ways(good: Path, data: str) -> None:
    same = load(good)
    (good / "train.txt").write_text(f"./images/train/b.png\n\n{good}/images/train/a.png\n")
    (good / "data.yaml").write_text(data.format(root=good))
    found = load(good)
    assert list(found.image_names) == list(same.image_names)
    assert found.ground_truth() == same.ground_truth()
    assert found.class_map.categories() == [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}]
    assert len(load(good, "val")) == 1


def test_names_are_words_as_they_are_written_and_their_numbers_may_have_gaps(good: Path) -> None:
    write(good, GOOD, "train: images/train\nnames: {7: no, 0: 1.10, 1: on}\n")
    assert load(good).class_map.categories() == [
        {"id": 0, "name": "1.10"}, {"id": 1, "name": "on"}, {"id": 7, "name": "no"}
    ]  # fmt: skip
    write(good, GOOD, "train: images/train\nnc: 2\n")
    assert load(good).class_map.names == ("class_0", "class_1")


def test_folders_in_the_folder_of_a_part_belong_to_it_and_hidden_files_do_not(tmp_path: Path) -> None:
    root = write(
        tmp_path / "r", {"train/x/a": BOX, "train/y/a": None, "train/.b": BOX}, "train: images\nnames: [cat]\n"
    )
    dataset = load(root)
    assert list(dataset.image_names) == ["images/train/x/a.png", "images/train/y/a.png"]
    assert [len(dataset[i][1]["labels"]) for i in range(2)] == [1, 0]


def test_the_last_folder_called_images_becomes_labels_and_without_one_the_label_lies_beside(tmp_path: Path) -> None:
    assert label_path(Path("/images/set/images/train/a.b.jpg")) == Path("/images/set/labels/train/a.b.txt")
    assert label_path(Path("/set/train/a.jpg")) == Path("/set/train/a.txt")
    root = write(tmp_path / "r", {}, "train: photos\nnames: [cat]\n")
    (root / "photos").mkdir()
    Image.new("L", (WIDTH, HEIGHT)).save(root / "photos" / "a.png")
    (root / "photos" / "a.txt").write_text(BOX)
    (root / "photos" / "readme.txt").write_text("hello")
    assert load(root)[0][1]["boxes"].tolist() == [[40.0, 10.0, 60.0, 30.0]]


def test_blank_lines_a_byte_order_mark_and_a_list_of_classes_are_passed_over(good: Path) -> None:
    (good / "labels" / "train" / "a.txt").write_text("\ufeff\n" + BOX + "\n\n", encoding="utf-8")
    (good / "labels" / "train" / "classes.txt").write_text("cat\ndog\n")
    dataset = load(good)
    assert dataset[0][1]["boxes"].tolist() == [[40.0, 10.0, 60.0, 30.0]]
    assert dataset.index.annotation_ids.tolist() == [2, 1, 2]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("0 0.5 0.5 0.2", "4 numbers; a class and a box are 5"),
        ("0 0.5 0.5 0.2 0.5 0.9", "6 numbers; a class and a box are 5"),
        ("0 0.1 0.1 0.2 0.1 0.2 0.2 0.3", "8 numbers; a class and a box are 5, a class and a polygon 7 or more"),
        ("0 0.5 0.5 0.2 wide", "could not convert string to float: 'wide'"),
        ("2 0.5 0.5 0.2 0.5", "class 2 is none of 0, 1"),
        ("-1 0.5 0.5 0.2 0.5", "class -1 is none of 0, 1"),
        ("0.5 0.5 0.5 0.2 0.5", "class 0.5 is none of 0, 1"),
        ("nan 0.5 0.5 0.2 0.5", "class nan is none of 0, 1"),
        ("0 50 20 20 20", "50 is in pixels, perhaps; expected fractions"),
        ("0 nan 0.5 0.2 0.5", "nan is not finite (unreadable object"),
        ("0 0.5 0.5 inf 0.5", "inf is not finite (unreadable object"),
        ("0 0.5 0.5 0 0.5", "has no width or no height"),
        ("0 0.95 0.5 0.2 0.5", "reaches out of the image of 40 x 100"),
        ("0 0.1 0.1 0.2 0.1 0.2 nan", "nan is not finite (unreadable object"),
        ("0 0.5 0.5 0.2 -0.5", "has no width or no height"),
        ("0 0.5 0.5 1e400 0.5", "inf is not finite (unreadable object"),
    ],
)
def test_a_line_that_is_not_right_is_refused_with_its_image_and_number_or_left_out(
    good: Path, line: str, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    (good / "labels" / "train" / "b.txt").write_text(f"{BOX}\n{line}\n")
    with pytest.raises(UserError) as caught:
        load(good)
    assert said in str(caught.value)
    assert str(caught.value).startswith(f"{good / 'data.yaml'}: images/train/b.png, annotation 3: ")
    assert len(str(caught.value).splitlines()) == 2
    assert "1 in all" in str(caught.value)
    assert load(good, invalid="drop")[1][1]["boxes"].tolist() == [[40.0, 10.0, 60.0, 30.0]]
    assert "1 object(s) dropped" in caplog.text


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("train: [\n", r"data\.yaml: not YAML \(while parsing"),
        ("", r"data\.yaml: holds no keys; it needs train and names"),
        ("names: [cat]\n", r"data\.yaml: train is missing"),
        ("train: images/train\n", r"data\.yaml: names: \[\]; give a list of names"),
        ("train: images/train\nnames: cat\n", r"data\.yaml: names: cat; give a list of names"),
        ("train: images/train\nnames: [[cat]]\n", r"data\.yaml: names: .*; give a list of names"),
        (
            "train: images/train\nnames: {a: cat}\n",
            r"data\.yaml: names: 'a' is not allowed; give a whole number from 0",
        ),
        ("train: images/train\nnames: {-1: cat}\n", r"data\.yaml: names: '-1' is not allowed"),
        ("train: images/train\nnames: [cat, cat]\n", r"data\.yaml: names: 'cat' stands twice"),
        ("train: images/train\nnames: {0: cat, 00: dog}\n", r"data\.yaml: names: 0 stands twice"),
        ("train: images/train\nnames: [cat, dog]\nnc: 3\n", r"data\.yaml: nc: 3, but names has 2"),
        ("train: images/train\nnames: [cat, dog]\nnc: two\n", r"data\.yaml: nc: 'two' is not allowed"),
        ("path: gone\ntrain: images/train\nnames: [cat]\n", r"data\.yaml: path: .*gone is no folder"),
        ("train: images/gone\nnames: [cat]\n", r"data\.yaml: train: .*gone does not exist; correct path or train"),
        ("train: data.yaml\nnames: [cat]\n", r"data\.yaml: train: .*data\.yaml is no \.txt that lists images"),
        ("train: {a: b}\nnames: [cat]\n", r"data\.yaml: train: \{'a': 'b'\}; give a folder"),
        ("train: labels\nnames: [cat]\n", r"data\.yaml: train: .*labels holds no image"),
        ("train: [images, images/train]\nnames: [cat, dog]\n", r"train: the image images/train/a\.png stands twice"),
    ],
)
def test_a_data_yaml_that_is_not_right_is_refused_in_a_line(good: Path, data: str, said: str) -> None:
    (good / "data.yaml").write_text(data)
    with pytest.raises(UserError, match=said) as caught:
        load(good)
    assert "\n" not in str(caught.value)


def test_a_data_yaml_that_is_missing_or_binary_is_named(good: Path) -> None:
    with pytest.raises(UserError, match=r"dataset\.data=.*gone.yaml: No such file"):
        load(good, data=str(good / "gone.yaml"))
    with pytest.raises(UserError, match=r"dataset\.data=.*: Is a directory"):
        load(good, data=str(good))
    (good / "data.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"data\.yaml: not YAML"):
        load(good)


def test_a_data_yaml_runs_no_code(good: Path, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    (good / "data.yaml").write_text(DATA + f"x: !!python/object/apply:os.mkdir ['{mark}']\n")
    load(good)
    assert not mark.exists()


def test_an_image_that_a_list_names_and_is_missing_is_refused_or_left_out(good: Path) -> None:
    (good / "train.txt").write_text("./images/train/a.png\n./images/train/gone.png\n")
    (good / "labels" / "train" / "gone.txt").write_text(BOX)
    write(good, {}, "train: train.txt\nnames: [cat, dog]\n")
    with pytest.raises(UserError, match=r"gone\.png: 1 of 2 image file\(s\) .* missing"):
        load(good, val_size=0)
    assert list(load(good, val_size=0, invalid="drop").image_names) == ["images/train/a.png"]


def test_a_label_file_without_its_image_is_refused_or_passed_over(good: Path) -> None:
    (good / "images" / "train" / "b.png").unlink()
    with pytest.raises(UserError, match=r"labels/train/b\.txt: a label file without its image"):
        load(good)
    assert list(load(good, invalid="drop").image_names) == ["images/train/a.png"]


def test_an_image_or_a_label_file_that_cannot_be_read_is_refused_or_left_out(good: Path) -> None:
    (good / "images" / "train" / "a.png").write_bytes(b"no image")
    with pytest.raises(
        UserError, match=r"data\.yaml: images/train/a\.png: not readable as an image.*\(image unreadable"
    ):
        load(good)
    (good / "labels" / "train" / "b.txt").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(UserError, match="2 in all: 1 image unreadable, 1 annotations unreadable"):
        load(good)
    assert len(load(good, "val")) == 1
    write(good, {"train/d": BOX}, DATA)
    # Without its labels an image would be learnt as background.
    assert list(load(good, invalid="drop").image_names) == ["images/train/d.png"]


def test_a_part_without_any_label_file_says_where_they_would_be(good: Path) -> None:
    (good / "labels").rename(good / "label")
    with pytest.raises(
        UserError, match=r"train: none of 2 image\(s\) has a label file; that of .*a\.png would be .*a\.txt"
    ):
        load(good)


POSE = "train: images/train\nkpt_shape: [{points}, {numbers}]\nnames: [person]\n"
POINTS = {"names": ["left_end", "middle", "right_end"], "flip_pairs": None, "sigmas": [0.1, 0.1, 0.1], "skeleton": None}


@pytest.mark.parametrize(
    ("numbers", "points"),
    [(3, "0.1 0.5 2 0.2 0.5 1 0.3 0.5 0"), (2, "0.1 0.5 0.2 0.5 -1 -1")],
)
def test_pose_labels_are_boxes_and_points(tmp_path: Path, numbers: int, points: str) -> None:
    root = write(tmp_path / "r", {"train/a": f"0 0.5 0.5 0.2 0.5 {points}\n"}, POSE.format(points=3, numbers=numbers))
    dataset = load(root, val_size=0, keypoints=POINTS)
    assert dataset.iou_types == ("bbox", "keypoints")
    assert dataset.keypoints is not None
    assert dataset.keypoints.flip_pairs == ((0, 2),)
    target = dataset[0][1]
    assert "keypoints" in target
    assert target["boxes"].tolist() == [[40.0, 10.0, 60.0, 30.0]]
    second = 1.0 if numbers == 3 else 2.0
    assert target["keypoints"].tolist() == [[[10.0, 20.0, 2.0], [20.0, 20.0, second], [0.0, 0.0, 0.0]]]


def test_pose_labels_of_seventeen_points_are_a_person_s(tmp_path: Path) -> None:
    line = "0 0.5 0.5 0.2 0.5 " + " ".join(["0.5 0.5 2"] * 17)
    data = POSE.format(points=17, numbers=3) + f"flip_idx: {list(PERSON.mirrored)}\n"
    root = write(tmp_path / "r", {"train/a": line}, data)
    assert load(root, val_size=0).keypoints == PERSON
    write(root, {}, data.replace("[0, 2, 1", "[0, 1, 2"))
    with pytest.raises(UserError, match=r"data\.yaml: kpt_shape: 17 points that are not COCO's"):
        load(root)


@pytest.mark.parametrize(
    ("data", "keypoints", "said"),
    [
        (POSE.format(points=3, numbers=3), None, r"kpt_shape: 3 points that are not COCO's 17 .* dataset\.keypoints"),
        (POSE.format(points=4, numbers=3), POINTS, r"kpt_shape: 4 points, but dataset\.keypoints names 3"),
        (POSE.format(points=3, numbers=4), POINTS, r"kpt_shape: \['3', '4'\] is not allowed"),
        (
            POSE.format(points=3, numbers=2),
            POINTS,
            r"a\.png, annotation 1: 14 numbers; .* 3 points are 11 \(unreadable object",
        ),
        (DATA, POINTS, r"data\.yaml: dataset\.keypoints is given, but kpt_shape"),
    ],
)
def test_points_that_do_not_fit_are_told(tmp_path: Path, data: str, keypoints: Any, said: str) -> None:
    line = "0 0.5 0.5 0.2 0.5 0.1 0.5 2 0.2 0.5 1 0.3 0.5 0\n"
    root = write(tmp_path / "r", {"train/a": line, "val/b": line}, data)
    with pytest.raises(UserError, match=said):
        load(root, val_size=0, keypoints=keypoints)


def test_with_polygons_a_mere_box_is_a_fault_unless_boxes_are_enough(tmp_path: Path) -> None:
    lines = "0 0.1 0.25 0.3 0.25 0.3 0.75 0.1 0.75\n" + BOX
    root = write(tmp_path / "r", {"train/a": lines, "val/b": BOX})
    with pytest.raises(UserError, match=r"a\.png, annotation 2: has no segmentation, though others have one"):
        load(root)
    assert len(load(root, iou_types=["bbox"])[0][1]["labels"]) == 2
