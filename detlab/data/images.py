"""Reading image files, with an error that names the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision import tv_tensors

from detlab.errors import UserError

# What Pillow raises for files that are cut off, corrupt, no images, or absurdly large.
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


def read_image(path: Path) -> tv_tensors.Image:
    """Decode an image file to RGB, uint8 `[3, H, W]`.

    Raises:
        UserError: the file cannot be decoded.
    """
    try:
        with Image.open(path) as image:
            pixels = np.array(image.convert("RGB"))
    except UNREADABLE as error:
        raise UserError(f"{path}: not readable as an image ({error}).") from None
    return tv_tensors.Image(torch.from_numpy(pixels).permute(2, 0, 1).contiguous())


def read_instances(path: Path) -> np.ndarray:
    """Decode a mask file to instance ids, integer `[H, W]`, 0 for the background.

    Raises:
        UserError: the file cannot be decoded, or has several channels.
    """
    try:
        with Image.open(path) as image:
            ids = np.array(image)
    except UNREADABLE as error:
        raise UserError(f"{path}: not readable as an image ({error}).") from None
    if ids.ndim != 2:
        raise UserError(f"{path}: a mask of {ids.shape[2]} channels; expected one, with the number of the object.")
    return ids


def image_size(path: Path) -> tuple[int, int]:
    """Height and width in pixels, from the file's header.

    Raises:
        UserError: the header cannot be read.
    """
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except UNREADABLE as error:
        raise UserError(f"{path}: not readable as an image ({error}).") from None
