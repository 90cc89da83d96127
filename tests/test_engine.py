"""The two loops: what a step does, and when it stops."""

from __future__ import annotations

import math
import signal
from typing import Any

import pytest
import torch
from torch import nn

from detlab import engine
from detlab.engine import (
    Device,
    NonFiniteStep,
    StepReport,
    bf16_ratio,
    evaluate,
    select_device,
    suits_channels_last,
    train_one_epoch,
)
from detlab.errors import NonFiniteLossError, OutOfMemoryError
from detlab.stopping import RunStopping

CPU = Device(torch.device("cpu"), "fp32")


class Detector(nn.Module):
    """Two losses that are linear in the one weight, of which some step's is not a number."""

    def __init__(self, bad_step: int | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0]))
        self.calls = 0
        self.bad_step = bad_step
        self.seen: list[float] = []

    def forward(self, images: list[torch.Tensor], targets: Any = None) -> Any:
        if not self.training:
            return [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0), "scores": torch.zeros(0)} for _ in images]
        self.calls += 1
        self.seen.append(float(torch.rand(())))
        mean = torch.stack([image.mean() for image in images]).mean()
        factor = math.nan if self.calls == self.bad_step else 1.0
        return {"loss_a": self.weight.sum() * mean * factor, "loss_b": self.weight.sum() * 2}


class Told:
    """A writer that keeps the reports."""

    def __init__(self) -> None:
        self.reports: list[StepReport] = []

    def training_step(self, report: StepReport) -> None:
        self.reports.append(report)


def batches(count: int) -> list[Any]:
    image = torch.full((3, 4, 4), 255, dtype=torch.uint8)
    return [([image], [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0), "image_id": i}]) for i in range(count)]


def train(model: Detector, told: Told, count: int = 4, **changes: Any) -> int:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=changes.pop("momentum", 0.0))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    stopping = changes.pop("stopping", RunStopping(max_steps=None, max_minutes=None))
    settings = {
        "device": CPU, "epoch": 0, "step": 0, "steps": count, "accumulate": 1, "clip_grad_norm": None, "seed": 0,
        "iou_types": ("bbox",), **changes,
    }  # fmt: skip
    source = batches(settings["steps"] * settings["accumulate"])
    return train_one_epoch(model, source, optimizer, schedule, told, stopping, **settings)


def test_a_step_is_that_of_the_formula() -> None:
    model, told = Detector(), Told()
    assert train(model, told) == 4
    # Each step's gradient is 1 (images of 255 are 1.0) + 2.
    assert float(model.weight.detach()) == pytest.approx(1 - 4 * 0.1 * 3)
    assert [report.step for report in told.reports] == [1, 2, 3, 4]
    assert float(told.reports[0].losses["loss"]) == pytest.approx(3.0)


def test_micro_batches_add_up_to_the_mean() -> None:
    model, told = Detector(), Told()
    train(model, told, count=2, accumulate=3)
    assert float(model.weight.detach()) == pytest.approx(1 - 2 * 0.1 * 3)
    assert told.reports[0].images == 3


def test_the_gradient_is_clipped_to_the_norm() -> None:
    model = Detector()
    train(model, Told(), count=1, clip_grad_norm=0.5)
    assert float(model.weight.detach()) == pytest.approx(1 - 0.1 * 0.5)


def test_chance_within_a_step_depends_on_seed_and_step_alone() -> None:
    whole, rest, other = Detector(), Detector(), Detector()
    train(whole, Told())
    torch.rand(7)
    train(rest, Told(), count=2, step=2)
    train(other, Told(), seed=1)
    assert rest.seen == whole.seen[2:]
    assert len(set(whole.seen)) == 4
    assert not set(other.seen) & set(whole.seen)


def test_a_step_with_a_non_finite_loss_is_not_made_and_is_told_with_its_images() -> None:
    before, model = Detector(), Detector(bad_step=3)
    train(before, Told(), count=2, momentum=0.9)
    with pytest.raises(NonFiniteLossError, match=r"step 3: .*loss_a=nan, loss_b=.*images \[2\]"):
        train(model, Told(), momentum=0.9)
    assert torch.equal(model.weight, before.weight)


class SteepDetector(Detector):
    """A finite loss whose gradient is infinite."""

    def forward(self, images: list[torch.Tensor], targets: Any = None) -> Any:
        losses = super().forward(images, targets)
        return {**losses, "loss_c": (self.weight.sum() - self.weight.detach().sum()).sqrt()}


def test_a_step_with_a_non_finite_gradient_is_not_made_either() -> None:
    model = SteepDetector()
    with pytest.raises(NonFiniteLossError, match=r"non-finite gradient in step 1: .*loss_c=0"):
        train(model, Told())
    assert float(model.weight.detach()) == 1.0


class Notes:
    """A black box that lets the run go on, and a saver: both note the steps."""

    def __init__(self) -> None:
        self.failed: list[int] = []
        self.saved: list[int] = []

    def record(self, failed: NonFiniteStep) -> None:
        self.failed.append(failed.step)

    def at(self, step: int) -> None:
        self.saved.append(step)


@pytest.mark.parametrize("bad_step", [1, 3])
def test_a_step_that_is_left_out_moves_no_weights_and_no_statistics(bad_step: int) -> None:
    model, told, notes = Detector(bad_step=bad_step), Told(), Notes()
    model.norm = nn.BatchNorm1d(1)
    model.register_forward_pre_hook(lambda module, _: module.norm(torch.tensor([[1.0], [math.nan]])) if module.calls + 1 == bad_step else None)  # fmt: skip  # noqa: E501
    assert train(model, told, black_box=notes) == 4
    assert float(model.weight.detach()) == pytest.approx(1 - 3 * 0.1 * 3)
    assert torch.equal(model.norm.running_mean, torch.zeros(1))
    assert int(model.norm.num_batches_tracked) == 0
    assert notes.failed == [bad_step]
    assert [report.step for report in told.reports] == [1, 2, 3, 4]


def test_a_state_may_be_saved_after_every_step_but_the_last() -> None:
    notes = Notes()
    train(Detector(), Told(), saving=notes)
    assert notes.saved == [1, 2, 3]


class Greedy(Detector):
    """Wants more memory than any machine has."""

    def forward(self, images: list[torch.Tensor], targets: Any = None) -> Any:
        torch.empty(2**60, dtype=torch.uint8)


def test_too_little_memory_is_told_with_the_batch_and_what_to_do() -> None:
    with pytest.raises(OutOfMemoryError, match=r"step 1: 1 images of 4 x 4 pixels with 0 objects. Try accumulate=2"):
        train(Greedy(), Told())
    stopping = RunStopping(max_steps=None, max_minutes=None)
    with pytest.raises(
        OutOfMemoryError, match=r"in an evaluation: 1 images of 4 x 4 pixels .* Try a smaller image_size"
    ):
        evaluate(Greedy(), batches(1), Counter(), stopping, device=CPU)


def test_a_non_finite_loss_in_the_last_step_is_told_too() -> None:
    with pytest.raises(NonFiniteLossError):
        train(Detector(bad_step=4), Told())


def test_limits_end_an_epoch_at_a_step() -> None:
    stopping = RunStopping(max_steps=2, max_minutes=None)
    assert train(Detector(), Told(), stopping=stopping) == 2
    assert stopping.reason == "max_steps"
    stopping = RunStopping(max_steps=None, max_minutes=1e-9)
    assert train(Detector(), Told(), stopping=stopping) == 1
    assert stopping.reason == "max_minutes"


class Transform:
    """Is told how masks are asked for."""

    pastes_masks = True


@pytest.mark.parametrize("boxes_do", [True, False])
def test_masks_stay_in_their_boxes_for_an_evaluator_that_takes_them_so(boxes_do: bool) -> None:
    model, counter = Detector(), Counter()
    model.transform, asked = Transform(), []  # pyright: ignore
    model.register_forward_pre_hook(lambda module, _: asked.append(module.transform.pastes_masks))
    counter.takes_masks_in_boxes = boxes_do  # pyright: ignore
    evaluate(model, batches(1), counter, RunStopping(max_steps=None, max_minutes=None), device=CPU)
    assert asked == [not boxes_do]
    assert model.transform.pastes_masks  # whoever calls the model next is given torchvision's masks


class Counter:
    """An evaluator that counts images."""

    def reset(self) -> None:
        self.ids: list[int] = []

    def update(self, image_ids: Any, predictions: Any) -> None:
        self.ids += image_ids

    def compute(self) -> dict[str, float]:
        return {"images": float(len(set(self.ids)))}


def test_an_evaluation_sees_each_image_and_leaves_the_model_in_evaluation_mode() -> None:
    model = Detector()
    stopping = RunStopping(max_steps=None, max_minutes=None)
    for _ in range(2):
        assert evaluate(model, batches(3), Counter(), stopping, device=CPU) == {"images": 3.0}
    assert not model.training
    with stopping:
        signal.raise_signal(signal.SIGTERM)
    assert evaluate(model, batches(3), Counter(), stopping, device=CPU) is None
    assert stopping.ended_by == signal.SIGTERM


@pytest.mark.parametrize(("bf16", "expected"), [(0.5, "bf16"), (0.9, "fp32"), (3.0, "fp32"), (math.inf, "fp32")])
def test_auto_takes_bfloat16_only_where_it_was_measured_to_be_faster(
    monkeypatch: pytest.MonkeyPatch, bf16: float, expected: str
) -> None:
    bf16_ratio.cache_clear()
    monkeypatch.setattr(engine, "_product_seconds", lambda _device, dtype: bf16 if dtype == torch.bfloat16 else 1.0)
    assert select_device("cpu", "auto").precision == expected
    bf16_ratio.cache_clear()


def test_a_slow_precision_that_was_asked_for_is_kept_and_warned_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bf16_ratio.cache_clear()
    monkeypatch.setattr(engine, "_product_seconds", lambda _device, dtype: 3.0 if dtype == torch.bfloat16 else 1.0)
    with caplog.at_level("WARNING"):
        assert select_device("cpu", "bf16").precision == "bf16"
    assert "precision=bf16 will be slower than fp32 here" in caplog.text
    bf16_ratio.cache_clear()


@pytest.mark.parametrize(("kind", "groups", "suits"), [("cuda", 8, False), ("cuda", 1, True), ("cpu", 8, True)])
def test_a_gpu_is_given_no_depthwise_convolution_channels_last(kind: str, groups: int, suits: bool) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=groups))
    assert suits_channels_last(model, kind) == suits


@pytest.mark.parametrize(
    ("precision", "asked", "expected"),
    [("fp32", None, False), ("fp32", True, True), ("bf16", None, True), ("bf16", False, False)],
)
def test_the_order_in_memory_is_the_precisions_or_as_asked_and_changes_no_result(
    precision: str, asked: bool | None, expected: bool
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    images = torch.rand(2, 3, 20, 20)
    plain = model(images)
    device = select_device("cpu", precision, asked)
    placed = device.place(model)
    assert placed[2].weight.is_contiguous(memory_format=torch.channels_last) == expected  # type: ignore[index, union-attr]
    found = placed(images)  # both orders in the same arithmetic: without autocast
    torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-6)


def test_the_probe_measures_this_machine_and_draws_nothing() -> None:
    bf16_ratio.cache_clear()
    state = torch.get_rng_state()
    assert 0.0005 < bf16_ratio(torch.device("cpu")) < 100
    assert torch.equal(torch.get_rng_state(), state)


class HalfDetector(Detector):
    """Gradients of 3 that fp16 cannot hold at a scale of 65536."""

    def forward(self, images: list[torch.Tensor], targets: Any = None) -> Any:
        return {name: loss.half().float() for name, loss in super().forward(images, targets).items()}


def test_in_fp16_a_step_out_of_range_is_left_out_and_the_next_one_scaled_by_less() -> None:
    model, notes = HalfDetector(), Notes()
    half = Device(torch.device("cpu"), "fp16")
    scaler = half.scaler()
    assert train(model, Told(), 4, device=half, scaler=scaler, black_box=notes) == 4
    assert scaler.get_scale() < 65536
    assert notes.failed == []
    expected = Detector()
    train(expected, Told(), 4 - int(math.log2(65536 / scaler.get_scale())))
    torch.testing.assert_close(model.weight, expected.weight, rtol=1e-3, atol=1e-3)
