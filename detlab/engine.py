"""The two loops: one epoch of training, and one evaluation."""

from __future__ import annotations

import functools
import logging
import os
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from detlab import distributed
from detlab.chance import derived_seed, seed_all
from detlab.errors import NonFiniteLossError, OutOfMemoryError, UserError
from detlab.structures import FIELD_OF, Batch, IouType, Prediction

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

    @property
    def told(self) -> bool: ...

    def at(self, step: int) -> bool: ...

    def agree(self) -> bool: ...


class StepWriter(Protocol):
    """Takes what a training step has to tell."""

    def training_step(self, report: StepReport) -> None: ...


class WeightAverage(Protocol):
    """Follows a model's weights."""

    model: nn.Module

    def update(self, model: nn.Module) -> None: ...


_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# How much faster than fp32 bf16 must be for `auto` to choose it: by much more where the hardware has it, by less than 1 elsewhere.
_NATIVE_RATIO = 1.3
_LONG = 0.1  # seconds of products that are enough to tell


@dataclass(frozen=True)
class Device:
    """Where and in which arithmetic a model runs.

    Args:
        name: torch's device.
        precision: `fp32`, or `bf16` or `fp16` for autocast.
        channels_last: whether the channels of a map lie together in memory; None for with autocast, where it suits the model.
    """

    name: torch.device
    precision: str
    channels_last: bool | None = None

    def autocast(self) -> AbstractContextManager[Any]:
        """The context in which the model runs."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.name.type, dtype=_DTYPES[self.precision])

    def scaler(self) -> GradScaler:
        """What keeps the gradients of fp16 in its range; with the other precisions it does nothing."""
        return GradScaler(self.name.type, enabled=self.precision == "fp16")

    def place(self, model: nn.Module) -> nn.Module:
        """The model on the device, its convolutions in the memory order that is asked for."""
        wanted = self.channels_last
        if wanted is None:
            wanted = self.precision != "fp32" and suits_channels_last(model, self.name.type)
        if not wanted:
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


def suits_channels_last(model: nn.Module, kind: str) -> bool:
    """Whether a model's convolutions are better with the channels together in memory, on that kind of device, in half precision.

    Not depthwise ones on a GPU: cuDNN compiles a kernel for each of them then, half a minute for a MobileNetV2 on an H100.
    """
    return kind != "cuda" or not any(
        isinstance(m, nn.Conv2d) and m.groups == m.in_channels > 1 for m in model.modules()
    )


def select_device(name: str, precision: str, channels_last: bool | None = None) -> Device:
    """The device of that name; `auto` is a GPU where there is one; of several processes each has its own.

    Args:
        name: `auto`, or torch's.
        precision: `fp32`, `bf16`, `fp16`; `auto` for bf16 where it was measured to be faster.
        channels_last: see `Device`.

    Raises:
        UserError: more processes than GPUs.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and distributed.size() > 1:
        name = f"cuda:{distributed.local_rank()}"
        if distributed.local_rank() >= torch.cuda.device_count():
            raise UserError(
                f"device: process {distributed.local_rank()} of this machine has no GPU of its own, there are "
                f"{torch.cuda.device_count()}; start fewer processes, or give device=cpu."
            )
    device = torch.device(name)
    if precision == "auto":
        precision = distributed.from_first(lambda: "bf16" if bf16_ratio(device) >= _NATIVE_RATIO else "fp32")
    elif precision != "fp32" and name == "cpu" and bf16_ratio(device) < 1:
        log.warning("this processor has no arithmetic for it: precision=%s will be slower than fp32 here", precision)
    return Device(device, precision, channels_last)


@functools.cache
def bf16_ratio(device: torch.device) -> float:
    """How many times faster than in fp32 a product of matrices is in bf16 on a device, by measure.

    A part of a second; where the processor imitates it, one or two seconds.
    """
    seconds = {dtype: _product_seconds(device, dtype) for dtype in (torch.float32, torch.bfloat16)}
    return seconds[torch.float32] / seconds[torch.bfloat16]


def _product_seconds(device: torch.device, dtype: torch.dtype) -> float:
    """The least time of several products of two 512 x 512 matrices; infinite where the device cannot do it.

    Of two, where these take long: a processor that has to imitate a type may need a hundred times as long for it.
    """
    try:
        matrix = torch.ones(512, 512, dtype=dtype, device=device)
        times = []
        while len(times) < 2 or (len(times) < 8 and sum(times) < _LONG):
            started = time.perf_counter()
            (matrix @ matrix)[0, 0].item()
            times.append(time.perf_counter() - started)
    except RuntimeError:
        return float("inf")
    return min(times)


def only_deterministic(wanted: bool) -> None:
    """Whether torch takes only operations that give the same bits each time; on a CPU ours do so anyway.

    torch raises a RuntimeError, which names it, at an operation that has no such variant on the device.
    """
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(wanted)
    torch.backends.cudnn.benchmark = False


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


@dataclass(frozen=True)
class NonFiniteStep:
    """What is known of a step whose losses or gradients are not finite; the weights are those from before it.

    Args:
        model: with the gradients of the step, averaged over the processes.
        step: its number, from 1.
        seed: that this process drew from in it.
        batches: this process's micro-batches.
        own_losses: of each of them.
        losses: their means over all processes, with `loss`, their sum.
        lr: the rate.
        device: where the model runs.
        iou_types: what is learnt.
    """

    model: nn.Module
    step: int
    seed: int
    batches: list[Batch]
    own_losses: list[dict[str, Tensor]]
    losses: dict[str, Tensor]
    lr: float
    device: Device
    iou_types: Sequence[IouType]


class BlackBox(Protocol):
    """Is told of steps that are not finite."""

    def record(self, failed: NonFiniteStep) -> None: ...


class Saving(Protocol):
    """Is told of every step that is done, and saves when it is time to."""

    def at(self, step: int) -> None: ...


class NormStatistics:
    """What a pass of training changes in a model without a step: the running statistics of its norms, as they are now."""

    def __init__(self, model: nn.Module) -> None:
        norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._NormBase) and m.training]
        buffers = [buffer for norm in norms for buffer in norm.buffers()]
        # All of a type together: a copy of each would be as many small operations.
        alike = [[b for b in buffers if b.dtype == dtype] for dtype in {b.dtype for b in buffers}]
        self._kept = [(of_type, torch.cat([b.flatten() for b in of_type])) for of_type in alike]

    def restore(self) -> None:
        """Bring them back."""
        for buffers, before in self._kept:
            for buffer, values in zip(buffers, before.split([b.numel() for b in buffers]), strict=True):
                buffer.copy_(values.view_as(buffer))


_SMALLER = "a smaller image_size.min and image_size.max, or precision=bf16"


@contextmanager
def _memory_said(where: str, batch: Batch, advice: str) -> Iterator[None]:
    """Words for what torch says when memory is at its end.

    Raises:
        OutOfMemoryError: in place of torch's.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        wanted = isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
        if not wanted:
            raise
        images, targets = batch
        sizes = ", ".join(dict.fromkeys(f"{image.shape[-2]} x {image.shape[-1]}" for image in images))
        objects = sum(len(target["boxes"]) for target in targets)
        said = f"out of memory in {where}: {len(images)} images of {sizes} pixels with {objects} objects."
        raise OutOfMemoryError(f"{said} Try {advice}.") from error


def losses_of(
    model: nn.Module, images: Sequence[Tensor], targets: Sequence[Any], device: Device, iou_types: Sequence[IouType]
) -> dict[str, Tensor]:
    """A model's losses for uint8 images `[3, H, W]` and their targets."""
    with device.autocast():
        return model(device.images(images), device.targets(targets, iou_types))


def train_one_epoch(
    model: nn.Module,
    batches: Iterable[Batch],
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
    black_box: BlackBox | None = None,
    saving: Saving | None = None,
    scaler: GradScaler | None = None,
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
        black_box: is told of a step that is not finite; where it does not raise, the step is left out.
        saving: may save after each step but the last, which its caller does.
        scaler: the device's. A step whose gradient leaves the range of fp16 is left out, and the next one scaled by less.

    Returns:
        The number of optimizer steps done, those before included.

    Raises:
        NonFiniteLossError: before the step's update, in all processes; from `black_box` where there is one.
        OutOfMemoryError: with the batch.
    """
    model.train()
    scaler = device.scaler() if scaler is None else scaler
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    source: Iterator[Batch] = iter(batches)
    for done in range(1, steps + 1):
        started, data_time = time.perf_counter(), 0.0
        step_seed = derived_seed(seed, step, distributed.rank())
        seed_all(step_seed)
        optimizer.zero_grad(set_to_none=True)
        statistics = NormStatistics(model)
        taken: list[Batch] = []
        parts: list[dict[str, Tensor]] = []
        for _ in range(accumulate):
            asked = time.perf_counter()
            taken.append(next(source))
            data_time += time.perf_counter() - asked
            images, targets = taken[-1]
            with _memory_said(f"step {step + 1}", taken[-1], f"accumulate=2 (the same step in two halves), {_SMALLER}"):
                parts.append(losses_of(model, images, targets, device, iou_types))
                scaler.scale(torch.stack(list(parts[-1].values())).sum() / accumulate).backward()
        sums = {name: torch.stack([part[name].detach() for part in parts]).sum(0) / accumulate for name in parts[0]}
        # One message: whatever is not finite anywhere is so everywhere, and no process goes on alone.
        shared = distributed.mean(torch.stack([torch.stack(list(sums.values())).sum(), *sums.values()]))
        losses = dict(zip(("loss", *sums), shared.unbind(), strict=True))
        distributed.average_gradients(trained)
        scaler.unscale_(optimizer)
        norm = nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
        lr = optimizer.param_groups[0]["lr"]
        if torch.isfinite(norm) and torch.isfinite(losses["loss"]):
            if clip_grad_norm is not None:
                nn.utils.clip_grads_with_norm_(trained, clip_grad_norm, norm)
            scaler.step(optimizer)
            schedule.step()
            distributed.average_statistics(model)
            if average is not None:
                average.update(model)
        else:
            statistics.restore()
            failed = NonFiniteStep(model, step + 1, step_seed, taken, parts, losses, lr, device, iou_types)
            # The scale begins far too high on purpose: such a step is how it comes down, and nothing has broken down.
            too_large = scaler.is_enabled() and scaler.get_scale() > 1 and bool(torch.isfinite(losses["loss"]))
            if not too_large:
                if black_box is None:
                    raise NonFiniteLossError(said_of(failed))
                black_box.record(failed)
            with warnings.catch_warnings():
                # Where the very first step is left out.
                warnings.filterwarnings("ignore", message=r"Detected call of `lr_scheduler\.step\(\)` before")
                schedule.step()
        scaler.update()
        step += 1
        images_done = sum(len(images) for images, _ in taken) * distributed.size()
        step_time = time.perf_counter() - started
        writer.training_step(StepReport(step, epoch, losses, lr, images_done, data_time, step_time))
        if stopping.at(step):
            break
        if saving is not None and done < steps:
            saving.at(step)
    return step


def said_of(failed: NonFiniteStep) -> str:
    """A step that is not finite in words: its losses and images; all processes call it."""
    said = ", ".join(f"{name}={float(value):.4g}" for name, value in failed.losses.items())
    finite = all(bool(torch.isfinite(value)) for value in failed.losses.values())
    own = [target["image_id"] for _, targets in failed.batches for target in targets]
    images = distributed.broadcast([i for part in distributed.gather(own) for i in part])
    return (
        f"non-finite {'gradient' if finite else 'loss'} in step {failed.step}: {said}; images {images}. Nothing of it was saved. "
        "Try a lower optimizer.lr, clip_grad_norm=5, or look at these images."
    )


@torch.inference_mode()
def predict(
    model: nn.Module, images: Sequence[Tensor], device: Device, *, paste_masks: bool = True
) -> list[Prediction]:
    """Predictions of a model for uint8 images `[3, H, W]`, in their own pixels.

    Without `paste_masks` a model that can leaves the masks in their boxes, which is all that an evaluator needs.
    """
    model.eval()
    transform: Any = getattr(model, "transform", None)
    leaves_them = not paste_masks and hasattr(transform, "pastes_masks")
    if leaves_them:
        transform.pastes_masks = False
    try:
        with device.autocast():
            return model(device.images(images))
    finally:
        if leaves_them:
            transform.pastes_masks = True


def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
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

    Raises:
        OutOfMemoryError: with the image.
    """
    evaluator.reset()
    # An evaluator of the user's is given masks as torchvision's models give them.
    paste_masks = not getattr(evaluator, "takes_masks_in_boxes", False)
    for images, targets in batches:
        with _memory_said("an evaluation", (images, targets), _SMALLER):
            predictions = predict(model, images, device, paste_masks=paste_masks)
        evaluator.update([target["image_id"] for target in targets], predictions)
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
    batches: Iterable[Batch],
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
        losses = losses_of(model, images, targets, device, iou_types)
        rows += [{name: float(value) for name, value in losses.items()}] * len(images)
        if stopping.told:
            break
    if stopping.agree():
        return None
    every = distributed.broadcast([row for part in distributed.gather(rows) for row in part])
    means = {name: sum(row[name] for row in every) / len(every) for name in (every[0] if every else ())}
    return {"loss": sum(means.values()), **means}
