"""What the embedded data set holds: pedestrians drawn from a seed, with nothing on disk."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torchvision import tv_tensors

from detlab.data.drawing import Dice
from detlab.data.scenes import LEVELS, Scene, compose
from detlab.data.split import check_folds, check_part, stratified_order, stretch
from detlab.errors import UserError
from detlab.masks import enclosing_boxes, encode
from detlab.structures import PERSON, ClassMap, IouType, Sample


class Synthetic:
    """People in simple scenes, at one of two frozen levels of difficulty; a `DetectionDataset`.

    Picture i of a level depends on (seed, part, i) alone, and is the same on every machine, whatever the size of its part. What is
    drawn is kept in memory (0.2 to 0.5 MB an image), so that only the first epoch pays for it.

    Args:
        part: `train`, `val` or `test`.
        difficulty: `easy` (144 x 192 pixels, up to 3 people) or `hard` (192 x 256, up to 6, crowded, busy).
        seed: makes the data; any integer.
        train_size: images in `train`.
        val_size: images in `val`.
        test_size: images in `test`; may be 0.
        folds: equal shares of the images of `train`, of which
        fold: is then `val`, and the others `train`; both or neither.
        fraction: of the images of `train`, above 0, up to 1; a smaller one is contained in a larger one.

    Raises:
        UserError: a part or difficulty that does not exist, a size below 1, folds or a fraction that cannot be.
    """

    class_map = ClassMap(("person",))
    iou_types: tuple[IouType, ...] = ("bbox", "segm", "keypoints")
    keypoints = PERSON

    def __init__(
        self,
        *,
        part: str,
        difficulty: str,
        seed: int,
        train_size: int,
        val_size: int,
        test_size: int,
        folds: int | None,
        fold: int | None,
        fraction: float,
    ) -> None:
        check_part(part)
        if difficulty not in LEVELS:
            raise UserError(f"dataset.difficulty={difficulty}: no such level; choose one of {', '.join(LEVELS)}.")
        sizes = {"train": train_size, "val": val_size, "test": test_size}
        for name, size in sizes.items():
            least = 0 if name == "test" else 1
            if size < least:
                raise UserError(f"dataset.{name}_size={size}: must be {least} or more.")
        self.difficulty, self.seed = difficulty, seed
        check_folds(folds, fold, train_size)
        # Which stream of pictures, and which of them.
        self.stream = "train" if folds is not None and part == "val" else part
        self._numbers = list(range(sizes[part]))
        if self.stream == "train" and (folds is not None or fraction != 1):
            pool = [f"train-{i:04d}" for i in range(train_size)]
            order = stratified_order(pool, [0] * train_size, seed)
            self._numbers = sorted(stretch(order, part, fraction, val_size=0, test_size=0, folds=folds, fold=fold))
        self.image_names = [f"{self.stream}-{i:04d}" for i in self._numbers]
        self._level = LEVELS[difficulty]
        self._samples: dict[int, Sample] = {}

    def __len__(self) -> int:
        return len(self.image_names)

    def __getitem__(self, index: int) -> Sample:
        """The image and target of one picture, free to be changed.

        Returns:
            `tv_tensors.Image` uint8 `[3, H, W]` and a `Target` with `masks` (the visible pixels of each person) and
            `keypoints` (COCO's 17; hidden behind something or by the body itself: 1; outside the image: all 0).

        Raises:
            IndexError: no such image.
        """
        return deepcopy(self._kept(index))

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the pictures: a worker draws its own."""
        return {**self.__dict__, "_samples": {}}

    def scene(self, index: int) -> Scene:
        """Draw picture `index` anew, with what the target leaves out: whole heights and hidden shares."""
        name = f"detlab.synthetic 1, {self.difficulty}, seed {self.seed}, {self.stream} {self._numbers[index]}"
        return compose(Dice(name), self._level)

    def get_height_and_width(self, index: int) -> tuple[int, int]:
        """Height and width of image `index` in pixels: those of the level."""
        return self._level.size

    def ground_truth(self) -> dict[str, Any]:
        """COCO dict with masks as compressed RLE, keypoints as triples; boxes and areas are whole pixels, in float64."""
        people = {"id": 1, "name": "person", "keypoints": list(PERSON.names)}
        height, width = self._level.size
        annotations: list[dict[str, Any]] = []
        for index in range(len(self)):
            for annotation in self._annotations(index):
                annotations.append({"id": len(annotations) + 1, **annotation})
        return {
            "info": {"description": f"detlab synthetic, {self.difficulty}, seed {self.seed}, {self.stream}"},
            "images": [
                {"id": i + 1, "file_name": name, "height": height, "width": width}
                for i, name in zip(self._numbers, self.image_names, strict=True)
            ],
            "categories": [{**people, "skeleton": [[a + 1, b + 1] for a, b in PERSON.skeleton]}],
            "annotations": annotations,
        }

    def _annotations(self, index: int) -> list[dict[str, Any]]:
        """COCO annotations of one image, less their ids."""
        _, target = self._kept(index)
        assert "masks" in target
        assert "keypoints" in target
        rles = encode(target["masks"].numpy())
        return [
            {
                "image_id": target["image_id"],
                "category_id": 1,
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": area,
                "iscrowd": 0,
                "segmentation": rle,
                "keypoints": points.flatten().tolist(),
                "num_keypoints": int((points[:, 2] > 0).sum()),
            }
            for (x0, y0, x1, y1), area, rle, points in zip(
                target["boxes"].tolist(), target["area"].tolist(), rles, target["keypoints"], strict=True
            )
        ]

    def _kept(self, index: int) -> Sample:
        """The one copy of a sample that stays in memory; drawn when first asked for."""
        index = range(len(self))[index]
        if index not in self._samples:
            self._samples[index] = self._sample(index)
        return self._samples[index]

    def _sample(self, index: int) -> Sample:
        scene = self.scene(index)
        count = len(scene.masks)
        image = tv_tensors.Image(torch.from_numpy(scene.image).permute(2, 0, 1).contiguous())
        boxes = torch.from_numpy(enclosing_boxes(scene.masks)).float()
        return image, {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=self._level.size),  # pyright: ignore
            "labels": torch.ones(count, dtype=torch.int64),
            "image_id": self._numbers[index] + 1,
            "area": torch.from_numpy(scene.masks.sum(axis=(1, 2)).astype(np.float32)),
            "iscrowd": torch.zeros(count, dtype=torch.uint8),
            "masks": tv_tensors.Mask(torch.from_numpy(scene.masks.astype(np.uint8))),
            "keypoints": torch.from_numpy(scene.keypoints.astype(np.float32)),
        }
