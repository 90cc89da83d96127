"""A sparse matrix times a map's cells: each row a weighted sum of a few cells, with a backward pass that uses all cores."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional


class _SparseProduct(torch.autograd.Function):
    """torch's `embedding_bag` is that product, forward and, with the matrix transposed, backward; its own backward is slower."""

    @staticmethod
    def forward(ctx: Any, cells: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(index, weight)
        ctx.count = len(cells)
        return functional.embedding_bag(index, cells, mode="sum", per_sample_weights=weight.to(cells.dtype))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        index, weight = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        flat = index.flatten()
        order = torch.argsort(flat, stable=True)
        counts = torch.bincount(flat, minlength=ctx.count)
        offsets = torch.cumsum(counts, 0) - counts
        rows = torch.div(order, index.shape[1], rounding_mode="floor")
        weights = weight.flatten()[order].to(gradient.dtype)
        return functional.embedding_bag(rows, gradient, offsets, mode="sum", per_sample_weights=weights), None, None


def sparse_product(cells: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """Weighted sums of cells: `result[m] = sum over s of weight[m, s] * cells[index[m, s]]`.

    Args:
        cells: `[N, C]`, float; gradients flow to them alone.
        index: int64 `[M, S]`, 0..N - 1.
        weight: float `[M, S]`.

    Returns:
        `[M, C]` in the type of `cells`.
    """
    return cast(Tensor, _SparseProduct.apply(cells, index, weight))
