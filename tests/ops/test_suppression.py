"""Suppression of all groups at once against torchvision's walk."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.ops import nms

from detlab.ops import suppression
from detlab.ops.suppression import keep_of_groups


def _walk(boxes: Tensor, valid: Tensor, threshold: float) -> Tensor:
    kept = torch.zeros_like(valid)
    for group, (of_group, counts) in enumerate(zip(boxes, valid, strict=True)):
        index = counts.nonzero()[:, 0]
        kept[group, index[nms(of_group[index], torch.arange(len(index), 0, -1.0), threshold)]] = True
    return kept


@pytest.mark.parametrize("threshold", [0.3, 0.7])
@pytest.mark.parametrize("elements", [1, 100_000, 50_000_000], ids=["group by group", "by tens", "all"])
def test_what_remains_is_what_torchvisions_walk_leaves(
    threshold: float, elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suppression, "_ELEMENTS", elements)
    torch.manual_seed(0)
    corner = torch.rand(30, 100, 2) * 60
    boxes = torch.cat([corner, corner + 5 + torch.rand(30, 100, 2) * 40], 2)
    valid = torch.rand(30, 100) < 0.9
    kept = keep_of_groups(boxes, valid, threshold)
    assert torch.equal(kept, _walk(boxes, valid, threshold))
    assert 100 < int(kept.sum()) < int(valid.sum())


def test_a_long_chain_is_followed_to_its_end() -> None:
    # Each removes the next alone, so that every second one remains.
    start = torch.arange(200) * 4.0
    boxes = torch.stack([start, start * 0, start + 10, start * 0 + 10], 1)[None]
    kept = keep_of_groups(boxes, torch.ones(1, 200, dtype=torch.bool), 0.4)
    assert kept[0].tolist() == [True, False] * 100
    assert torch.equal(kept, _walk(boxes, torch.ones(1, 200, dtype=torch.bool), 0.4))


def test_groups_of_no_boxes_and_no_groups_have_nothing_to_keep() -> None:
    assert keep_of_groups(torch.zeros(3, 0, 4), torch.zeros(3, 0, dtype=torch.bool), 0.5).shape == (3, 0)
    assert keep_of_groups(torch.zeros(0, 5, 4), torch.zeros(0, 5, dtype=torch.bool), 0.5).shape == (0, 5)
