"""A region proposal network that learns from the sampled anchors alone, as its loss does."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead, concat_box_prediction_layers

from detlab.ops.sparse import sparse_product


class SampledRPN(RegionProposalNetwork):
    """torchvision's `RegionProposalNetwork`, with its results, and a backward pass through the sampled anchors' cells alone.

    The loss reads a few hundred of often more than a hundred thousand anchors: of all others the gradient is zero. So the head runs
    over the whole maps without a graph, for the proposals, and once more, with one, over the 3 x 3 patches around the cells whose
    anchors were sampled. Where these are a large part of the cells it does as torchvision does.
    """

    def forward(
        self, images: ImageList, features: dict[str, Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Proposals of each image, `[P, 4]` xyxy in pixels of the batch, and in training the losses."""
        maps = list(features.values())
        cells = sum(value.shape[2] * value.shape[3] for value in maps)
        few = 2 * self.fg_bg_sampler.batch_size_per_image <= cells
        if not (few and self.training and torch.is_grad_enabled() and targets is not None and _is_plain(self.head)):
            return super().forward(images, features, targets)
        with torch.no_grad():
            scores, deltas = self.head(maps)
        anchors = self.anchor_generator(images, maps)
        per_level = [level[0].numel() for level in scores]
        scores, deltas = concat_box_prediction_layers(scores, deltas)
        proposals = self.box_coder.decode(deltas, anchors).view(len(anchors), -1, 4)
        boxes, _ = self.filter_proposals(proposals, scores, images.image_sizes, per_level)
        labels, matched = self.assign_targets_to_anchors(anchors, targets)
        return boxes, self._losses(maps, labels, torch.cat(matched), torch.cat(anchors))

    def _losses(self, maps: list[Tensor], labels: list[Tensor], matched: Tensor, anchors: Tensor) -> dict[str, Tensor]:
        """Torchvision's losses.

        Args:
            maps: `[B, C, H, W]` each.
            labels: of each image's anchors: 1 for an object, 0 for background, -1 for neither.
            matched: the box that each anchor of the batch is to find, `[B * A, 4]`.
            anchors: of the batch, `[B * A, 4]`.
        """
        objects, background = (torch.where(torch.cat(sampled))[0] for sampled in self.fg_bg_sampler(labels))
        sampled = torch.cat([objects, background])
        scores, deltas = self._predicted(maps, sampled, len(labels[0]))
        wanted = self.box_coder.encode_single(matched[objects], anchors[objects])
        found = deltas[: len(objects)]
        box_loss = functional.smooth_l1_loss(found, wanted, beta=1 / 9, reduction="sum") / len(sampled)
        score_loss = functional.binary_cross_entropy_with_logits(scores, torch.cat(labels)[sampled])
        return {"loss_objectness": score_loss, "loss_rpn_box_reg": box_loss}

    def _predicted(self, maps: list[Tensor], sampled: Tensor, per_image: int) -> tuple[Tensor, Tensor]:
        """The head's scores `[S]` and deltas `[S, 4]`, float32, for anchors by their number in the batch, int64 `[S]`."""
        head = cast(Any, self.head)
        convolution = head.conv[0][0]
        kernel = convolution.weight.permute(0, 2, 3, 1).flatten(1)
        image = torch.div(sampled, per_image, rounding_mode="floor")
        rest = sampled - image * per_image
        scores, deltas, order, start = [], [], [], 0
        per_cell = head.cls_logits.out_channels
        for level in maps:
            height, width = level.shape[2:]
            count = height * width * per_cell
            here = ((rest >= start) & (rest < start + count)).nonzero()[:, 0]
            cell = torch.div(rest[here] - start, per_cell, rounding_mode="floor")
            places, inverse = torch.unique(image[here] * height * width + cell, return_inverse=True)
            hidden = functional.relu(functional.linear(_patches(level, places), kernel, convolution.bias))
            anchor = (rest[here] - start) % per_cell
            scores.append(_by_linear(head.cls_logits, hidden)[inverse, anchor])
            deltas.append(_by_linear(head.bbox_pred, hidden).unflatten(1, (per_cell, 4))[inverse, anchor])
            order.append(here)
            start += count
        back = torch.argsort(torch.cat(order))
        return torch.cat(scores)[back], torch.cat(deltas)[back]


def _is_plain(head: Any) -> bool:
    """Whether a head is torchvision's with one convolution, 3 x 3, and a ReLU."""
    return isinstance(head, RPNHead) and len(head.conv) == 1 and len(cast(Any, head.conv[0])) == 2


def _by_linear(convolution: Any, hidden: Tensor) -> Tensor:
    """A 1 x 1 convolution for cells `[N, C]`, in float32 at least."""
    found = functional.linear(hidden, convolution.weight.flatten(1), convolution.bias)
    return found.to(torch.promote_types(found.dtype, torch.float32))


def _patches(maps: Tensor, places: Tensor) -> Tensor:
    """What a 3 x 3 convolution reads around cells of maps `[B, C, H, W]`: `[N, 9 * C]`, zero beyond the border.

    Args:
        maps: with a gradient.
        places: of the cells among all of the batch, int64 `[N]`.
    """
    batch, channels, height, width = maps.shape
    column, row = places % width, torch.div(places, width, rounding_mode="floor") % height
    step = torch.arange(-1, 2, device=maps.device)
    rows, columns = row[:, None, None] + step[:, None], column[:, None, None] + step
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    index = torch.where(inside, places[:, None, None] + step[:, None] * width + step, 0)
    cells = maps.permute(0, 2, 3, 1).reshape(batch * height * width, channels)
    taken = sparse_product(cells, index.reshape(-1, 1), inside.reshape(-1, 1).to(cells.dtype))
    return taken.view(len(places), 9 * channels)
