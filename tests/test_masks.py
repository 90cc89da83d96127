"""Masks that are encoded in their boxes against masks that are pasted into whole images."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image

from detlab.masks import _place, _runs_by_crossings, encode, encode_in_boxes

HEIGHT, WIDTH = 60, 90


def _blobs(count: int, seed: int) -> Tensor:
    """Probabilities `[count, 1, 28, 28]` with holes and islands."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 1, 7, 7, generator=generator)
    return torch.nn.functional.interpolate(coarse, size=28, mode="bilinear")


def _pasted(probabilities: Tensor, boxes: Tensor) -> list[dict[str, object]]:
    pasted = paste_masks_in_image(probabilities, boxes, (HEIGHT, WIDTH))
    return encode((pasted[:, 0] > 0.5).numpy())


def test_run_lengths_are_those_of_pasted_masks() -> None:
    generator = torch.Generator().manual_seed(0)
    corner = (torch.rand(300, 2, generator=generator) * 1.4 - 0.3) * torch.tensor([WIDTH, HEIGHT])
    boxes = torch.cat([corner, corner + torch.rand(300, 2, generator=generator) ** 2 * 120], 1)
    # A detector clips its boxes to the image.
    boxes = torch.stack([boxes[:, 0].clamp(0, WIDTH), boxes[:, 1].clamp(0, HEIGHT), boxes[:, 2].clamp(0, WIDTH), boxes[:, 3].clamp(0, HEIGHT)], 1)  # fmt: skip  # noqa: E501
    probabilities = _blobs(300, 1)
    assert encode_in_boxes(probabilities, boxes, HEIGHT, WIDTH) == _pasted(probabilities, boxes)


@pytest.mark.parametrize("box", [[0, 0, WIDTH, HEIGHT], [10, 0, 40, HEIGHT], [0, 10, WIDTH, 40], [89, 59, 90, 60]])
@pytest.mark.parametrize("value", [0.0, 0.6, 1.0])
def test_full_and_empty_masks_of_whole_columns_and_rows(box: list[float], value: float) -> None:
    probabilities, boxes = torch.full((1, 1, 28, 28), value), torch.tensor([box], dtype=torch.float32)
    assert encode_in_boxes(probabilities, boxes, HEIGHT, WIDTH) == _pasted(probabilities, boxes)


@pytest.mark.parametrize("side", [5, 28, 56])
@pytest.mark.parametrize("kind", ["noise", "zeros and ones", "quarters", "about a half", "a half", "nan"])
def test_masks_in_which_rounding_decides_are_those_of_pasted_masks(kind: str, side: int) -> None:
    generator = torch.Generator().manual_seed(side)
    noise = torch.rand(40, 1, side, side, generator=generator)
    probabilities = {
        "noise": noise,
        "zeros and ones": noise.round(),
        "quarters": (noise * 4).round() / 4,
        "about a half": 0.5 + (noise - 0.5) * 1e-6,
        "a half": torch.full_like(noise, 0.5),
        "nan": torch.where(noise < 0.01, math.nan, noise),
    }[kind]
    corner = torch.rand(40, 2, generator=generator) * torch.tensor([WIDTH, HEIGHT]) * 0.8
    # Some on whole pixels, where they and the samples meet; some lower than a pixel a sample, some higher.
    boxes = torch.cat([corner, corner + torch.rand(40, 2, generator=generator) ** 2 * 90], 1)
    boxes[::2] = boxes[::2].round()
    boxes = boxes.minimum(torch.tensor([WIDTH, HEIGHT, WIDTH, HEIGHT]))
    assert encode_in_boxes(probabilities, boxes, HEIGHT, WIDTH) == _pasted(probabilities, boxes)


def test_rounding_decides_in_few_masks() -> None:
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(300, 2, generator=generator) * 200
    boxes = torch.cat([corner, corner + 10 + torch.rand(300, 2, generator=generator) * 100], 1)
    doubtful = _runs_by_crossings(_place(_blobs(300, 2), boxes, 300, 300), 300)[2]
    assert 0 < doubtful.mean() < 0.2


@pytest.mark.parametrize(
    "box",
    [
        [-50, 5, -20, 40],
        [5, -50, 40, -20],
        [200, 5, 240, 40],
        [5, 200, 40, 240],
        [40, 40, 5, 5],
        [5, 40, 40, 5],
        [math.nan] * 4,
    ],
)
def test_boxes_outside_of_the_image_or_of_no_pixel_give_empty_masks(box: list[float]) -> None:
    encoded = encode_in_boxes(torch.ones(1, 1, 28, 28), torch.tensor([box]).float(), HEIGHT, WIDTH)
    assert encoded == encode(np.zeros((1, HEIGHT, WIDTH)))


def test_no_detections_give_no_masks() -> None:
    assert encode_in_boxes(torch.zeros(0, 1, 28, 28), torch.zeros(0, 4), HEIGHT, WIDTH) == []
