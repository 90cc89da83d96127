"""Remembered anchors against torchvision's."""

from __future__ import annotations

import torch
from torchvision.models.detection import anchor_utils
from torchvision.models.detection.image_list import ImageList

from detlab.ops.anchors import AnchorGenerator

SIZES, RATIOS = ((32, 64), (128, 256)), ((0.5, 1.0, 2.0), (0.5, 1.0, 2.0))


def _images(height: int, width: int, count: int = 2) -> ImageList:
    return ImageList(torch.zeros(count, 3, height, width), [(height, width)] * count)


def _maps(height: int, width: int) -> list[torch.Tensor]:
    return [torch.zeros(2, 4, height // stride, width // stride) for stride in (16, 32)]


def test_anchors_are_torchvisions_for_every_shape_and_again() -> None:
    ours, theirs = AnchorGenerator(SIZES, RATIOS), anchor_utils.AnchorGenerator(SIZES, RATIOS)
    for height, width in ((64, 96), (96, 64), (64, 96)):
        expected = theirs(_images(height, width), _maps(height, width))
        found = ours(_images(height, width), _maps(height, width))
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_anchors_are_precise_for_maps_that_are_not() -> None:
    maps = [value.bfloat16() for value in _maps(1024, 1333)]
    expected = anchor_utils.AnchorGenerator(SIZES, RATIOS)(_images(1024, 1333), _maps(1024, 1333))
    assert torch.equal(AnchorGenerator(SIZES, RATIOS)(_images(1024, 1333), maps)[0], expected[0])


def test_anchors_laid_in_inference_serve_training() -> None:
    generator = AnchorGenerator(SIZES, RATIOS)
    with torch.inference_mode():
        generator(_images(64, 96), _maps(64, 96))
    weight = torch.ones(4, requires_grad=True)
    (generator(_images(64, 96), _maps(64, 96))[0] * weight).sum().backward()
    assert weight.grad is not None


def test_no_more_shapes_are_remembered_than_a_run_needs() -> None:
    generator = AnchorGenerator(SIZES, RATIOS)
    for step in range(50):
        generator(_images(64 + 32 * step, 96), _maps(64 + 32 * step, 96))
    assert len(generator._laid) <= 32
