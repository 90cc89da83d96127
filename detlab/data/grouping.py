"""Batches of images of like shape, so that little of them is padding."""

from __future__ import annotations

import bisect
from collections.abc import Sequence

from detlab.structures import DetectionDataset


def groups_by_aspect_ratio(dataset: DetectionDataset, groups: int) -> list[int]:
    """For each image the number of its group, by width over height, from narrow to wide.

    Args:
        dataset: whose `get_height_and_width` is asked for each image.
        groups: k of torchvision's references: 2k + 1 bounds from 1/2 to 2, evenly spaced in the logarithm; 0 parts upright images
            from wide ones.

    Source: `create_aspect_ratio_groups` of torchvision's references/detection.
    """
    bounds = [2 ** (-1 + i / groups) for i in range(2 * groups + 1)] if groups else [1.0]
    sizes = (dataset.get_height_and_width(i) for i in range(len(dataset)))
    return [bisect.bisect_right(bounds, width / height) for height, width in sizes]


def in_groups(order: Sequence[int], group_of: Sequence[int], batch_size: int) -> list[int]:
    """An order of the same images in which as many batches as possible hold one group only.

    A group's images make a batch as soon as there are enough of them; what is left of the groups at the end, fewer than a batch of
    each, makes the last batches, neighbouring groups together. torchvision's sampler would drop these.

    Args:
        order: indices, a whole number of batches.
        group_of: of each image of the data set.
        batch_size: images that stand together.
    """
    waiting: dict[int, list[int]] = {}
    arranged: list[int] = []
    for index in order:
        group = waiting.setdefault(group_of[index], [])
        group.append(index)
        if len(group) == batch_size:
            arranged += group
            group.clear()
    return arranged + [index for number in sorted(waiting) for index in waiting[number]]
