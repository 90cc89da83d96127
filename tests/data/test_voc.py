"""Pascal VOC's format: pixels from 1, `difficult`, lists of parts, and what is said of files that are not right."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from detlab.config import CONF, build
from detlab.data.dataset import IndexedDataset
from detlab.data.voc import Folders, read_voc
from detlab.errors import UserError
from detlab.evaluation.coco import score

WIDTH, HEIGHT = 100, 40


def load(root: Path, part: str = "train", **changes: Any) -> IndexedDataset:
    node: Any = OmegaConf.to_container(OmegaConf.load(CONF / "dataset" / "voc.yaml"))
    return build({**node, "root": str(root), **changes}, group="dataset", part=part)


def thing(name: str, *corners: float, difficult: str = "<difficult>0</difficult>") -> str:
    """An <object> in six lines."""
    xmin, ymin, xmax, ymax = corners
    return (
        f"<object>\n<name>{name}</name>\n<truncated>1</truncated>{difficult}\n<part><name>head</name><bndbox><xmin>1</xmin>"
        f"</bndbox></part>\n<bndbox><xmin>{xmin}</xmin><ymin>{ymin}</ymin><xmax>{xmax}</xmax><ymax>{ymax}</ymax></bndbox>\n"
        "</object>\n"
    )


def xml(
    *things: str, size: str = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"
) -> str:
    """An annotation of which the first object begins on line 3."""
    return f"<annotation>\n{size}\n{''.join(things)}</annotation>\n"


def write(root: Path, files: dict[str, str], lists: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / "Annotations" / f"{name}.xml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        image = root / "JPEGImages" / f"{name}.jpg"
        image.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (WIDTH, HEIGHT)).save(image)
    for name, text in lists.items():
        path = root / "ImageSets" / "Main" / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


FILES = {
    "b1": xml(thing("dog", 11, 6, 30, 25), thing("cat", 1, 1, 100, 40)),
    "a2": xml(thing("dog", 41, 11, 60, 30), thing("dog", 5, 5, 9, 9, difficult="<difficult>1</difficult>")),
    "c3": xml(thing("bird", 11, 6, 30, 25)),
    "d4": xml(),
}
LISTS = {"train": "b1\na2\n", "val": "d4 \n\nc3\n"}


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """Two images for training, two for validation, one of them empty."""
    return write(tmp_path / "VOC", FILES, LISTS)


def test_pixels_are_counted_from_one_and_the_last_belongs_to_its_box(good: Path) -> None:
    dataset = load(good)
    assert list(dataset.image_names) == ["a2.jpg", "b1.jpg"]
    assert dataset[1][1]["boxes"].tolist() == [[10.0, 5.0, 30.0, 25.0], [0.0, 0.0, 100.0, 40.0]]
    assert dataset[1][1]["area"].tolist() == [400.0, 4000.0]
    truth = dataset.ground_truth()
    assert [a["bbox"] for a in truth["annotations"] if a["image_id"] == 2] == [[10, 5, 20, 20], [0, 0, 100, 40]]


def test_one_based_false_takes_corners_from_zero_behind_the_last_pixel(good: Path) -> None:
    write(good, {"b1": xml(thing("dog", 10, 5, 30, 25), thing("cat", 0.5, 0, 100, 40))}, {})
    assert load(good, one_based=False)[1][1]["boxes"].tolist() == [[10.0, 5.0, 30.0, 25.0], [0.5, 0.0, 100.0, 40.0]]


def test_a_difficult_object_is_not_learnt_and_counts_neither_for_nor_against(good: Path) -> None:
    dataset = load(good)
    target = dataset[0][1]
    assert "ignored" in target
    assert target["ignored"].tolist() == [False, True]
    assert target["iscrowd"].tolist() == [0, 0]
    truth = dataset.ground_truth()
    assert [a["iscrowd"] for a in truth["annotations"]] == [0, 1, 0, 0]
    rows = [{**a, "score": 0.9} for a in truth["annotations"] if not a["iscrowd"]]
    on_difficult = [{**a, "score": 1.0} for a in truth["annotations"] if a["iscrowd"]]
    assert score(truth, rows, "bbox")["bbox/AP"] == pytest.approx(1)
    assert score(truth, rows + on_difficult, "bbox")["bbox/AP"] == pytest.approx(1)


def test_an_absent_difficult_is_none(good: Path) -> None:
    write(good, {"a2": xml(thing("dog", 41, 11, 60, 30, difficult=""))}, {})
    assert not load(good).index.ignored.any()


def test_classes_are_those_of_all_parts_by_name_with_one_id_each(good: Path) -> None:
    for part in ("train", "val"):
        categories = load(good, part).class_map.categories()
        assert categories == [{"id": 1, "name": "bird"}, {"id": 2, "name": "cat"}, {"id": 3, "name": "dog"}]
    assert [load(good, "val").class_map.name(k) for k in load(good, "val")[0][1]["labels"].tolist()] == ["bird"]
    assert load(good, classes=["dog"])[0][1]["labels"].tolist() == [1, 1]
    with pytest.raises(UserError, match=r"dataset\.classes: no class 'horse'; the files have bird, cat, dog"):
        load(good, classes=["horse"])


def test_the_parts_are_the_lists_and_without_a_list_they_are_split(good: Path) -> None:
    assert list(load(good, "val").image_names) == ["c3.jpg", "d4.jpg"]
    assert load(good, "val")[1][1]["boxes"].shape == (0, 4)
    assert len(load(good, "test")) == 0
    parts = {p: list(load(good, p, train_list=None, val_list=None, val_size=1).image_names) for p in ("train", "val")}
    assert sorted(parts["train"] + parts["val"]) == ["a2.jpg", "b1.jpg", "c3.jpg", "d4.jpg"]
    assert len(parts["val"]) == 1
    # What a list takes for validation is not for training.
    assert list(load(good, train_list=None).image_names) == ["a2.jpg", "b1.jpg"]
    halves = [list(load(good, "val", folds=2, fold=k).image_names) for k in range(2)]
    assert sorted(halves) == [["a2.jpg"], ["b1.jpg"]]


def test_images_may_have_any_suffix_and_lie_in_folders(tmp_path: Path) -> None:
    root = write(tmp_path / "VOC", {"x/one": FILES["b1"], "x/two": FILES["a2"]}, {"train": "x/two\nx/one\n"})
    (root / "JPEGImages" / "x" / "one.jpg").rename(root / "JPEGImages" / "x" / "one.PNG")
    assert list(load(root, val_list=None, val_size=0).image_names) == ["x/one.PNG", "x/two.jpg"]


def test_of_two_images_of_one_name_the_file_name_decides(good: Path) -> None:
    Image.new("RGB", (WIDTH, HEIGHT)).save(good / "JPEGImages" / "b1.bmp")
    with pytest.raises(UserError, match=r"JPEGImages: b1\.bmp and b1\.jpg have one name"):
        load(good)
    text = FILES["b1"].replace("<size>", "<filename>b1.bmp</filename><size>")
    (good / "Annotations" / "b1.xml").write_text(text)
    assert list(load(good).image_names) == ["a2.jpg", "b1.bmp"]


@pytest.mark.parametrize(
    "size", ["", "<size><width>0</width><height>0</height></size>", "<size><width>a</width></size>"]
)
def test_a_size_that_is_absent_is_that_of_the_image_as_it_is_seen(good: Path, size: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    (good / "Annotations" / "b1.xml").write_text(xml(thing("dog", 1, 1, 40, 100), size=size))
    Image.new("RGB", (WIDTH, HEIGHT)).save(good / "JPEGImages" / "b1.jpg", exif=exif)
    dataset = load(good)
    assert dataset.get_height_and_width(1) == (WIDTH, HEIGHT)
    image, target = dataset[1]
    assert image.shape == (3, WIDTH, HEIGHT)
    assert target["boxes"].tolist() == [[0.0, 0.0, 40.0, 100.0]]


def test_a_size_that_is_not_the_image_s_is_told(good: Path) -> None:
    write(good, {"b1": FILES["b1"].replace(f"<width>{WIDTH}", "<width>101")}, {})
    with pytest.raises(UserError, match=r"b1\.jpg: 40 x 100 pixels .* but the annotations say 40 x 101"):
        load(good)[1]
    assert list(load(good, invalid="drop").image_names) == ["a2.jpg"]


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (thing("dog", "left", 6, 30, 25), "<bndbox><xmin> is 'left'; expected a number of pixels"),  # type: ignore[arg-type]
        (thing("dog", 11, float("nan"), 30, 25), "<bndbox><ymin> is 'nan'; expected a number of pixels"),
        (thing("dog", 11, 6, float("inf"), 25), "<bndbox><xmax> is 'inf'; expected a number of pixels"),
        (thing("dog", 11, 6, 30, 25).replace("ymax", "zmax"), "<object> lacks <bndbox><ymax>"),
        (thing("dog", 11, 6, 30, 25).replace("<name>dog</name>", ""), "<object> lacks <name>"),
        (thing("", 11, 6, 30, 25), "<name> is empty"),
        (thing("dog", 11, 6, 30, 25, difficult="<difficult>yes</difficult>"), "<difficult> is 'yes'; expected 0 or 1"),
        (thing("dog", 31, 6, 30, 25), "has no width or no height"),
        (thing("dog", 60, 6, 30, 25), "has no width or no height"),
        (thing("dog", 60, 6, 130, 25), "reaches out of the image of 40 x 100"),
    ],
)
def test_an_object_that_is_not_right_is_refused_with_its_image_and_line_or_left_out(
    good: Path, bad: str, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    write(good, {"b1": xml(thing("cat", 1, 1, 9, 9), bad)}, {})
    with pytest.raises(UserError) as caught:
        load(good)
    assert str(caught.value).startswith(f"{good / 'Annotations'}: b1.jpg, annotation 9: ")
    assert said in str(caught.value)
    assert "1 in all" in str(caught.value)
    assert load(good, invalid="drop")[1][1]["boxes"].tolist() == [[0.0, 0.0, 9.0, 9.0]]
    assert "1 object(s) dropped" in caplog.text


LAUGHS = "".join(f'<!ENTITY e{i} "{f"&e{i - 1};" * 10}">' for i in range(1, 30))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no element found: line 1, column 0"),
        (b"<annotation><object></annotation>", "mismatched tag: line 1, column 22"),
        (b"<html></html>", "begins with <html>, not with <annotation>"),
        (b"\x89PNG\r\n\x1a\n\x00", "not well-formed"),
        (b'<?xml version="1.0" encoding="klingon"?><annotation/>', "klingon"),
        (f'<!DOCTYPE a [<!ENTITY e0 "ha">{LAUGHS}]><annotation>&e29;</annotation>'.encode(), "has a DOCTYPE"),
        (b'<!DOCTYPE a SYSTEM "file:///etc/passwd"><annotation/>', "has a DOCTYPE"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>'.encode("utf-16"), "has a DOCTYPE"),
    ],
)
def test_a_file_that_is_no_annotation_is_refused_by_name_or_left_out_with_its_image(
    good: Path, content: bytes, said: str
) -> None:
    (good / "Annotations" / "b1.xml").write_bytes(content)
    begin = time.monotonic()
    with pytest.raises(UserError) as caught:
        load(good)
    assert time.monotonic() - begin < 5
    assert "b1.xml: " in str(caught.value)
    assert said in str(caught.value)
    assert "annotations unreadable" in str(caught.value)
    assert list(load(good, invalid="drop").image_names) == ["a2.jpg"]


def test_a_listed_name_without_annotation_is_refused_with_the_list_s_line_or_left_out(good: Path) -> None:
    write(good, {}, {"train": "b1\n\nx9\na2\n"})
    with pytest.raises(
        UserError, match=r"x9: ImageSets/Main/train\.txt, line 3: no Annotations/x9\.xml \(annotations missing"
    ):
        load(good)
    assert list(load(good, invalid="drop").image_names) == ["a2.jpg", "b1.jpg"]


def test_an_image_that_is_missing_or_unreadable_is_refused_or_left_out(good: Path) -> None:
    (good / "JPEGImages" / "b1.jpg").unlink()
    with pytest.raises(UserError, match=r"b1\.jpg: 1 of 2 image file\(s\) .* missing"):
        load(good)
    assert list(load(good, invalid="drop").image_names) == ["a2.jpg"]
    (good / "Annotations" / "b1.xml").write_text(xml(thing("cat", 1, 1, 9, 9), size=""))
    with pytest.raises(UserError, match=r"b1\.jpg: 1 of 2 image file\(s\) .* missing"):
        load(good)
    (good / "JPEGImages" / "b1.jpg").write_text("no image")
    with pytest.raises(UserError, match=r"b1\.jpg: not readable as an image .*\(image unreadable"):
        load(good)
    assert list(load(good, invalid="drop").image_names) == ["a2.jpg"]


def test_an_image_that_nobody_annotated_is_no_background_but_is_told_of(good: Path) -> None:
    Image.new("RGB", (WIDTH, HEIGHT)).save(good / "JPEGImages" / "e5.jpg")
    names = list(load(good, train_list=None, val_list=None, val_size=0).image_names)
    assert names == ["a2.jpg", "b1.jpg", "c3.jpg", "d4.jpg"]
    folders = Folders(good, "Annotations", "JPEGImages")
    faults = read_voc(folders, {"train": None, "val": None, "test": None}, "train", one_based=True).faults
    assert [(fault.kind, fault.image) for fault in faults] == [("image not listed", "e5.jpg")]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"annotations": "gone"},
            r"dataset\.root=.*: .*gone is no folder; give the folder that has gone/ and JPEGImages/",
        ),
        ({"annotations": "JPEGImages"}, r"JPEGImages holds no \*\.xml"),
        ({"train_list": "gone.txt"}, r"dataset\.train_list: .*gone\.txt: No such file .*; give a file .* or null"),
        ({"val_list": "JPEGImages/b1.jpg"}, r"dataset\.val_list: .*b1\.jpg: 'utf-8' codec"),
        ({"train_list": "empty.txt"}, r"dataset\.train_list: .*empty\.txt: names no image"),
        ({"train_list": "twice.txt"}, r"twice\.txt, line 3: b1 stands twice"),
        ({"train_list": "nothing.txt", "val_list": None}, r"Annotations: 1 file\(s\) without an object"),
    ],
)
def test_folders_and_lists_that_are_not_right_are_refused_in_a_line(good: Path, changes: Any, said: str) -> None:
    (good / "empty.txt").write_text("\n")
    (good / "twice.txt").write_text("b1\na2\nb1\n")
    (good / "nothing.txt").write_text("d4\n")
    with pytest.raises(UserError, match=said) as caught:
        load(good, **changes)
    assert "\n" not in str(caught.value)


def test_a_sample_s_fields_have_one_length_also_where_nothing_is_difficult_in_it(good: Path) -> None:
    target = load(good)[1][1]
    assert "ignored" in target
    assert target["ignored"].dtype == torch.bool
    assert {len(value) for value in target.values() if isinstance(value, torch.Tensor)} == {2}
