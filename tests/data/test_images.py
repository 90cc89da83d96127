"""Images of every kind become the RGB that a viewer shows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detlab.data.images import image_size, read_image
from detlab.errors import UserError

# Six pixels in two rows, all different: what a viewer shows.
SEEN = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]], [[255, 255, 255], [0, 0, 0], [128, 64, 32]]], dtype=np.uint8)
# EXIF 2.32, 4.6.4 A, Orientation: on which sides of the picture the stored row 0 and column 0 lie, undone by numpy.
STORED = {
    1: SEEN,
    2: SEEN[:, ::-1],  # top, right
    3: SEEN[::-1, ::-1],  # bottom, right
    4: SEEN[::-1],  # bottom, left
    5: SEEN.transpose(1, 0, 2),  # left, top
    6: SEEN.transpose(1, 0, 2)[::-1],  # right, top
    7: SEEN.transpose(1, 0, 2)[::-1, ::-1],  # right, bottom
    8: SEEN.transpose(1, 0, 2)[:, ::-1],  # left, bottom
}


def pixels(path: Path) -> list[list[list[int]]]:
    image = read_image(path)
    assert image_size(path) == tuple(image.shape[1:])
    return image.permute(1, 2, 0).tolist()


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_a_picture_is_turned_as_its_exif_orientation_says(tmp_path: Path, suffix: str, orientation: int) -> None:
    path = tmp_path / f"turned.{suffix}"
    image = Image.fromarray(np.ascontiguousarray(STORED[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(path, **({"tiffinfo": {0x0112: orientation}} if suffix == "tif" else {"exif": exif}))
    assert pixels(path) == SEEN.tolist()


def test_a_jpegs_orientation_turns_it_too(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    halves = np.zeros((40, 16, 3), dtype=np.uint8)
    halves[:20] = 200
    Image.fromarray(halves).save(tmp_path / "a.jpg", exif=exif)
    seen = np.array(pixels(tmp_path / "a.jpg"))
    assert seen.shape == (16, 40, 3)
    assert seen[:, :18].min() > 190
    assert seen[:, 22:].max() < 10


@pytest.mark.parametrize(
    "note", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"nonsense"]
)
def test_damaged_exif_turns_nothing_and_loses_no_image(tmp_path: Path, note: bytes) -> None:
    Image.fromarray(SEEN).save(tmp_path / "a.png", exif=note)
    assert pixels(tmp_path / "a.png") == SEEN.tolist()


def test_sixteen_bits_are_scaled_to_eight(tmp_path: Path) -> None:
    levels = np.array([[0, 255, 257], [25700, 65534, 65535]], dtype=np.uint16)
    expected = [[[0] * 3, [0] * 3, [1] * 3], [[100] * 3, [254] * 3, [255] * 3]]
    for suffix in ("png", "tif", "pgm"):
        Image.fromarray(levels).save(tmp_path / f"a.{suffix}")
        assert pixels(tmp_path / f"a.{suffix}") == expected


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "CMYK"])
def test_colours_are_kept_whatever_the_mode(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(SEEN).convert(mode)
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    image.save(path)
    if mode == "P":
        # 128, 64, 32 is not in Pillow's palette of 216 colours.
        assert pixels(path)[0] == SEEN[0].tolist()
    else:
        assert pixels(path) == SEEN.tolist()


def test_transparency_is_dropped(tmp_path: Path) -> None:
    rgba = np.dstack([SEEN, np.array([[0, 1, 2], [3, 4, 5]], dtype=np.uint8)])
    Image.fromarray(rgba).save(tmp_path / "a.png")
    assert pixels(tmp_path / "a.png") == SEEN.tolist()
    # A palette with a transparency for each colour, which Pillow warns to convert directly.
    image = Image.fromarray(SEEN[:1]).convert("P", palette=Image.Palette.ADAPTIVE, colors=3)
    image.save(tmp_path / "p.png", transparency=bytes([0, 100, 200]))
    assert pixels(tmp_path / "p.png") == SEEN[:1].tolist()


@pytest.mark.parametrize("mode", ["1", "L", "LA"])
def test_grey_becomes_rgb(tmp_path: Path, mode: str) -> None:
    Image.fromarray(np.array([[0, 255]], dtype=np.uint8)).convert(mode).save(tmp_path / "a.png")
    assert pixels(tmp_path / "a.png") == [[[0] * 3, [255] * 3]]


def test_of_several_frames_the_first_is_taken(tmp_path: Path) -> None:
    first, second = (Image.new("RGB", (3, 2), colour) for colour in ((0, 0, 255), (255, 0, 0)))
    first.save(tmp_path / "a.gif", save_all=True, append_images=[second])
    assert pixels(tmp_path / "a.gif") == [[[0, 0, 255]] * 3] * 2


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            np.array([[0.5, 1.0]], dtype=np.float32),
            "its pixels are 32-bit floats, without a range; save it with 8 or 16 bits",
        ),
        (np.array([[0, 70000]], dtype=np.int32), "its pixels go from 0 to 70000; save it with 8 or 16 bits"),
        (np.array([[-1, 7]], dtype=np.int32), "its pixels go from -1 to 7; save it with 8 or 16 bits"),
    ],
)
def test_pixels_of_which_nobody_says_what_is_white_are_refused(tmp_path: Path, values: np.ndarray, said: str) -> None:
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(UserError) as error:
        read_image(tmp_path / "a.tif")
    assert str(error.value) == f"{tmp_path / 'a.tif'}: not readable as an image ({said})."


def test_a_file_that_is_cut_off_or_absent_or_no_image_is_named(tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 50, 3), dtype=np.uint8)).save(tmp_path / "cut.png")
    content = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[: len(content) // 2])
    (tmp_path / "text.png").write_text("hello")
    for name in ("cut.png", "text.png", "absent.png", "."):
        with pytest.raises(UserError) as error:
            read_image(tmp_path / name)
        assert str(error.value).startswith(f"{tmp_path / name}: not readable as an image (")
