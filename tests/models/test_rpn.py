"""The RPN that learns from sampled anchors against torchvision's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead

from detlab.models.rpn import SampledRPN
from detlab.ops.anchors import AnchorGenerator

BOXES = torch.tensor([[10.0, 20, 60, 90], [100, 30, 180, 120], [0, 0, 20, 20]])


def _rpn(kind: type[RegionProposalNetwork], channels: int, levels: int, batch_size: int, depth: int = 1) -> Any:
    torch.manual_seed(0)
    ratios = (0.5, 1.0, 2.0)
    generator = AnchorGenerator([(32 << i,) for i in range(levels)], [ratios] * levels)
    head = RPNHead(channels, len(ratios), conv_depth=depth)
    counts = {"training": 200, "testing": 100}
    return kind(generator, head, 0.7, 0.3, batch_size, 0.5, counts, counts, 0.7)


def _step(rpn: Any, dtype: torch.dtype, levels: int, boxes: Tensor) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(4)
    maps = {
        str(i): torch.randn(2, 8, 40 >> i, 56 >> i, generator=generator, dtype=dtype).requires_grad_()
        for i in range(levels)
    }
    images = ImageList(torch.zeros(2, 3, 160, 224), [(160, 224), (150, 200)])
    torch.manual_seed(5)
    proposals, losses = rpn.train()(images, maps, [{"boxes": boxes.to(dtype)}, {"boxes": BOXES[:1].to(dtype)}])
    sum(losses.values()).backward()
    gradients = [value.grad for value in maps.values()] + [parameter.grad for parameter in rpn.parameters()]
    return proposals, losses, gradients


@pytest.mark.parametrize("levels", [1, 3])
@pytest.mark.parametrize("boxes", [BOXES, BOXES[:0]], ids=["objects", "no objects"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_proposals_losses_and_gradients_are_torchvisions(levels: int, boxes: Tensor, dtype: torch.dtype) -> None:
    results = []
    for kind in (RegionProposalNetwork, SampledRPN):
        rpn = _rpn(kind, 8, levels, 64).to(dtype)
        results.append(_step(rpn, dtype, levels, boxes))
    precision = 1e-5 if dtype == torch.float32 else 1e-10
    torch.testing.assert_close(results[1], results[0], rtol=precision, atol=precision)


def test_the_head_builds_no_graph_over_the_whole_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    rpn = _rpn(SampledRPN, 8, 1, 64)
    tracked = []
    rpn.head.register_forward_hook(lambda _module, _inputs, output: tracked.append(output[0][0].requires_grad))
    _step(rpn, torch.float32, 1, BOXES)
    assert tracked == [False]


@pytest.mark.parametrize(("batch_size", "depth"), [(4000, 1), (64, 2)], ids=["most are sampled", "another head"])
def test_where_it_would_not_pay_torchvisions_way_is_taken(batch_size: int, depth: int) -> None:
    results = []
    for kind in (RegionProposalNetwork, SampledRPN):
        results.append(_step(_rpn(kind, 8, 1, batch_size, depth), torch.float32, 1, BOXES))
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)


def test_evaluation_is_torchvisions() -> None:
    found = []
    for kind in (RegionProposalNetwork, SampledRPN):
        images = ImageList(torch.zeros(1, 3, 160, 224), [(160, 224)])
        maps = {"0": torch.randn(1, 8, 40, 56, generator=torch.Generator().manual_seed(1))}
        with torch.inference_mode():
            found.append(_rpn(kind, 8, 1, 64).eval()(images, maps)[0])
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)


@pytest.mark.parametrize("levels", [1, 3])
@pytest.mark.parametrize("boxes", [BOXES, BOXES[:0]], ids=["objects", "no objects"])
@pytest.mark.parametrize("sampled", [False, True])
def test_all_images_at_once_are_what_each_is_alone(levels: int, boxes: Tensor, sampled: bool) -> None:
    results = []
    for batched in (False, True):
        rpn = _rpn(SampledRPN, 8, levels, 64)
        rpn.batched, rpn.sampled_gradient = batched, sampled
        results.append(_step(rpn, torch.float32, levels, boxes))
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)


def test_of_images_without_any_object_nothing_is_matched_at_once_either() -> None:
    rpn = _rpn(SampledRPN, 8, 1, 64)
    anchors = [torch.tensor([[0.0, 0, 8, 8], [4, 4, 20, 20]])] * 2
    targets = [{"boxes": BOXES[:0]}] * 2
    rpn.batched = True
    labels, matched = rpn.assign_targets_to_anchors(anchors, targets)
    assert [x.tolist() for x in labels] == [[0, 0]] * 2
    assert [x.shape for x in matched] == [(2, 4)] * 2


def test_images_of_other_numbers_of_objects_are_matched_as_each_is_alone() -> None:
    torch.manual_seed(3)
    anchors = [_boxes(500)] * 3
    targets = [{"boxes": _boxes(count)} for count in (7, 0, 40)]
    rpn = _rpn(SampledRPN, 8, 1, 64)
    found = []
    for batched in (False, True):
        rpn.batched = batched
        found.append(rpn.assign_targets_to_anchors(anchors, targets))
    labels, matched = found[1]
    torch.testing.assert_close(labels, found[0][0], rtol=0, atol=0)
    for ours, theirs, label in zip(matched, found[0][1], labels, strict=True):
        torch.testing.assert_close(ours[label > 0], theirs[label > 0], rtol=0, atol=0)  # of the others nobody asks
    assert [len(label.unique()) for label in labels] == [3, 1, 3]


def test_proposals_with_equal_scores_small_boxes_and_a_least_score_are_torchvisions() -> None:
    torch.manual_seed(6)
    proposals = torch.stack([_boxes(300), _boxes(300)])
    proposals[:, ::7, 2] = proposals[:, ::7, 0]  # without extent
    scores = torch.randint(-3, 4, (600, 1)).float()
    found = []
    for batched in (False, True):
        rpn = _rpn(SampledRPN, 8, 1, 64).eval()
        rpn.score_thresh, rpn.nms_thresh, rpn.batched = 0.3, 0.2, batched
        found.append(rpn.filter_proposals(proposals, scores, [(100, 120), (90, 80)], [200, 100]))
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)
    assert all(0 < len(boxes) < 100 for boxes in found[1][0])


def _boxes(count: int) -> Tensor:
    corner = torch.rand(count, 2) * 100
    return torch.cat([corner, corner + 3 + torch.rand(count, 2) * 50], 1)


def test_bfloat16_maps_give_losses_in_float32_near_the_precise_ones() -> None:
    losses = []
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            losses.append(_step(_rpn(SampledRPN, 8, 1, 64), torch.float32, 1, BOXES)[1])
    assert all(loss.dtype == torch.float32 for loss in losses[1].values())
    torch.testing.assert_close(losses[1], losses[0], rtol=0.05, atol=0.01)
