"""How the learning rate goes over the steps of a run: a linear warm-up in steps, times a curve."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def _with_warmup(
    optimizer: Optimizer, curve: Callable[[int], float], warmup_steps: int, warmup_factor: float
) -> LambdaLR:
    """The rate of step s is `lr * curve(s)`, and in the first `warmup_steps` that times a line from `warmup_factor` to 1.

    Torchvision's reference divides by `min(1000, batches - 1)`, so that with one batch an epoch the rate never rises; here
    the warm-up counts steps.
    """

    def factor(step: int) -> float:
        if step >= warmup_steps:
            return curve(step)
        part = step / warmup_steps
        return curve(step) * (warmup_factor * (1 - part) + part)

    return LambdaLR(optimizer, factor)


def constant(
    optimizer: Optimizer, *, total_steps: int, steps_per_epoch: int, warmup_steps: int, warmup_factor: float
) -> LambdaLR:
    """The same rate throughout, after the warm-up."""
    return _with_warmup(optimizer, lambda step: 1.0, warmup_steps, warmup_factor)


def step(
    optimizer: Optimizer,
    *,
    total_steps: int,
    steps_per_epoch: int,
    step_epochs: int,
    gamma: float,
    warmup_steps: int,
    warmup_factor: float,
) -> LambdaLR:
    """The rate times `gamma` after every `step_epochs` epochs, as `torch.optim.lr_scheduler.StepLR`."""
    return _with_warmup(
        optimizer, lambda step: gamma ** (step // (steps_per_epoch * step_epochs)), warmup_steps, warmup_factor
    )


def multistep(
    optimizer: Optimizer,
    *,
    total_steps: int,
    steps_per_epoch: int,
    milestone_epochs: Sequence[int],
    gamma: float,
    warmup_steps: int,
    warmup_factor: float,
) -> LambdaLR:
    """The rate times `gamma` after each of `milestone_epochs`, as `torch.optim.lr_scheduler.MultiStepLR`."""
    milestones = sorted(epoch * steps_per_epoch for epoch in milestone_epochs)
    return _with_warmup(optimizer, lambda step: gamma ** bisect_right(milestones, step), warmup_steps, warmup_factor)


def cosine(
    optimizer: Optimizer,
    *,
    total_steps: int,
    steps_per_epoch: int,
    final_factor: float,
    warmup_steps: int,
    warmup_factor: float,
) -> LambdaLR:
    """Half a cosine from the rate to `final_factor` of it at the last step (Loshchilov and Hutter, 2017)."""

    def curve(step: int) -> float:
        part = min(step / total_steps, 1.0)
        return final_factor + (1 - final_factor) * (1 + math.cos(math.pi * part)) / 2

    return _with_warmup(optimizer, curve, warmup_steps, warmup_factor)
