"""The box head that reads regions, pooled or not."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional
from torchvision.models.detection.faster_rcnn import TwoMLPHead

from detlab.ops.roi_align import DeferredBins


class RegionMLPHead(TwoMLPHead):
    """torchvision's `TwoMLPHead`, whose first layer may be computed on the map's cells instead of on every region's bins."""

    def forward(self, x: Tensor | DeferredBins) -> Tensor:
        """Regions `[K, C, P, Q]`, or not pooled, to `[K, R]`."""
        if not isinstance(x, DeferredBins):
            return super().forward(x)
        hidden = functional.relu(x.linear(self.fc6.weight, self.fc6.bias))
        return functional.relu(self.fc7(hidden))
