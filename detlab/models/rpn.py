"""A region proposal network that learns from the sampled anchors alone, as its loss does, and looks at all images at once."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead, concat_box_prediction_layers

from detlab.ops.sparse import sparse_product
from detlab.ops.suppression import keep_of_groups, overlaps

# Overlaps of boxes and anchors that are held at a time; more are taken image by image.
_OVERLAPS = 100_000_000


class SampledRPN(RegionProposalNetwork):
    """torchvision's `RegionProposalNetwork`, with its results, in fewer and smaller operations.

    With `sampled_gradient` its backward pass goes through the sampled anchors' cells alone.

    The loss reads a few hundred of often more than a hundred thousand anchors: of all others the gradient is zero. So the head runs
    over the whole maps without a graph, for the proposals, and once more, with one, over the 3 x 3 patches around the cells whose
    anchors were sampled. Where these are a large part of the cells it does as torchvision does.

    With `batched` the images of a batch are matched, and their proposals sorted out, all at once: for a GPU, which waits for the
    next small operation most of the time, and whose suppression by torchvision walks through one image's boxes after the other.

    Attributes:
        sampled_gradient: see above.
        batched: see above; None for where it pays, on a GPU.
    """

    sampled_gradient = True
    batched: bool | None = None

    def _at_once(self, device: torch.device) -> bool:
        if torch._C._get_tracing_state() is not None:
            return False  # which is written down for any number of boxes
        return device.type == "cuda" if self.batched is None else self.batched

    def filter_proposals(
        self,
        proposals: Tensor,
        objectness: Tensor,
        image_shapes: list[tuple[int, int]],
        num_anchors_per_level: list[int],
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The best proposals of each image, at most `post_nms_top_n`, the best first, with their scores.

        Args:
            proposals: xyxy, `[B, A, 4]`.
            objectness: logits, `[B * A, 1]`.
            image_shapes: height and width of each image.
            num_anchors_per_level: their sum is A.
        """
        if not self._at_once(proposals.device):
            return super().filter_proposals(proposals, objectness, image_shapes, num_anchors_per_level)
        logits = objectness.detach().reshape(len(proposals), -1)
        chosen = self._get_top_n_idx(logits, num_anchors_per_level)
        scores = logits.gather(1, chosen).sigmoid()
        boxes = proposals.gather(1, chosen[:, :, None].expand(-1, -1, 4))
        limits = torch.tensor([[width, height] * 2 for height, width in image_shapes], dtype=boxes.dtype)
        boxes = boxes.clamp(min=0).minimum(limits.to(boxes.device, non_blocking=True)[:, None])
        sides = boxes[:, :, 2:] - boxes[:, :, :2]
        valid = (sides >= self.min_size).all(-1) & (scores >= self.score_thresh)
        # Of a level the best come first already.
        counts = [min(self.pre_nms_top_n(), anchors) for anchors in num_anchors_per_level]
        most = max(counts)
        levels = [
            functional.pad(torch.cat([part, ok[:, :, None].to(part.dtype)], -1), (0, 0, 0, most - count))
            for part, ok, count in zip(boxes.split(counts, 1), valid.split(counts, 1), counts, strict=True)
        ]
        groups = torch.stack(levels, 1).flatten(0, 1)
        kept = keep_of_groups(groups[..., :4], groups[..., 4] > 0, self.nms_thresh).view(len(boxes), len(counts), most)
        kept = torch.cat([kept[:, level, :count] for level, count in enumerate(counts)], 1)
        order = torch.sort(torch.where(kept, scores, -1.0), dim=1, descending=True, stable=True)[1]
        order = order[:, : self.post_nms_top_n()]
        found = kept.sum(1).clamp(max=order.shape[1]).tolist()
        boxes, scores = boxes.gather(1, order[:, :, None].expand(-1, -1, 4)), scores.gather(1, order)
        return (
            [of_image[:n] for of_image, n in zip(boxes, found, strict=True)],
            [of_image[:n] for of_image, n in zip(scores, found, strict=True)],
        )

    def assign_targets_to_anchors(
        self, anchors: list[Tensor], targets: list[dict[str, Tensor]]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Of each image's anchors `[A, 4]`: 1 for an object, 0 for background, -1 for neither, and the box of the object."""
        boxes = [target["boxes"] for target in targets]
        most = max(len(of_image) for of_image in boxes)
        few = 0 < most * len(anchors) * len(anchors[0]) <= _OVERLAPS
        if not few or not self._at_once(anchors[0].device):
            return super().assign_targets_to_anchors(anchors, targets)
        padded = torch.stack([functional.pad(of_image, (0, 0, 0, most - len(of_image))) for of_image in boxes])
        lengths = torch.tensor([len(of_image) for of_image in boxes]).to(padded.device, non_blocking=True)
        real = torch.arange(most, device=padded.device) < lengths[:, None]
        shared = torch.where(real[:, :, None], overlaps(padded, torch.stack(anchors)), -1)
        best, match = shared.max(1)
        # The anchors that overlap an object the most are its, however little that is.
        own = ((shared == shared.amax(2, keepdim=True)) & real[:, :, None]).any(1)
        matcher = self.proposal_matcher
        is_object = (best >= matcher.high_threshold) | own
        labels = torch.where(is_object, 1.0, torch.where(best < matcher.low_threshold, 0.0, -1.0))
        index = torch.where(is_object, match, 0)[:, :, None].expand(-1, -1, 4)
        return list(labels), list(padded.gather(1, index))

    def forward(
        self, images: ImageList, features: dict[str, Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Proposals of each image, `[P, 4]` xyxy in pixels of the batch, and in training the losses."""
        maps = list(features.values())
        cells = sum(value.shape[2] * value.shape[3] for value in maps)
        few = 2 * self.fg_bg_sampler.batch_size_per_image <= cells
        wanted = self.sampled_gradient and few
        if not (wanted and self.training and torch.is_grad_enabled() and targets is not None and _is_plain(self.head)):
            return super().forward(images, features, targets)
        with torch.no_grad():
            scores, deltas = self.head(maps)
        anchors = self.anchor_generator(images, maps)
        # Before anything that waits for a GPU, which has the backbone to do meanwhile.
        labels, matched = self.assign_targets_to_anchors(anchors, targets)
        per_level = [level[0].numel() for level in scores]
        scores, deltas = concat_box_prediction_layers(scores, deltas)
        proposals = self.box_coder.decode(deltas, anchors).view(len(anchors), -1, 4)
        boxes, _ = self.filter_proposals(proposals, scores, images.image_sizes, per_level)
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
