"""What is said of image files: missing, damaged, of another size, twice."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detlab.data.files import Look, look_at_files, missing_images, same_images, unreadable_images
from detlab.data.index import Index, IndexBuilder
from detlab.structures import ClassMap

HEIGHT, WIDTH = 40, 60


def pixels(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8))


def index_of(*names: str, size: tuple[int, int] = (HEIGHT, WIDTH)) -> Index:
    builder = IndexBuilder(ClassMap(("thing",)))
    for i, name in enumerate(names, 1):
        builder.add_image(name, i, *size)
    return builder.build()


def looked(folder: Path, index: Index, *, decode: bool = True) -> dict[str, list[str]]:
    """The kinds of the faults of each image."""
    looks = look_at_files({"train": (index, folder)}, decode=decode)
    return {look.image: [fault.kind for fault in look.faults] for look in looks}


def test_a_file_that_is_missing_also_from_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    pixels(0).save(tmp_path / "below" / "a.png")
    index = index_of("below/a.png", "below/b.png", "nowhere/c.png")
    assert missing_images(index, tmp_path).tolist() == [1, 2]
    assert looked(tmp_path, index) == {
        "below/a.png": [],
        "below/b.png": ["image missing"],
        "nowhere/c.png": ["image missing"],
    }


def test_another_format_than_the_name_says_is_fine_where_it_decodes(tmp_path: Path) -> None:
    for name, form in (("a.jpg", "PNG"), ("b.png", "GIF"), ("c.png", "WEBP")):
        pixels(0).save(tmp_path / name, format=form)
    assert looked(tmp_path, index_of("a.jpg", "b.png", "c.png")) == {"a.jpg": [], "b.png": [], "c.png": []}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_that_exif_turns_fits_annotations_of_the_upright_one_alone(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels(0).save(tmp_path / "a.jpg", exif=exif)
    lying = orientation >= 5
    stored, upright = index_of("a.jpg"), index_of("a.jpg", size=(WIDTH, HEIGHT))
    for decode in (True, False):
        assert looked(tmp_path, stored, decode=decode) == {"a.jpg": ["image turned"] if lying else []}
        assert looked(tmp_path, upright, decode=decode) == {"a.jpg": [] if lying else ["image of another size"]}


def test_headers_alone_show_sizes_but_not_damage_behind_them(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    pixels(0).save(buffer, "PNG")
    (tmp_path / "cut.png").write_bytes(buffer.getvalue()[:3000])
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("not an image")
    index = index_of("cut.png", "empty.png", "text.png")
    unreadable = ["image unreadable"]
    assert looked(tmp_path, index) == dict.fromkeys(index.file_names, unreadable)
    assert looked(tmp_path, index, decode=False) == {"cut.png": [], "empty.png": unreadable, "text.png": unreadable}


def test_what_is_wrong_with_an_unreadable_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("not an image")
    looks = look_at_files({"train": (index_of("empty.png", "text.png", "gone.png"), tmp_path)}, decode=True)
    said = [look.faults[0].said for look in looks]
    assert said[0] == "an empty file, of 0 bytes"
    assert said[1].startswith("not readable as an image (cannot identify image file")
    assert said[2] == f"no file {tmp_path / 'gone.png'}"


@pytest.mark.parametrize(
    ("limit", "kind"), [(HEIGHT * WIDTH, None), (2000, "image very large"), (1000, "image unreadable")]
)
def test_more_pixels_than_the_limit_are_told_and_twice_as_many_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int, kind: str | None
) -> None:
    pixels(0).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    for decode in (True, False):
        assert looked(tmp_path, index_of("a.png"), decode=decode) == {"a.png": [kind] if kind else []}
    readable = unreadable_images(index_of("a.png"), tmp_path, besides=np.zeros(0, np.int64))
    assert readable.tolist() == ([0] if kind == "image unreadable" else [])


def test_looking_in_threads_leaves_the_filters_of_warnings_as_they_were(tmp_path: Path) -> None:
    names = [f"{i}.png" for i in range(40)]
    for i, name in enumerate(names):
        pixels(i).save(tmp_path / name)
    before = warnings.filters[:]
    looked(tmp_path, index_of(*names))
    unreadable_images(index_of(*names), tmp_path, besides=np.zeros(0, np.int64))
    assert warnings.filters == before


def test_images_that_are_missing_unreadable_or_of_another_size_are_left_out_the_first_not_asked_again(
    tmp_path: Path,
) -> None:
    pixels(0).save(tmp_path / "good.png")
    pixels(0).crop((0, 0, 30, 30)).save(tmp_path / "small.png")
    (tmp_path / "text.png").write_text("not an image")
    index = index_of("gone.png", "good.png", "small.png", "text.png")
    assert unreadable_images(index, tmp_path, besides=missing_images(index, tmp_path)).tolist() == [2, 3]


@pytest.mark.parametrize("decode", [True, False])
def test_the_same_picture_is_found_within_a_part_and_across(tmp_path: Path, decode: bool) -> None:
    for i, name in enumerate(("a.png", "b.png", "c.png", "d.png")):
        pixels(i if i < 2 else 0).save(tmp_path / name)
    parts = {"train": (index_of("a.png", "b.png", "c.png"), tmp_path), "val": (index_of("d.png"), tmp_path)}
    found = list(same_images(look_at_files(parts, decode=decode)))
    assert [(part, fault.kind, fault.image) for part, fault in found] == [
        ("train", "image twice", "c.png"),
        ("val", "image in two parts", "d.png"),
    ]
    assert found[1][1].said == "the same picture as a.png in train"


def test_the_same_pixels_in_other_bytes_are_found_by_decoding_alone(tmp_path: Path) -> None:
    pixels(0).save(tmp_path / "a.png")
    pixels(0).save(tmp_path / "b.bmp")
    parts = {"train": (index_of("a.png", "b.bmp"), tmp_path)}
    assert [fault.kind for _, fault in same_images(look_at_files(parts, decode=True))] == ["image twice"]
    assert list(same_images(look_at_files(parts, decode=False))) == []


def test_pixels_of_another_shape_are_another_picture(tmp_path: Path) -> None:
    Image.new("RGB", (20, 30)).save(tmp_path / "a.png")
    Image.new("RGB", (30, 20)).save(tmp_path / "b.png")
    parts = {"train": (index_of("a.png", size=(30, 20)), tmp_path), "val": (index_of("b.png", size=(20, 30)), tmp_path)}
    assert list(same_images(look_at_files(parts, decode=True))) == []


def test_images_that_could_not_be_looked_at_are_not_the_same() -> None:
    assert list(same_images([Look("train", "a.png", (), None), Look("val", "b.png", (), None)])) == []
