"""Norms that are folded into their convolutions wherever they are fixed: one operation instead of three."""

from __future__ import annotations

import itertools
from typing import Any, Self

import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

FixedNorm = nn.BatchNorm2d | FrozenBatchNorm2d


def _is_fixed(norm: FixedNorm) -> bool:
    """Whether a norm only scales and shifts: frozen, or in evaluation."""
    return isinstance(norm, FrozenBatchNorm2d) or not norm.training


class _FoldedFrozenBatchNorm2d(FrozenBatchNorm2d):
    """Done by the convolution before it."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class _FoldedBatchNorm2d(nn.BatchNorm2d):
    """Done by the convolution before it, but in training."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) if self.training else input


class FoldedConv2d(nn.Conv2d):
    """A convolution with the norm that follows it, for as long as that is fixed: `norm(conv(x))` as `conv'(x)`.

    The weights stay what they were, so that state dicts, optimizers and gradients do not notice. In evaluation the product is
    kept until a weight changes.
    """

    norm: tuple[FixedNorm]  # in a tuple, since it is another module's child
    _kept: tuple[tuple[Any, ...], Tensor, Tensor] | None = None

    def forward(self, input: Tensor) -> Tensor:
        (norm,) = self.norm
        if not _is_fixed(norm):
            return super().forward(input)
        weight, bias = self._folded() if self.training or torch.is_grad_enabled() else self._folded_once(input)
        return self._conv_forward(input, weight, bias)

    def train(self, mode: bool = True) -> Self:
        """As ever; in training the weights change, and torch's fused optimizers do so without the tensors' noticing."""
        if mode:
            self._kept = None
        return super().train(mode)

    def _folded(self) -> tuple[Tensor, Tensor]:
        """The weights of the one operation."""
        (norm,) = self.norm
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()  # pyright: ignore
        shift = norm.bias - norm.running_mean * scale  # pyright: ignore
        if self.bias is not None:
            shift = shift + self.bias * scale
        return self.weight * scale[:, None, None, None], shift

    def _folded_once(self, input: Tensor) -> tuple[Tensor, Tensor]:
        """The same, from the last time where nothing has changed since."""
        (norm,) = self.norm
        kind = input.device.type
        lower = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
        dtype = torch.get_autocast_dtype(kind) if lower else input.dtype
        tensors = [t for t in (*self.parameters(), *norm.parameters(), *norm.buffers()) if t.is_floating_point()]
        if any(t.is_inference() for t in tensors):
            return self._folded()  # such tensors do not tell when they change
        key = (dtype, *((id(t), t._version, t.device) for t in tensors))
        if self._kept is None or self._kept[0] != key:
            with torch.inference_mode(False), torch.no_grad():
                weight, bias = self._folded()
                self._kept = (key, weight.to(dtype), bias.to(dtype))
        return self._kept[1:]


_FOLDED: dict[type[nn.Module], Any] = {
    nn.BatchNorm2d: _FoldedBatchNorm2d,
    FrozenBatchNorm2d: _FoldedFrozenBatchNorm2d,
}


def fold_norms(model: nn.Module) -> None:
    """Fold each BatchNorm, frozen or not, into the convolution that stands before it among the same module's children.

    Only for models whose modules stand in the order in which they are called, as torchvision's do.
    """
    for parent in model.modules():
        children = list(parent.named_children())
        for (_, conv), (_, norm) in itertools.pairwise(children):
            if type(conv) is not nn.Conv2d or type(norm) not in _FOLDED:
                continue
            conv.__class__ = FoldedConv2d
            conv.norm = (norm,)  # pyright: ignore
            norm.__class__ = _FOLDED[type(norm)]
