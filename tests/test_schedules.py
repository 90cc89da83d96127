"""Learning-rate schedules against torch's own and their formulas."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch.optim.lr_scheduler import LinearLR, LRScheduler, MultiStepLR, StepLR

from detlab import schedules


def rates(make: Callable[[torch.optim.Optimizer], LRScheduler], steps: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    schedule = make(optimizer)
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return seen


COMMON = {"total_steps": 40, "steps_per_epoch": 10, "warmup_factor": 0.001}


def test_the_warm_up_is_torchs_linear_one() -> None:
    ours = rates(lambda o: schedules.constant(o, **COMMON, warmup_steps=9), 20)
    assert ours == pytest.approx(rates(lambda o: LinearLR(o, 0.001, total_iters=9), 20))
    assert ours[0] == pytest.approx(0.0001)
    assert ours[9] == 0.1


def test_the_rate_rises_even_with_one_step_an_epoch() -> None:
    ours = rates(
        lambda o: schedules.constant(o, total_steps=5, steps_per_epoch=1, warmup_steps=3, warmup_factor=0.001), 5
    )
    assert ours[3:] == [0.1, 0.1]


def test_step_and_multistep_count_epochs_as_torchs_do() -> None:
    ours = rates(lambda o: schedules.step(o, **COMMON, warmup_steps=0, step_epochs=2, gamma=0.1), 40)
    assert ours == pytest.approx(rates(lambda o: StepLR(o, 20, 0.1), 40))
    ours = rates(lambda o: schedules.multistep(o, **COMMON, warmup_steps=0, milestone_epochs=[1, 3], gamma=0.5), 40)
    assert ours == pytest.approx(rates(lambda o: MultiStepLR(o, [10, 30], 0.5), 40))


def test_cosine_ends_at_its_final_factor() -> None:
    ours = rates(lambda o: schedules.cosine(o, **COMMON, warmup_steps=0, final_factor=0.1), 60)
    assert ours[0] == pytest.approx(0.1)
    assert ours[20] == pytest.approx(0.1 * (0.1 + 0.9 * (1 + math.cos(math.pi / 2)) / 2))
    assert ours[40] == ours[59] == pytest.approx(0.01)
