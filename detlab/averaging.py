"""An average of a model's weights over the steps of training, which often scores better than the last weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from detlab.errors import UserError


class Average:
    """Exponential moving average of a model's parameters and of the running statistics of its norms.

    The decay of update t, from 0, is `min(decay, (1 + t) / (10 + t))`, as in TensorFlow's `tf.train.ExponentialMovingAverage`
    with `num_updates`: with a constant one, the random start would weigh on all of a short run. Buffers of whole numbers are
    copied. Not by `torch.optim.swa_utils.AveragedModel`, which either averages those too or copies the statistics, renames the
    weights, and waits for a GPU in each step.

    Args:
        model: where it belongs (device and memory format); its copy begins with the present weights.
        decay: weight of the past in each update, 0 to below 1; 0.999 looks back on about 1000 steps.

    Attributes:
        model: the copy with the averaged weights, in evaluation mode, without gradients; hooks and `iou_types` as the model has.
        updates: how many it has seen.

    Raises:
        UserError: a decay out of its range.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise UserError(f"ema: {decay} is not allowed; allowed: 0 or more, and below 1, such as 0.999.")
        self.decay = decay
        self.updates = 0
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take up the weights of the model after a step; nothing waits for a GPU."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        averaged: list[Tensor] = []
        present: list[Tensor] = []
        for ours, theirs in zip(_tensors(self.model), _tensors(model), strict=True):
            if ours.is_floating_point():
                averaged.append(ours)
                present.append(theirs.detach())
            else:
                ours.copy_(theirs)
        torch._foreach_lerp_(averaged, present, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]
        self.updates += 1

    def restart(self, model: nn.Module) -> None:
        """Forget the past: begin anew with the present weights."""
        self.model.load_state_dict(model.state_dict())
        self.updates = 0

    def state_dict(self) -> dict[str, Any]:
        """What goes on from here, as tensors and plain values; the decay is the configuration's."""
        return {"updates": self.updates, "model": self.model.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state.

        Raises:
            RuntimeError: it is another model's.
        """
        self.model.load_state_dict(state["model"])
        self.updates = int(state["updates"])


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]
