"""Images as they are seen, whatever their file's format, with an error that names the file."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image
from torchvision import tv_tensors

from detlab.errors import UserError

# What Pillow raises for files that are cut off, corrupt, no images, or absurdly large.
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)

# What turns the stored pixels upright, by EXIF's Orientation (CIPA DC-008, 4.6.4 A); 1 is upright.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _orientation(image: Image.Image) -> int:
    """EXIF's Orientation of an opened image; 1 where nothing, or nothing legible, is said."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged EXIF makes its reader stumble over anything, while the pixels may be whole
        return 1


def _upright(image: Image.Image) -> Image.Image:
    """An opened image, turned as a viewer shows it."""
    image.load()  # Pillow turns a TIFF itself while it decodes it, and then says so
    orientation = _orientation(image)
    return image.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else image


def to_rgb(image: Image.Image) -> tv_tensors.Image:
    """A PIL image as it is seen: turned as its EXIF orientation says, in RGB; see `stored_rgb`.

    Returns:
        uint8 `[3, H, W]`.

    Raises:
        OSError, SyntaxError, ValueError, Image.DecompressionBombError: see `stored_rgb`.
    """
    return stored_rgb(_upright(image))


def stored_rgb(image: Image.Image) -> tv_tensors.Image:
    """A PIL image in RGB, its pixels where it has them.

    Greyscale, palettes and CMYK become RGB, 16 bits become 8 (the upper ones), transparency is dropped, of several frames the first
    is taken.

    Returns:
        uint8 `[3, H, W]`.

    Raises:
        OSError, SyntaxError, ValueError, Image.DecompressionBombError: see `UNREADABLE`; it cannot be decoded, or has pixels of
            which nobody can say what is white (32-bit ones).
    """
    if image.mode == "I" or image.mode.startswith("I;16"):
        levels = np.asarray(image)
        if levels.min() < 0 or levels.max() > 65535:
            raise ValueError(f"its pixels go from {levels.min()} to {levels.max()}; save it with 8 or 16 bits")
        image = Image.fromarray((levels // 257).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("its pixels are 32-bit floats, without a range; save it with 8 or 16 bits")
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns of the direct way
    pixels = np.array(image.convert("RGB"))
    return tv_tensors.Image(torch.from_numpy(pixels).permute(2, 0, 1).contiguous())


def read_image(path: Path) -> tv_tensors.Image:
    """Decode an image file as it is seen, see `to_rgb`: RGB, uint8 `[3, H, W]`.

    Raises:
        UserError: the file cannot be decoded.
    """
    try:
        with Image.open(path) as image:
            return to_rgb(image)
    except UNREADABLE as error:
        raise UserError(f"{path}: not readable as an image ({error}).") from None


def read_instances(path: Path) -> np.ndarray:
    """Decode a mask file to instance ids, turned as its EXIF orientation says.

    Returns:
        Integer `[H, W]`: grey values of 1, 8, 16 or 32 bits, or places in a palette; 0 for the background.

    Raises:
        UserError: the file cannot be decoded, has several channels, or numbers that are not whole or below 0.
    """
    try:
        with Image.open(path) as image:
            upright = _upright(image)
            mode, ids = upright.mode, np.array(upright)
    except UNREADABLE as error:
        raise UserError(f"{path}: not readable as an image ({error}).") from None
    if ids.ndim != 2:
        raise UserError(
            f"{path}: a mask of {ids.shape[2]} channels ({mode}); expected one, with the number of the object in each pixel."
        )
    if ids.dtype.kind == "f" or ids.min(initial=0) < 0:
        raise UserError(
            f"{path}: a mask with values that are not whole or below 0 ({mode}); expected numbers of objects."
        )
    return ids


def image_size(path: Path) -> tuple[int, int]:
    """Height and width in pixels of an image as it is seen, from the file's header; one that lies turned is decoded.

    Raises:
        UserError: the header cannot be read.
    """
    try:
        with Image.open(path) as image:
            seen = image if _orientation(image) == 1 else _upright(image)
            return seen.height, seen.width
    except UNREADABLE as error:
        raise UserError(f"{path}: not readable as an image ({error}).") from None
