"""A few images of a data set, as a data set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from detlab.errors import UserError
from detlab.structures import DetectionDataset, Sample


class FirstImages:
    """The first images of a data set that have objects; a `DetectionDataset`.

    Args:
        dataset: any.
        count: how many; fewer where the data set has not as many.

    Raises:
        UserError: no image has an object.
    """

    def __init__(self, dataset: DetectionDataset, count: int) -> None:
        self._dataset = dataset
        self._truth = dataset.ground_truth()
        with_objects = {row["image_id"] for row in self._truth["annotations"] if not row["iscrowd"]}
        # The images of a ground truth stand in the order of the indices.
        chosen = [i for i, image in enumerate(self._truth["images"]) if image["id"] in with_objects]
        self._chosen = chosen[:count]
        if not self._chosen:
            raise UserError(f"dataset: none of the {len(dataset)} images for training has an object; nothing to learn.")
        self.class_map = dataset.class_map
        self.iou_types = dataset.iou_types
        self.keypoints = dataset.keypoints
        self.image_names: Sequence[str] = [dataset.image_names[i] for i in self._chosen]

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, index: int) -> Sample:
        return self._dataset[self._chosen[index]]

    def get_height_and_width(self, index: int) -> tuple[int, int]:
        """Height and width of an image in pixels."""
        return self._dataset.get_height_and_width(self._chosen[index])

    def ground_truth(self) -> dict[str, Any]:
        """COCO dict of these images."""
        images = [self._truth["images"][i] for i in self._chosen]
        ids = {image["id"] for image in images}
        rows = [row for row in self._truth["annotations"] if row["image_id"] in ids]
        annotations = [{**row, "id": i + 1} for i, row in enumerate(rows)]
        return {**self._truth, "images": images, "annotations": annotations}
