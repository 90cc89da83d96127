"""The first layer of the box head on the map's cells against the same on every region's bins."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision import ops
from torchvision.models.detection.faster_rcnn import TwoMLPHead

from detlab.models.box_head import RegionMLPHead
from detlab.ops.roi_align import DeferredBins, MultiScaleRoIAlign


def _boxes(count: int, seed: int) -> Tensor:
    corner = torch.rand(count, 2, generator=torch.Generator().manual_seed(seed)) * 120
    return torch.cat([corner, corner + 8 + corner.flip(0) / 2], 1)


def _results(
    pool: ops.MultiScaleRoIAlign, kind: type[TwoMLPHead], boxes: list[Tensor], dtype: torch.dtype
) -> list[Tensor]:
    torch.manual_seed(0)
    maps = torch.randn(2, 6, 5, 6, dtype=dtype).requires_grad_()
    head = kind(6 * 7 * 7, 16).to(dtype)
    found = head(pool({"0": maps}, [box.to(dtype) for box in boxes], [(160, 192)] * 2))
    found.square().sum().backward()
    return [found, maps.grad, *(parameter.grad for parameter in head.parameters())]  # pyright: ignore


@pytest.mark.parametrize("counts", [(70, 60), (130, 0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_and_gradients_are_those_of_pooled_regions(counts: tuple[int, int], dtype: torch.dtype) -> None:
    boxes = [_boxes(count, seed) for seed, count in enumerate(counts)]
    ours = MultiScaleRoIAlign(["0"], 7, 2, method="deferred")
    ours.defers = True
    expected = _results(ops.MultiScaleRoIAlign(["0"], 7, 2), TwoMLPHead, boxes, dtype)
    found = _results(ours, RegionMLPHead, boxes, dtype)
    precision = 1e-4 if dtype == torch.float32 else 1e-9
    torch.testing.assert_close(found, expected, rtol=precision, atol=precision)


@pytest.mark.parametrize(("count", "deferred"), [(100, True), (20, False)])
def test_regions_are_left_to_the_head_where_they_are_many_more_than_cells(
    monkeypatch: pytest.MonkeyPatch, count: int, deferred: bool
) -> None:
    monkeypatch.setattr("detlab.ops.roi_align.fastest", lambda *_: "sparse")
    pool = MultiScaleRoIAlign(["0"], 7, 2)
    pool.defers = True
    given = pool({"0": torch.randn(1, 6, 5, 6)}, [_boxes(count, 0)], [(160, 192)])
    assert isinstance(given, DeferredBins) == deferred
    pool.defers = False
    assert isinstance(pool({"0": torch.randn(1, 6, 5, 6)}, [_boxes(count, 0)], [(160, 192)]), Tensor)


def test_under_autocast_the_layer_is_as_precise_as_ever() -> None:
    pool, plain = MultiScaleRoIAlign(["0"], 7, 2, method="deferred"), ops.MultiScaleRoIAlign(["0"], 7, 2)
    pool.defers = True
    torch.manual_seed(0)
    head, maps, boxes = RegionMLPHead(6 * 7 * 7, 16), {"0": torch.randn(1, 6, 5, 6)}, [_boxes(100, 0)]
    expected = head(plain(maps, boxes, [(160, 192)]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = head(pool(maps, boxes, [(160, 192)]))
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=0.05, atol=0.02)
