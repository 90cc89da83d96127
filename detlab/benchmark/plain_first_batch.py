"""`python -m detlab.benchmark.plain_first_batch JSON`: the tutorial's script up to its first batch; tells what took how long.

The JSON is that of `detlab.benchmark.start`. Penn-Fudan is read by the tutorial's data set, COCO's format by torchvision's; of any
other the images are those of the class that the configuration names.
"""

from __future__ import annotations

import time

_MARKS = [("", time.perf_counter())]  # before any other import, whose time counts

import importlib  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
from itertools import pairwise  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import torch  # noqa: E402
import torchvision  # noqa: E402
from PIL import Image  # noqa: E402
from torch.utils.data import DataLoader, Dataset  # noqa: E402
from torchvision import tv_tensors  # noqa: E402
from torchvision.datasets import CocoDetection, wrap_dataset_for_transforms_v2  # noqa: E402
from torchvision.models.detection import FasterRCNN, KeypointRCNN, MaskRCNN  # noqa: E402
from torchvision.models.detection.anchor_utils import AnchorGenerator  # noqa: E402
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone  # noqa: E402
from torchvision.ops import MultiScaleRoIAlign  # noqa: E402
from torchvision.ops.boxes import masks_to_boxes  # noqa: E402
from torchvision.transforms import v2  # noqa: E402


class PennFudan(Dataset[Any]):
    """The tutorial's data set of Penn-Fudan's folder."""

    def __init__(self, root: str, transforms: Any) -> None:
        self.root, self.transforms = root, transforms
        self.images = sorted(os.listdir(os.path.join(root, "PNGImages")))
        self.masks = sorted(os.listdir(os.path.join(root, "PedMasks")))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        # Not by torchvision's own `read_image`, which now warns at every image.
        image, mask = (
            v2.functional.pil_to_tensor(Image.open(os.path.join(self.root, folder, names[index])))
            for folder, names in (("PNGImages", self.images), ("PedMasks", self.masks))
        )
        obj_ids = torch.unique(mask)[1:]
        masks = (mask == obj_ids[:, None, None]).to(dtype=torch.uint8)
        boxes = masks_to_boxes(masks)
        target = {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=v2.functional.get_size(image)),  # pyright: ignore
            "masks": tv_tensors.Mask(masks),
            "labels": torch.ones((len(obj_ids),), dtype=torch.int64),
            "image_id": index,
            "area": (boxes[:, 3] - boxes[:, 1]) * (boxes[:, 2] - boxes[:, 0]),
            "iscrowd": torch.zeros((len(obj_ids),), dtype=torch.int64),
        }
        return self.transforms(tv_tensors.Image(image), target)


def data_sets(node: dict[str, Any], iou_types: list[str]) -> tuple[Any, Any, int]:
    """Those of training and of validation, and the number of classes with the background."""
    name = node["_target_"].rpartition(".")[2]
    to_float = [v2.ToImage(), v2.ToDtype(torch.float, scale=True), v2.ToPureTensor()]
    transforms = {True: v2.Compose([v2.RandomHorizontalFlip(0.5), *to_float]), False: v2.Compose(to_float)}
    if name == "pennfudan":
        return PennFudan(node["root"], transforms[True]), PennFudan(node["root"], transforms[False]), 2
    if name == "coco":
        both = [_coco(node, part, transforms[part == "train"], iou_types) for part in ("train", "val")]
        return both[0], both[1], max(both[0].coco.getCatIds()) + 1
    from detlab.benchmark.plain import TutorialDataset

    module, _, called = node["_target_"].rpartition(".")
    make = getattr(importlib.import_module(module), called)
    settings = {key: value for key, value in node.items() if key not in ("_target_", "image_size", "image_sizes")}
    named: Any = [make(part=part, **settings) for part in ("train", "val")]
    train, val = (TutorialDataset(part, iou_types, train=part is named[0]) for part in named)  # type: ignore[arg-type]
    return train, val, len(named[0].class_map) + 1


def _coco(node: dict[str, Any], part: str, transforms: Any, iou_types: list[str]) -> Any:
    root, has_part = Path(node["root"]).expanduser(), node[f"{part}_annotations"] is not None
    part = part if has_part else "train"
    data = CocoDetection(root / node[f"{part}_images"], str(root / node[f"{part}_annotations"]), transforms=transforms)
    masks = ["masks"] if "segm" in iou_types else []
    return wrap_dataset_for_transforms_v2(data, target_keys=["boxes", "labels", "image_id", *masks])


def model_of(told: dict[str, Any], num_classes: int) -> torch.nn.Module:
    """The tutorial's detectors, with random weights."""
    name = told["backbone"]
    detector: Any = {"segm": MaskRCNN, "keypoints": KeypointRCNN}.get(told["iou_types"][-1], FasterRCNN)
    if told["fpn"]:
        norm = torch.nn.BatchNorm2d
        pyramid: Any = resnet_fpn_backbone(backbone_name=name, weights=None, trainable_layers=5, norm_layer=norm)
        return detector(pyramid, num_classes, **told["sizes"])
    body: Any = torchvision.models.get_model(name, weights=None).features
    body.out_channels = [part.out_channels for part in body.modules() if isinstance(part, torch.nn.Conv2d)][-1]
    anchors = AnchorGenerator(((32, 64, 128, 256, 512),), ((0.5, 1.0, 2.0),))
    pool = MultiScaleRoIAlign(["0"], output_size=7, sampling_ratio=2)
    return detector(body, num_classes, rpn_anchor_generator=anchors, box_roi_pool=pool, **told["sizes"])


def collate_fn(batch: Any) -> Any:
    """The references' `utils.collate_fn`."""
    return tuple(zip(*batch, strict=True))


def mark(step: str) -> None:
    """The end of a step, which began where the last one ended."""
    _MARKS.append((step, time.perf_counter()))


def main(told: dict[str, Any]) -> None:
    """The tutorial's `main` until it has a batch."""
    mark("imports")
    train, val, num_classes = data_sets(told["dataset"], told["iou_types"])
    loading: Any = {"num_workers": told["workers"], "collate_fn": collate_fn}
    loader = DataLoader(train, batch_size=told["batch_size"], shuffle=True, **loading)
    DataLoader(val, batch_size=1, shuffle=False, **loading)
    mark("data")
    name = told["device"]
    device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
    model = model_of(told, num_classes).to(device)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    torch.optim.SGD(parameters, lr=0.005, momentum=0.9, weight_decay=0.0005)
    mark("model")
    next(iter(loader))
    mark("first batch")
    steps = {step: at - before for (_, before), (step, at) in pairwise(_MARKS)}
    from detlab.benchmark.turns import peak_memory

    print(json.dumps({"steps": steps, "memory": peak_memory()}), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
