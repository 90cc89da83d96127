"""A data set whose labels mean what a trained model's do: classes are matched by name."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from typing import Any, cast

import torch

from detlab.errors import UserError
from detlab.structures import ClassMap, DetectionDataset, Sample, Target

log = logging.getLogger(__name__)


def with_classes(dataset: DetectionDataset, names: Sequence[str], source: str, *, all_needed: bool) -> DetectionDataset:
    """The data set with the labels that a model has learnt; itself where they are the same. Says what differs.

    Args:
        dataset: any.
        names: of the model's labels 1..K.
        source: what the names are from, for messages: a checkpoint.
        all_needed: whether the data set must have every class of the model; where not, a class that it lacks is one
            without objects.

    Raises:
        UserError: a class of the data set that the model does not know, or one that is needed; with both lists.
    """
    ours, theirs = dataset.class_map.names, tuple(names)
    if ours == theirs:
        return dataset
    unknown = [name for name in ours if name not in theirs]
    lacking = [name for name in theirs if name not in ours]
    if unknown or (lacking and all_needed):
        missing = f"{unknown[0]!r} is unknown to the model" if unknown else f"{lacking[0]!r} is not in the data set"
        raise UserError(
            f"dataset: class {missing}. The data set has {', '.join(ours)}; {source} has {', '.join(theirs)}.\n"
            "Classes are matched by name; dataset.classes=[...] takes some of a data set's."
        )
    moved = [f"{name} {ours.index(name) + 1} -> {theirs.index(name) + 1}" for name in ours]
    without = f"; without objects: {', '.join(lacking)}" if lacking else ""
    log.warning(
        "classes matched by name with %s, label in the data set -> in the model: %s%s",
        source,
        ", ".join(moved),
        without,
    )
    return Relabelled(dataset, theirs)


class Relabelled:
    """A data set with its classes in another order, perhaps among others; a `DetectionDataset`.

    Args:
        dataset: any.
        names: of the labels 1..K, all of the data set's classes among them.
    """

    def __init__(self, dataset: DetectionDataset, names: Sequence[str]) -> None:
        self._dataset = dataset
        ids = dict(zip(dataset.class_map.names, dataset.class_map.category_ids, strict=True))
        unused = itertools.count(max(ids.values()) + 1)
        self.class_map = ClassMap(tuple(names), tuple(ids[name] if name in ids else next(unused) for name in names))
        self._label = torch.tensor([0, *(names.index(name) + 1 for name in dataset.class_map.names)])
        self.iou_types, self.keypoints = dataset.iou_types, dataset.keypoints
        self.image_names = dataset.image_names
        self.index = getattr(dataset, "index", None)  # as the files have it
        self.name: str = getattr(dataset, "name", type(dataset).__name__)

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Sample:
        image, target = self._dataset[index]
        return image, cast(Target, {**target, "labels": self._label[target["labels"]]})

    def get_height_and_width(self, index: int) -> tuple[int, int]:
        """Height and width of an image in pixels."""
        return self._dataset.get_height_and_width(index)

    def ground_truth(self) -> dict[str, Any]:
        """COCO dict of the data set, its categories in the new order, those without objects added."""
        truth = self._dataset.ground_truth()
        have = {category["id"]: category for category in truth["categories"]}
        categories = [have[c["id"]] if c["id"] in have else c for c in self.class_map.categories()]
        return {**truth, "categories": categories}
