"""Which normalisation a model has, and which one a state dict was trained with."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from typing import Literal

from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from detlab.errors import UserError

Norm = Literal["batch", "frozen", "group"]


def group_norm(channels: int, eps: float) -> nn.GroupNorm:
    """GroupNorm with up to 32 groups: as many as divide the channels (Wu and He, 2018)."""
    return nn.GroupNorm(math.gcd(32, channels), channels, eps=eps)


def norm_layer(norm: str, eps: float) -> Callable[[int], nn.Module]:
    """What builds a norm of that name, from the number of channels.

    Args:
        norm: `batch`, `frozen` or `group`.
        eps: what is added to the variance.

    Raises:
        UserError: another name.
    """
    layers: dict[str, Callable[..., nn.Module]] = {
        "batch": nn.BatchNorm2d,
        "frozen": FrozenBatchNorm2d,
        "group": group_norm,
    }
    if norm not in layers:
        raise UserError(f"model.norm: {norm!r} is not one of {', '.join(layers)}.")
    return functools.partial(layers[norm], eps=eps)


def norm_of_keys(keys: Iterable[str]) -> Norm:
    """The norm that a state dict's names betray: only BatchNorm counts batches, only GroupNorm keeps no statistics."""
    names = {key.rpartition(".")[2] for key in keys}
    if "num_batches_tracked" in names:
        return "batch"
    return "frozen" if "running_mean" in names else "group"
