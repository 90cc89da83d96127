"""The average of a model's weights, held against numbers worked out by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY
from omegaconf import DictConfig
from torch import nn

from detlab import storage
from detlab.averaging import Average
from detlab.config import build
from detlab.engine import Device
from detlab.errors import UserError
from detlab.models.weights import settle


class Small(nn.Module):
    """One parameter, and buffers of three kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, -2.0]))
        self.register_buffer("mean", torch.tensor([0.5]))
        self.register_buffer("count", torch.tensor(0))
        self.register_buffer("used", torch.tensor([True, False]))
        self.iou_types = ("bbox",)

    def set(self, weight: float, mean: float, count: int) -> Small:
        self.weight.data.fill_(weight)
        self.mean.fill_(mean)
        self.count.fill_(count)
        self.used.logical_not_()
        return self


def trained_steps(model: nn.Module, average: Average | None, steps: int, seed: int) -> None:
    """Steps of SGD on noise."""
    torch.manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(4, 3, 6, 6)).square().mean().backward()
        optimizer.step()
        if average is not None:
            average.update(model)


def normed() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3))


def equal(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(first.state_dict().items(), second.state_dict().items(), strict=True)
    return all(name == other and torch.equal(value, theirs) for (name, value), (other, theirs) in pairs)


def test_the_average_is_the_one_worked_out_by_hand() -> None:
    """Decays of the ramp: 1/10, 2/11, then 1/5, which is below 3/12."""
    model = Small()
    average = Average(model, 0.2)
    average.update(model.set(4, 1.5, 1))
    torch.testing.assert_close(average.model.weight, torch.tensor([0.1 * 1 + 0.9 * 4, 0.1 * -2 + 0.9 * 4]))
    torch.testing.assert_close(average.model.mean, torch.tensor([0.1 * 0.5 + 0.9 * 1.5]))
    average.update(model.set(0, 0, 2))
    torch.testing.assert_close(average.model.weight, torch.tensor([3.7, 3.4]) * 2 / 11)
    average.update(model.set(10, 20, 7))
    torch.testing.assert_close(average.model.weight, torch.tensor([3.7, 3.4]) * 2 / 11 * 0.2 + 8)
    torch.testing.assert_close(average.model.mean, torch.tensor([1.4]) * 2 / 11 * 0.2 + 16)
    assert average.model.count.item() == 7
    assert torch.equal(average.model.used, model.used)
    assert average.updates == 3
    assert model.weight.tolist() == [10, 10]


def test_the_ramp_ends_at_the_decay() -> None:
    model = Small().set(0, 0, 0)
    average = Average(model, 0.9)
    average.updates = 10_000
    average.model.weight.fill_(1)
    average.update(model)
    torch.testing.assert_close(average.model.weight, torch.tensor([0.9, 0.9]))


def test_weights_that_do_not_move_stay_to_the_bit() -> None:
    model = normed()
    average = Average(model, 0.999)
    for _ in range(50):
        average.update(model)
    assert equal(average.model, model)


def test_the_averaged_weights_differ_from_the_raw_ones_and_lie_nearer_the_start() -> None:
    model = normed()
    start = copy.deepcopy(model)
    average = Average(model, 0.999)
    trained_steps(model, average, 30, 1)
    for i in (0, 2):
        ours, raw, first = (net[i].weight for net in (average.model, model, start))  # type: ignore[index, union-attr]
        assert not torch.equal(ours, raw)
        assert (ours - first).norm() < (raw - first).norm()
    assert not torch.equal(average.model[1].running_var, model[1].running_var)  # type: ignore[index, union-attr]
    assert average.model[1].num_batches_tracked == 30  # type: ignore[index, union-attr]


def test_a_saved_average_goes_on_to_the_bit(tmp_path: Path) -> None:
    model = normed()
    average = Average(model, 0.99)
    trained_steps(model, average, 5, 1)
    storage.save({"average": average.state_dict(), "model": model.state_dict()}, tmp_path / "state.pt")
    trained_steps(model, average, 5, 2)

    other = normed()
    again = Average(other, 0.99)
    state = storage.load(tmp_path / "state.pt")  # weights_only=True
    other.load_state_dict(state["model"])
    again.load_state_dict(state["average"])
    assert again.updates == 5
    trained_steps(other, again, 5, 2)
    assert equal(again.model, average.model)
    assert again.updates == average.updates == 10


def test_the_state_of_another_model_is_refused() -> None:
    with pytest.raises(RuntimeError, match="Missing key"):
        Average(normed(), 0.9).load_state_dict(Average(Small(), 0.9).state_dict())


def test_a_restart_forgets_the_past() -> None:
    model = normed()
    average = Average(model, 0.99)
    trained_steps(model, average, 3, 1)
    average.restart(model)
    assert equal(average.model, model)
    assert average.updates == 0
    trained_steps(model, None, 1, 2)
    assert not equal(average.model, model)


@pytest.mark.parametrize("decay", [-0.1, 1, 1.5, float("nan")])
def test_a_decay_out_of_range_is_refused(decay: float) -> None:
    with pytest.raises(UserError, match=r"ema: .*below 1"):
        Average(Small(), decay)


def test_the_copy_is_in_evaluation_takes_no_gradients_and_leaves_the_model_training() -> None:
    model = normed().train()
    average = Average(model, 0.9)
    trained_steps(model, average, 1, 1)
    assert not average.model.training
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in average.model.parameters())
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_the_memory_format_stays() -> None:
    model = normed().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = Average(model, 0.9)
    trained_steps(model, average, 2, 1)
    average.load_state_dict(copy.deepcopy(average.state_dict()))
    assert average.model[0].weight.is_contiguous(memory_format=torch.channels_last)  # type: ignore[index, union-attr]
    contiguous = Average(normed(), 0.9)
    contiguous.load_state_dict(average.state_dict())
    assert contiguous.model[0].weight.is_contiguous()  # type: ignore[index, union-attr]


def test_tied_weights_stay_tied_and_are_averaged_once() -> None:
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
    model[1].weight = model[0].weight
    model[0].weight.data.fill_(0)
    average = Average(model, 0.9)
    model[0].weight.data.fill_(1)
    average.update(model)
    first, second = (layer.weight for layer in average.model)  # type: ignore[union-attr, attr-defined]
    assert first is second
    assert first.item() == pytest.approx(0.9)


@pytest.fixture
def detector(composed: Callable[..., DictConfig]) -> Any:
    torch.manual_seed(0)
    cfg = composed(*TINY)
    settle(cfg.model)
    return build(cfg.model, group="model", num_classes=2)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_detectors_average_detects_and_keeps_its_hooks_and_types(detector: Any, precision: str) -> None:
    device = Device(torch.device("cpu"), precision)
    device.place(detector)
    average = Average(detector, 0.9)
    types: list[torch.dtype] = []
    average.model.rpn.head.register_forward_hook(lambda _module, _inputs, output: types.append(output[0][0].dtype))
    images = [torch.rand(3, 72, 96)]
    with torch.no_grad():
        for parameter in detector.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.01)
    average.update(detector)
    with torch.inference_mode(), device.autocast():
        predictions = average.model(images)
    assert average.model.iou_types == detector.iou_types == ("bbox", "segm")
    assert {"boxes", "labels", "scores", "masks"} <= predictions[0].keys()
    # detectors.py makes the RPN's head return float32 by a hook; the copy's must run, and on the copy's own outputs.
    assert types == [torch.float32]
    detector.eval()
    with torch.inference_mode(), device.autocast():
        raw = detector(images)
    assert not torch.equal(raw[0]["scores"], predictions[0]["scores"])
    assert average.model.state_dict().keys() == detector.state_dict().keys()
    # The average can go on after inference, and the detector trains on.
    average.update(detector)
