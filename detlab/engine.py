"""The two loops: one epoch of training, and one evaluation."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from detlab.chance import derived_seed
from detlab.errors import NonFiniteLossError
from detlab.structures import FIELD_OF, IouType, Prediction

log = logging.getLogger(__name__)


class Evaluator(Protocol):
    """What collects predictions and makes numbers of them; knows no model."""

    def reset(self) -> None: ...

    def update(self, image_ids: Sequence[int], predictions: Sequence[Prediction]) -> None: ...

    def compute(self) -> dict[str, float]: ...


class Stopping(Protocol):
    """Says whether a loop must end before its time."""

    interrupted: bool

    def at(self, step: int) -> bool: ...


class StepWriter(Protocol):
    """Takes what a training step has to tell."""

    def training_step(self, report: StepReport) -> None: ...


@dataclass(frozen=True)
class Device:
    """Where and in which arithmetic a model runs.

    Args:
        name: torch's device.
        precision: `fp32`, or `bf16` for autocast.
    """

    name: torch.device
    precision: str

    @property
    def reads_late(self) -> bool:
        """Whether reading a value would wait for the device."""
        return self.name.type != "cpu"

    def autocast(self) -> AbstractContextManager[Any]:
        """The context in which the model runs."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.name.type, dtype=torch.bfloat16)

    def place(self, model: nn.Module) -> nn.Module:
        """The model on the device; with autocast its convolutions in the memory order that suits them."""
        if self.precision == "fp32":
            return model.to(self.name)
        return model.to(self.name, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def images(self, images: Sequence[Tensor]) -> list[Tensor]:
        """uint8 images as float32 in 0..1 on the device."""
        return [image.as_subclass(Tensor).to(self.name, non_blocking=True).float() / 255 for image in images]

    def targets(self, targets: Sequence[Any], iou_types: Sequence[IouType]) -> list[dict[str, Tensor]]:
        """Of each target what the losses need, as plain tensors on the device."""
        fields = dict.fromkeys(("boxes", "labels", *(FIELD_OF[iou_type] for iou_type in iou_types)))
        return [
            {field: target[field].as_subclass(Tensor).to(self.name, non_blocking=True) for field in fields}
            for target in targets
        ]


def select_device(name: str, precision: str) -> Device:
    """The device of that name; `auto` is the first GPU where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu" and precision == "bf16" and torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2"):
        log.warning("this processor has no bf16 arithmetic: precision=bf16 will be slower than fp32 here")
    return Device(torch.device(name), precision)


@dataclass(frozen=True)
class StepReport:
    """What one optimizer step has to tell; losses stay on the device until somebody reads them."""

    step: int
    epoch: int
    losses: dict[str, Tensor]
    lr: float
    images: int
    data_time: float  # seconds that the step waited for images
    step_time: float  # seconds in all


class _FiniteWatch:
    """Asks whether losses were finite: at once where reading is free, one step late where a GPU would be waited for."""

    def __init__(self) -> None:
        self._last: tuple[Tensor, int, dict[str, Tensor], list[int]] | None = None

    def look(self, finite: Tensor, step: int, losses: dict[str, Tensor], image_ids: list[int]) -> None:
        """Settle the step before, and take up this one."""
        self.settle()
        self._last = (finite, step, losses, image_ids)

    def settle(self) -> None:
        """Raise for the step that was looked at last.

        Raises:
            NonFiniteLossError: with the losses, the step and the images.
        """
        if self._last is None:
            return
        finite, step, losses, image_ids = self._last
        self._last = None
        if not bool(finite):
            said = ", ".join(f"{name}={float(value):.4g}" for name, value in losses.items())
            raise NonFiniteLossError(
                f"non-finite loss in step {step}: {said}; images {image_ids}. Nothing of it was saved. "
                "Try a lower optimizer.lr, clip_grad_norm=5, or look at these images."
            )


def _mask_update(model: nn.Module, finite: Tensor) -> None:
    """Zero the gradients where the loss was not finite, without a wait for the device.

    The weights stay finite until the flag is read; momentum and weight decay still move them in that one step.
    """
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad = torch.where(finite, parameter.grad, torch.zeros_like(parameter.grad))


def train_one_epoch(
    model: nn.Module,
    batches: Iterable[tuple[list[Tensor], list[Any]]],
    optimizer: Optimizer,
    schedule: LRScheduler,
    writer: StepWriter,
    stopping: Stopping,
    *,
    device: Device,
    epoch: int,
    step: int,
    steps: int,
    accumulate: int,
    clip_grad_norm: float | None,
    seed: int,
    iou_types: Sequence[IouType],
) -> int:
    """Train over one epoch, or what is left of it.

    Args:
        model: torchvision's contract: `model(images, targets)` to a dict of losses.
        batches: micro-batches of uint8 images `[3, H, W]` and targets; `accumulate` of them make a step.
        optimizer: over the model's trainable parameters.
        schedule: stepped once a step.
        writer: is told of every step.
        stopping: is asked after every step.
        device: where it runs, and in which precision.
        epoch: its number, from 0.
        step: optimizer steps done so far.
        steps: optimizer steps to do.
        accumulate: micro-batches a step.
        clip_grad_norm: largest norm of the gradient; None for no limit.
        seed: of the run; each step draws from (seed, step).
        iou_types: what is learnt: masks and keypoints go to the device only where they are.

    Returns:
        The number of optimizer steps done, those before included.

    Raises:
        NonFiniteLossError: on a CPU before the step's update; on a GPU a step later, its gradients having been zeroed.
    """
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    watch = _FiniteWatch()
    source: Iterator[tuple[list[Tensor], list[Any]]] = iter(batches)
    for _ in range(steps):
        started, data_time, image_ids = time.perf_counter(), 0.0, []
        torch.manual_seed(derived_seed(seed, step, 0))
        optimizer.zero_grad(set_to_none=True)
        sums: dict[str, Tensor] = {}
        for _ in range(accumulate):
            asked = time.perf_counter()
            images, targets = next(source)
            data_time += time.perf_counter() - asked
            with device.autocast():
                parts: dict[str, Tensor] = model(device.images(images), device.targets(targets, iou_types))
            loss = torch.stack(list(parts.values())).sum() / accumulate
            loss.backward()
            for name, value in parts.items():
                sums[name] = value.detach() / accumulate + (sums[name] if name in sums else 0)
            image_ids += [target["image_id"] for target in targets]
        losses = {"loss": torch.stack(list(sums.values())).sum(), **sums}
        finite = torch.isfinite(losses["loss"])
        watch.look(finite, step + 1, losses, image_ids)
        if device.reads_late:
            _mask_update(model, finite)
        else:
            watch.settle()
        if clip_grad_norm is not None:
            nn.utils.clip_grad_norm_(trained, clip_grad_norm)
        lr = optimizer.param_groups[0]["lr"]
        optimizer.step()
        schedule.step()
        step += 1
        step_time = time.perf_counter() - started
        writer.training_step(StepReport(step, epoch, losses, lr, len(image_ids), data_time, step_time))
        if stopping.at(step):
            break
    watch.settle()
    return step


@torch.inference_mode()
def predict(model: nn.Module, images: Sequence[Tensor], device: Device) -> list[Prediction]:
    """Predictions of a model for uint8 images `[3, H, W]`, in their own pixels."""
    model.eval()
    with device.autocast():
        return model(device.images(images))


def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[list[Tensor], list[Any]]],
    evaluator: Evaluator,
    stopping: Stopping,
    *,
    device: Device,
) -> dict[str, float] | None:
    """Score a model on all images of a loader.

    Args:
        model: torchvision's contract: `model(images)` to a list of predictions.
        batches: uint8 images and targets, of which only `image_id` is read.
        evaluator: is fed, and scores.
        stopping: is asked after every batch.
        device: where it runs, and in which precision.

    Returns:
        The evaluator's numbers; None where it was stopped.
    """
    evaluator.reset()
    for images, targets in batches:
        evaluator.update([target["image_id"] for target in targets], predict(model, images, device))
        if stopping.interrupted:
            return None
    return evaluator.compute()
