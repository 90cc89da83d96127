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

from detlab import distributed
from detlab.chance import derived_seed
from detlab.errors import NonFiniteLossError, UserError
from detlab.structures import FIELD_OF, IouType, Prediction

log = logging.getLogger(__name__)


class Evaluator(Protocol):
    """What collects predictions and makes numbers of them; knows no model."""

    def reset(self) -> None: ...

    def update(self, image_ids: Sequence[int], predictions: Sequence[Prediction]) -> None: ...

    def held(self) -> Any: ...

    def merge(self, held: Any) -> None: ...

    def compute(self) -> dict[str, float]: ...


class Stopping(Protocol):
    """Says whether a loop must end before its time."""

    told: bool

    def at(self, step: int) -> bool: ...

    def agree(self) -> bool: ...


class StepWriter(Protocol):
    """Takes what a training step has to tell."""

    def training_step(self, report: StepReport) -> None: ...


class WeightAverage(Protocol):
    """Follows a model's weights."""

    model: nn.Module

    def update(self, model: nn.Module) -> None: ...


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
    """The device of that name; `auto` is a GPU where there is one; of several processes each has its own."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and distributed.size() > 1:
        name = f"cuda:{distributed.local_rank()}"
        if distributed.local_rank() >= torch.cuda.device_count():
            raise UserError(
                f"device: process {distributed.local_rank()} of this machine has no GPU of its own, there are "
                f"{torch.cuda.device_count()}; start fewer processes, or give device=cpu."
            )
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
            images = distributed.broadcast([i for part in distributed.gather(image_ids) for i in part])
            raise NonFiniteLossError(
                f"non-finite loss in step {step}: {said}; images {images}. Nothing of it was saved. "
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
    average: WeightAverage | None = None,
) -> int:
    """Train over one epoch, or what is left of it; several processes do each step together.

    Args:
        model: torchvision's contract: `model(images, targets)` to a dict of losses.
        batches: this process's micro-batches of uint8 images `[3, H, W]` and targets; `accumulate` of them make a step.
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
        seed: of the run; each step draws from (seed, step, process).
        iou_types: what is learnt: masks and keypoints go to the device only where they are.
        average: follows the weights, after each step.

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
        torch.manual_seed(derived_seed(seed, step, distributed.rank()))
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
        # One message: whatever is not finite anywhere is so everywhere, and no process goes on alone.
        shared = distributed.mean(torch.stack([torch.stack(list(sums.values())).sum(), *sums.values()]))
        losses = dict(zip(("loss", *sums), shared.unbind(), strict=True))
        finite = torch.isfinite(losses["loss"])
        watch.look(finite, step + 1, losses, image_ids)
        if device.reads_late:
            _mask_update(model, finite)
        else:
            watch.settle()
        distributed.average_gradients(trained)
        if clip_grad_norm is not None:
            nn.utils.clip_grad_norm_(trained, clip_grad_norm)
        lr = optimizer.param_groups[0]["lr"]
        optimizer.step()
        schedule.step()
        step += 1
        if average is not None:
            average.update(model)
        images_done = len(image_ids) * distributed.size()
        step_time = time.perf_counter() - started
        writer.training_step(StepReport(step, epoch, losses, lr, images_done, data_time, step_time))
        if stopping.at(step):
            break
    watch.settle()
    distributed.average_buffers(model)
    if average is not None:
        distributed.average_buffers(average.model)
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
    """Score a model on all images of a loader; of several processes each takes its part, and the first one scores all.

    Args:
        model: torchvision's contract: `model(images)` to a list of predictions.
        batches: this process's uint8 images and targets, of which only `image_id` is read.
        evaluator: is fed, and scores.
        stopping: is asked after every batch.
        device: where it runs, and in which precision.

    Returns:
        The evaluator's numbers, the same in all processes; None where it was stopped.
    """
    evaluator.reset()
    for images, targets in batches:
        evaluator.update([target["image_id"] for target in targets], predict(model, images, device))
        if stopping.told:
            break
    if stopping.agree():
        return None
    if distributed.size() > 1:
        parts = distributed.gather(evaluator.held())
        evaluator.reset()
        for part in parts:
            evaluator.merge(part)
    return distributed.from_first(evaluator.compute)


@torch.no_grad()
def validation_loss(
    model: nn.Module,
    batches: Iterable[tuple[list[Tensor], list[Any]]],
    stopping: Stopping,
    *,
    device: Device,
    seed: int,
    iou_types: Sequence[IouType],
) -> dict[str, float] | None:
    """A model's mean losses over the images of a loader: the pass of training without gradients, dropout or updates of norms.

    torchvision's detectors tell losses in training mode only; their norms stay as in evaluation. The regions that a detector
    samples for its losses are drawn from (seed, image), so that two evaluations differ by the weights alone.

    Args:
        model: torchvision's contract.
        batches: this process's uint8 images `[3, H, W]` and trainable targets.
        stopping: is asked after every batch.
        device: where it runs, and in which precision.
        seed: of the sampling.
        iou_types: what is learnt.

    Returns:
        `loss` and each `loss_<name>`, the same in all processes; None where it was stopped.
    """
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase | nn.modules.dropout._DropoutNd):
            module.eval()
    rows: list[dict[str, float]] = []
    for images, targets in batches:
        torch.manual_seed(derived_seed(seed, *(target["image_id"] for target in targets)))
        with device.autocast():
            losses: dict[str, Tensor] = model(device.images(images), device.targets(targets, iou_types))
        rows += [{name: float(value) for name, value in losses.items()}] * len(images)
        if stopping.told:
            break
    if stopping.agree():
        return None
    every = distributed.broadcast([row for part in distributed.gather(rows) for row in part])
    means = {name: sum(row[name] for row in every) / len(every) for name in (every[0] if every else ())}
    return {"loss": sum(means.values()), **means}
