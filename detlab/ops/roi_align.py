"""RoIAlign as matrix products: torchvision's results, with a backward pass that uses all cores.

RoIAlign (He et al., 2017) is linear in the feature map, and separable: a bin's row is a weighted sum of the map's rows, its column
of the columns. So the regions are one matrix, bins by cells, times the maps, cells by channels; and the gradient is the transposed
matrix times the bins' gradients. torchvision's CPU kernel adds that gradient cell by cell in one thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torchvision import ops
from torchvision.ops import poolers
from torchvision.ops._utils import convert_boxes_to_roi_format

from detlab.errors import UserError
from detlab.ops.sparse import sparse_product
from detlab.ops.timing import clock

Method = Literal["torchvision", "dense", "sparse"]
METHODS: tuple[Method, ...] = ("torchvision", "dense", "sparse")


def _samples(start: Tensor, bin_size: Tensor, bins: int, sampling_ratio: int, extent: int) -> tuple[Tensor, Tensor]:
    """Along one axis, the cells that each bin of each region reads, and with which weight.

    Args:
        start: where the regions begin, in cells, `[K]`.
        bin_size: of their bins, in cells, `[K]`.
        bins: of a region.
        sampling_ratio: points in a bin; 0 or less for as many as the bin has cells.
        extent: of the map, in cells.

    Returns:
        Cells int64 `[K, bins, 2 S]` and weights `[K, bins, 2 S]`, for S points, or the most that a region has; unused ones weigh 0.
    """
    if sampling_ratio > 0:
        counts = torch.full_like(start, sampling_ratio)
        most = sampling_ratio
    else:
        counts = bin_size.ceil()
        most = max(1, int(counts.max())) if len(counts) else 1
    step = torch.arange(most, dtype=start.dtype, device=start.device)
    # A region without extent has no points by itself; torchvision divides by at least one.
    places = (step + 0.5) * (bin_size / counts.clamp(min=1))[:, None]
    offsets = torch.arange(bins, dtype=start.dtype, device=start.device)[:, None] * bin_size[:, None, None]
    points = start[:, None, None] + offsets + places[:, None]
    used = (step < counts[:, None])[:, None] & (points >= -1) & (points <= extent)
    points = points.clamp(min=0)
    low = points.floor().clamp(max=extent - 1)
    # Beyond the centre of the last cell there is but that cell.
    high_weight = torch.where(low >= extent - 1, 0, points - low)
    weight = used / counts.clamp(min=1)[:, None, None]
    cells = torch.cat([low, (low + 1).clamp(max=extent - 1)], -1).long()
    return cells, torch.cat([weight * (1 - high_weight), weight * high_weight], -1)


def _axes(
    rois: Tensor, output_size: tuple[int, int], scale: float, sampling_ratio: int, aligned: bool, extents: Sequence[int]
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """`_samples` of rows and of columns for boxes `[K, 4]`, xyxy in pixels of the image."""
    boxes = rois * scale - (0.5 if aligned else 0.0)
    sizes = boxes[:, 2:] - boxes[:, :2]
    if not aligned:
        sizes = sizes.clamp(min=1)
    found = []
    for axis, bins, extent in ((1, output_size[0], extents[0]), (0, output_size[1], extents[1])):
        found.append(_samples(boxes[:, axis], sizes[:, axis] / bins, bins, sampling_ratio, extent))
    return found[0], found[1]


def _dense_axis(cells: Tensor, weights: Tensor, extent: int) -> Tensor:
    """An interpolation along one axis as a matrix, `[K, bins, extent]`."""
    return weights.new_zeros((*cells.shape[:2], extent)).scatter_add_(2, cells, weights)


@dataclass(frozen=True)
class _Reads:
    """What the regions on one map read: of bin rows and bin columns, cells and weights."""

    images: Tensor  # int64 [K], the image of each
    rows: tuple[Tensor, Tensor]  # [K, P, 2 S]
    columns: tuple[Tensor, Tensor]  # [K, Q, 2 S]


def _dense(features: Tensor, reads: _Reads) -> Tensor:
    """Maps `[B, C, H, W]` to bins `[K, P, Q, C]` by two small matrix products, one an axis; autograd knows their backward."""
    _, channels, height, width = features.shape
    down = _dense_axis(*reads.rows, height).to(features.dtype)
    across = _dense_axis(*reads.columns, width).to(features.dtype)
    bins = []
    for image, cells in enumerate(features.permute(0, 2, 3, 1)):
        here = (reads.images == image).nonzero()[:, 0]
        rows = down[here].reshape(-1, height)
        strips = (rows @ cells.reshape(height, width * channels)).view(len(here), down.shape[1], width, channels)
        bins.append((here, across[here][:, None] @ strips))
    order = torch.cat([here for here, _ in bins])
    return torch.cat([pooled for _, pooled in bins])[torch.argsort(order)]


def _sparse_matrix(reads: _Reads, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Of each bin the cells of the batch that it reads and their weights, `[K, P, Q, R]` each."""
    (down, down_weight), (across, across_weight) = reads.rows, reads.columns
    rows = reads.images[:, None, None] * height + down
    index = rows[:, :, None, :, None] * width + across[:, None, :, None, :]
    weight = down_weight[:, :, None, :, None] * across_weight[:, None, :, None, :]
    return index.flatten(3), weight.flatten(3)


def _cells(features: Tensor) -> Tensor:
    """Maps `[B, C, H, W]` as cells `[B * H * W, C]`, each of which lies together: `embedding_bag` is many times slower else."""
    return features.permute(0, 2, 3, 1).flatten(0, 2).contiguous()


def _sparse(features: Tensor, reads: _Reads) -> Tensor:
    """Maps `[B, C, H, W]` to bins `[K, P, Q, C]` by one product with a sparse matrix of bins by cells."""
    index, weight = _sparse_matrix(reads, *features.shape[2:])
    product = sparse_product(_cells(features), index.flatten(0, 2), weight.flatten(0, 2))
    return product.view(*index.shape[:3], features.shape[1])


def cells_by_output(cells: Tensor, weight: Tensor) -> Tensor:
    """`(cells @ weight.permute(1, 2, 0).flatten(1)).view(-1, O)`, without turning the weights round; has no fast gradient.

    Those of a layer over 1280 channels in 7 x 7 bins are 256 MB, whose copy takes longer than the product.

    Args:
        cells: `[N, C]`.
        weight: of O outputs, C channels and B bins, `[O, C, B]`.

    Returns:
        Of each cell, bin and output the sum over the channels, `[N * B, O]`.
    """
    products = torch.bmm(weight.mT, cells.T.expand(len(weight), -1, -1))  # [O, B, N]
    return products.permute(2, 1, 0).reshape(-1, len(weight))


@dataclass(frozen=True)
class DeferredBins:
    """Regions that are not pooled yet, for a linear layer that reads nothing but their bins.

    Both are linear: the layer's product with the map's cells, summed by the regions, is its product with the bins. Where the
    regions are more than the cells, that is less work.

    Args:
        cells: `[N, C]`, of all maps of a batch.
        index: the cells that each bin reads, int64 `[K, B, R]`.
        weight: and their weights, `[K, B, R]`.
    """

    cells: Tensor
    index: Tensor
    weight: Tensor

    def linear(self, weight: Tensor, bias: Tensor) -> Tensor:
        """What `torch.nn.functional.linear` makes of the pooled and flattened bins.

        Args:
            weight: `[O, C * B]`.
            bias: `[O]`.

        Returns:
            `[K, O]`, in autocast's type where it is enabled.
        """
        kind = self.cells.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else self.cells.dtype
        bins = self.index.shape[1]
        by_output = weight.to(dtype).view(len(weight), -1, bins)
        if kind == "cpu" and dtype == torch.float32 and not torch.is_grad_enabled():
            products = cells_by_output(self.cells, by_output)
        else:
            products = (self.cells.to(dtype) @ by_output.permute(1, 2, 0).flatten(1)).view(-1, len(weight))
        index = self.index * bins + torch.arange(bins, device=self.index.device)[:, None]
        return sparse_product(products, index.flatten(1), self.weight.flatten(1)) + bias.to(dtype)


_PRODUCTS: dict[str, Callable[[Tensor, _Reads], Tensor]] = {"dense": _dense, "sparse": _sparse}


def _pooled(
    features: Sequence[Tensor],
    boxes: Tensor,
    images: Tensor,
    levels: Tensor,
    output_size: tuple[int, int],
    scales: Sequence[float],
    sampling_ratio: int,
    aligned: bool,
    method: str,
) -> Tensor:
    """Bins `[K, C, P, Q]` of boxes `[K, 4]`, each on the map that `levels` names, of the image that `images` names.

    By the products they are, in memory, channels last, as the maps are best too.
    """
    parts: list[Tensor] = []
    order: list[Tensor] = []
    for level, (maps, scale) in enumerate(zip(features, scales, strict=True)):
        here = (levels == level).nonzero()[:, 0]
        if method == "torchvision":
            # A box of eight bits of precision would be another box.
            exact = torch.promote_types(maps.dtype, torch.float32)
            rois = torch.cat([images[here, None].to(exact), boxes[here].to(exact)], 1)
            pooled = ops.roi_align(maps.to(exact), rois, output_size, scale, sampling_ratio, aligned)
            parts.append(pooled.to(maps.dtype).permute(0, 2, 3, 1))
        else:
            rows, columns = _axes(boxes[here], output_size, scale, sampling_ratio, aligned, maps.shape[2:])
            with torch.autocast(maps.device.type, enabled=False):
                parts.append(_PRODUCTS[method](maps, _Reads(images[here], rows, columns)))
        order.append(here)
    pooled = parts[0] if len(parts) == 1 else torch.cat(parts)[torch.argsort(torch.cat(order))]
    return pooled.permute(0, 3, 1, 2)


def roi_align(
    input: Tensor,
    boxes: Tensor | list[Tensor],
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
    *,
    method: str = "auto",
) -> Tensor:
    """`torchvision.ops.roi_align`: average values of regions of maps, by bilinear interpolation.

    Args:
        input: maps `[B, C, H, W]`, float.
        boxes: xyxy in pixels: `[K, 5]` with the index of the image first, or a list of B times `[K_b, 4]`.
        output_size: bins of a region, rows and columns.
        spatial_scale: cells a pixel.
        sampling_ratio: points along a bin's side; 0 or less for as many as the bin has cells.
        aligned: whether the centre of a cell is half a cell from its border.
        method: `torchvision`, `dense`, `sparse`, or `auto`: the one that was measured to be the fastest; see `fastest`.

    Returns:
        `[K, C, P, Q]` in the type of `input`.
    """
    size = (output_size, output_size) if isinstance(output_size, int) else (output_size[0], output_size[1])
    together = convert_boxes_to_roi_format(boxes) if isinstance(boxes, list) else boxes
    chosen = fastest([input], len(together), size, sampling_ratio) if method == "auto" else method
    images, levels = together[:, 0].long(), together.new_zeros(len(together), dtype=torch.int64)
    settings = (size, [spatial_scale], sampling_ratio, aligned, chosen)
    return _pooled([input], together[:, 1:], images, levels, *settings)


# Another method than the usual winner must be clearly faster, and stay so when it is measured again: one run, resumed or beside
# other work, should not choose differently by chance.
_MARGIN = 2.0
_ROUNDS = 12
# On a CPU at most so many; on a GPU, which does few as fast as one, always so many. Powers of two.
_MEASURED_REGIONS = {"cpu": 32, "cuda": 1024}
# So many regions a cell are needed to defer: the weights are turned once more for it.
_DEFER = 1.5
_chosen: dict[tuple[Any, ...], str] = {}


def fastest(features: Sequence[Tensor], regions: int, output_size: tuple[int, int], sampling_ratio: int) -> str:
    """The method that takes the least time, forward and backward, for maps like these on their device.

    It is measured for each type, number of channels and, to a power of two, number of cells, once in a process; on a CPU also for
    each number of regions, to a power of two, up to 32, on a GPU for 1024 regions. `sparse` where no other is clearly faster, and
    where torch was told to be deterministic: a time never comes out the same twice.

    Args:
        features: maps `[B, C, H, W]`, of which the largest is measured.
        regions: how many.
        output_size: bins of a region.
        sampling_ratio: points along a bin's side.
    """
    if torch.are_deterministic_algorithms_enabled():
        return "sparse"
    largest = max(features, key=lambda maps: maps.shape[2] * maps.shape[3])
    _, channels, height, width = largest.shape
    kind = largest.device.type
    measured = _MEASURED_REGIONS[kind] if kind == "cuda" else min(regions, _MEASURED_REGIONS["cpu"])
    sizes = ((height * width).bit_length(), (measured - 1).bit_length())
    key = (kind, largest.dtype, channels, *sizes, output_size, sampling_ratio)
    if key not in _chosen:
        _chosen[key] = clearly_fastest(
            lambda method: _seconds(method, largest, 2 ** sizes[1], output_size, sampling_ratio)
        )
    return _chosen[key]


def clearly_fastest(seconds: Callable[[str], float]) -> str:
    """The method of the least time, where it is clear; else `sparse`.

    What else the machine does can only lengthen a time, and hits one method as it hits another: so they are measured in turns, as
    often as another than `sparse` seems to be clearly faster, and the least time of each counts.

    Args:
        seconds: measures a method once.
    """
    least = dict.fromkeys(METHODS, float("inf"))
    best = "sparse"
    for _ in range(_ROUNDS):
        for method in METHODS:
            least[method] = min(least[method], seconds(method))
        best = min(METHODS, key=lambda method: least[method])
        if least[best] * _MARGIN >= least["sparse"]:
            return "sparse"
    return best


def _seconds(method: str, like: Tensor, regions: int, output_size: tuple[int, int], sampling_ratio: int) -> float:
    """The lesser time of two that a method takes on one map like that one; draws nothing from torch's chance."""
    _, channels, height, width = like.shape
    with torch.inference_mode(False), torch.enable_grad():
        maps = torch.ones((1, channels, height, width), dtype=like.dtype, device=like.device)
        maps = maps.contiguous(memory_format=torch.channels_last).requires_grad_()
        corner = torch.linspace(0, 0.7, regions, device=like.device)[:, None]
        extent = torch.tensor([width, height], device=like.device)
        boxes = torch.cat([corner * 0, corner * extent, (corner + 0.3) * extent], 1)
        measured = []
        for _ in range(2):
            started = clock(like.device)
            roi_align(maps, boxes, output_size, 1.0, sampling_ratio, method=method).sum().backward()
            measured.append(clock(like.device) - started)
    return min(measured)


class MultiScaleRoIAlign(ops.MultiScaleRoIAlign):
    """`torchvision.ops.MultiScaleRoIAlign`, with its arguments and results, by the fastest method.

    Args:
        featmap_names: the maps that are pooled from.
        output_size: bins of a region, rows and columns.
        sampling_ratio: points along a bin's side; 0 or less for as many as the bin has cells.
        canonical_scale: side in pixels of a region that is pooled from level `canonical_level` (Lin et al., 2017, eq. 1).
        canonical_level: that level, the logarithm of its pixels a cell.
        aligned: whether the centre of a cell is half a cell from its border; torchvision's pools are not aligned.
        method: `torchvision`, `dense`, `sparse`, `deferred` (the head's first layer is computed on the map's cells; `sparse` where
            that cannot be), or `auto`: the one of the first three that was measured to be the fastest (see `fastest`), and
            `deferred` where the regions are many more than the cells of the one map.

    Attributes:
        defers: whether the head takes `DeferredBins`.

    Raises:
        UserError: another method.
    """

    def __init__(
        self,
        featmap_names: list[str],
        output_size: int | tuple[int] | list[int],
        sampling_ratio: int,
        *,
        canonical_scale: int = 224,
        canonical_level: int = 4,
        aligned: bool = False,
        method: str = "auto",
    ) -> None:
        scale = {"canonical_scale": canonical_scale, "canonical_level": canonical_level}
        super().__init__(featmap_names, output_size, sampling_ratio, **scale)
        allowed = ("auto", *METHODS, "deferred")
        if method not in allowed:
            raise UserError(f"method: {method!r} is not allowed; allowed: {', '.join(allowed)}.")
        self.aligned = aligned
        self.method = method
        self.defers = False

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> Tensor | DeferredBins:
        """Maps by name, each `[B, C, H, W]`, and boxes `[K_b, 4]` of each image, xyxy in its pixels, to `[K, C, P, Q]`."""
        maps = [value for name, value in x.items() if name in self.featmap_names]
        if self.scales is None or self.map_levels is None:
            settled = poolers._setup_scales(maps, image_shapes, self.canonical_scale, self.canonical_level)
            self.scales, self.map_levels = settled  # pyright: ignore[reportAttributeAccessIssue]
        size: tuple[int, int] = self.output_size  # pyright: ignore[reportAssignmentType]
        method = self.method
        if torch._C._get_tracing_state() is not None or torch.compiler.is_exporting():
            method = "torchvision"  # whose operator the formats know
        elif method == "auto":
            method = fastest(maps, sum(len(of_image) for of_image in boxes), size, self.sampling_ratio)
        if method == "torchvision" and not self.aligned:
            return super().forward(x, boxes, image_shapes)
        together = torch.cat(boxes)
        images = torch.cat([torch.full_like(of_image[:, 0], i).long() for i, of_image in enumerate(boxes)])
        levels = self.map_levels(boxes) if len(maps) > 1 else torch.zeros_like(images)
        many = len(together) >= _DEFER * maps[0].shape[0] * maps[0].shape[2] * maps[0].shape[3]
        wanted = method == "deferred" or (self.method == "auto" and method == "sparse" and many)
        if wanted and self.defers and len(maps) == 1:
            scale: float = self.scales[0]  # pyright: ignore
            axes = _axes(together, size, scale, self.sampling_ratio, self.aligned, maps[0].shape[2:])
            index, weight = _sparse_matrix(_Reads(images, *axes), *maps[0].shape[2:])
            return DeferredBins(_cells(maps[0]), index.flatten(1, 2), weight.flatten(1, 2))
        settings = (size, self.scales, self.sampling_ratio, self.aligned, "sparse" if method == "deferred" else method)
        return _pooled(maps, together, images, levels, *settings)
