"""The Penn-Fudan pedestrians: 170 photographs and their instance masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision import tv_tensors

from detlab.data.images import image_size, read_image, read_instances
from detlab.data.split import random_split, split_from_file
from detlab.download import Checksum, cache_folder, extract, fetch
from detlab.errors import UserError
from detlab.masks import decode, enclosing_boxes, encode
from detlab.structures import ClassMap, IouType, Sample, Target


class _Objects:
    """The people of one image: boxes float64 `[N, 4]` xyxy, areas float64 `[N]`, masks as RLE."""

    def __init__(self, mask_file: Path, size: tuple[int, int]) -> None:
        ids = read_instances(mask_file)
        if ids.shape != size:
            raise UserError(
                f"{mask_file}: {ids.shape[0]} x {ids.shape[1]} pixels, but its image has {size[0]} x {size[1]}."
            )
        self.size = size
        instances = np.unique(ids)
        pixels = ids[None] == instances[instances > 0][:, None, None]
        self.rles = encode(pixels)
        self.areas = pixels.sum((1, 2)).astype(np.float64)
        self.boxes = enclosing_boxes(pixels)


def _downloaded(url: str, md5: str) -> Path:
    """The folder that the zip extracts to, in the cache: downloaded and extracted if it is not there."""
    archive, folder = cache_folder() / "PennFudanPed.zip", cache_folder() / "PennFudanPed"
    if not folder.is_dir():
        fetch(url, archive, checksum=Checksum("md5", md5), by_hand="give dataset.root=FOLDER with its two folders")
        # Four times and twice of what the authors' zip holds: 512 files, 54 MB in all.
        extract(archive, folder, max_bytes=200_000_000, max_files=1000)
    return folder


class PennFudan:
    """Penn-Fudan as its zip extracts: `PNGImages/NAME.png`, `PedMasks/NAME_mask.png`.

    In each mask every value above 0 is one person. The masks are read once, at the start; the images when asked for.

    Args:
        root: the folder that holds the two folders; None downloads the zip into the cache (`detlab.download`), once.
        url: of the zip, for `root` None.
        md5: of the zip.
        part: `train`, `val` or `test`.
        val_size: number of images for validation.
        test_size: number of images held out for the test.
        split_seed: of the random split over the sorted names.
        split_file: JSON with "train", "val" and perhaps "test", lists of image file names; replaces the random split.

    Raises:
        UserError: a folder that is missing or empty, a mask without its image or the reverse, a file that cannot be
            decoded, a mask that has not its image's size; a zip that cannot be downloaded, or is another one.
    """

    class_map = ClassMap(("pedestrian",))
    iou_types: tuple[IouType, ...] = ("bbox", "segm")
    keypoints = None

    def __init__(
        self,
        *,
        root: str | None,
        url: str,
        md5: str,
        part: str,
        val_size: int,
        test_size: int,
        split_seed: int,
        split_file: str | None,
    ) -> None:
        self.root = _downloaded(url, md5) if root is None else Path(root).expanduser()
        images, masks = self._files("PNGImages", ""), self._files("PedMasks", "_mask")
        for stem in sorted(images.keys() ^ masks.keys()):
            if stem in masks:
                raise UserError(f"{masks[stem]}: a mask without its image PNGImages/{stem}.png.")
            raise UserError(f"{images[stem]}: an image without its mask PedMasks/{stem}_mask.png.")
        names = [images[stem].name for stem in sorted(images)]
        if split_file is None:
            chosen = random_split(len(names), val_size, split_seed, part, test_size=test_size)
        else:
            chosen = split_from_file(Path(split_file).expanduser(), names, part)
        self.image_names = [names[i] for i in chosen]
        self._image_ids = [i + 1 for i in chosen]
        self._paths = [self.root / "PNGImages" / name for name in self.image_names]
        self._objects = [_Objects(masks[path.stem], image_size(path)) for path in self._paths]

    def _files(self, folder: str, suffix: str) -> dict[str, Path]:
        """The PNG files of a folder by the name that image and mask share."""
        path = self.root / folder
        files = sorted(path.glob("*.png"))
        if not files:
            state = "holds no *.png" if path.is_dir() else "is no folder"
            raise UserError(
                f"dataset.root={self.root}: {path} {state}; give the folder that has PNGImages/ and PedMasks/."
            )
        stray = [file for file in files if not file.stem.endswith(suffix)]
        if stray:
            raise UserError(f"{stray[0]}: not called NAME{suffix}.png, as the files of {folder}/ are.")
        return {file.stem.removesuffix(suffix): file for file in files}

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Sample:
        objects = self._objects[index]
        image = read_image(self._paths[index])
        boxes = torch.from_numpy(objects.boxes).float()
        target: Target = {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=objects.size),  # pyright: ignore
            "labels": torch.ones(len(objects.boxes), dtype=torch.int64),
            "image_id": self._image_ids[index],
            "area": torch.from_numpy(objects.areas).float(),
            "iscrowd": torch.zeros(len(objects.boxes), dtype=torch.uint8),
            "masks": tv_tensors.Mask(decode(objects.rles, *objects.size)),
        }
        return image, target

    def get_height_and_width(self, index: int) -> tuple[int, int]:
        """Height and width of an image in pixels."""
        return self._objects[index].size

    def ground_truth(self) -> dict[str, Any]:
        """COCO dict of this part."""
        images, annotations = [], []
        for name, image_id, objects in zip(self.image_names, self._image_ids, self._objects, strict=True):
            height, width = objects.size
            images.append({"id": image_id, "file_name": name, "height": height, "width": width})
            for (x0, y0, x1, y1), area, rle in zip(
                objects.boxes.tolist(), objects.areas.tolist(), objects.rles, strict=True
            ):
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image_id,
                        "category_id": 1,
                        "bbox": [x0, y0, x1 - x0, y1 - y0],
                        "area": area,
                        "iscrowd": 0,
                        "segmentation": rle,
                    }
                )
        info = {"description": "Penn-Fudan pedestrians"}
        return {"info": info, "images": images, "annotations": annotations, "categories": self.class_map.categories()}
