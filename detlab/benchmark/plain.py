"""The rival: a training and a prediction loop as torchvision's tutorial and its references/detection write them."""

from __future__ import annotations

import math
import sys
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from detlab.structures import FIELD_OF, DetectionDataset, IouType

# What is detlab's own in a model's config, and torchvision's in its place.
PLAIN_TARGETS = {
    "detlab.ops.roi_align.MultiScaleRoIAlign": "torchvision.ops.MultiScaleRoIAlign",
    "detlab.ops.anchors.AnchorGenerator": "torchvision.models.detection.anchor_utils.AnchorGenerator",
}
PLAIN_SETTINGS = {"rpn_sampled_gradient": False, "fold_norms": False, "masks_in_boxes": False}


def plain_model(node: Any) -> Any:
    """A model's config with torchvision's own modules in place of detlab's: same sizes, same regions, same weights' names."""
    if isinstance(node, list):
        return [plain_model(item) for item in node]
    if not isinstance(node, dict):
        return node
    plain: dict[str, Any] = {key: PLAIN_SETTINGS.get(key, plain_model(value)) for key, value in node.items()}
    target = plain.get("_target_")
    if target in PLAIN_TARGETS:
        plain["_target_"] = PLAIN_TARGETS[target]
        plain.pop("method", None)
    return plain


class TutorialDataset(Dataset[Any]):
    """The tutorial's data set: an image and a target of tv_tensors, then its transforms; of a part of ours the same samples.

    Args:
        dataset: where the samples are from.
        iou_types: what is learnt: only their fields are in a target.
        train: whether half of the images are mirrored.
    """

    def __init__(self, dataset: DetectionDataset, iou_types: Sequence[IouType], *, train: bool) -> None:
        self.dataset = dataset
        self.fields = [FIELD_OF[iou_type] for iou_type in iou_types]
        transforms: list[nn.Module] = [v2.RandomHorizontalFlip(0.5)] if train else []
        self.transforms = v2.Compose([*transforms, v2.ToDtype(torch.float, scale=True), v2.ToPureTensor()])

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        image, sample = self.dataset[index]
        size = (image.shape[1], image.shape[2])
        target: dict[str, Any] = {key: sample[key] for key in ("labels", "image_id", "area", "iscrowd")}
        target["boxes"] = tv_tensors.BoundingBoxes(sample["boxes"], format="XYXY", canvas_size=size)  # pyright: ignore
        if "masks" in self.fields and "masks" in sample:
            target["masks"] = tv_tensors.Mask(sample["masks"])
        return self.transforms(tv_tensors.Image(image), target)


def collate_fn(batch: Sequence[Any]) -> Any:
    """The references' `utils.collate_fn`."""
    return tuple(zip(*batch, strict=True))


def batches(dataset: Dataset[Any], order: Sequence[list[int]], workers: int) -> Generator[Any, None, None]:
    """The references' loader, in an order that is given, again and again; its workers end with it."""
    loader = DataLoader(dataset, batch_sampler=order, num_workers=workers, collate_fn=collate_fn)
    while True:
        yield from loader


def optimizer_of(model: nn.Module, lr: float, momentum: float, weight_decay: float) -> torch.optim.Optimizer:
    """The tutorial's SGD."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.SGD(parameters, lr=lr, momentum=momentum, weight_decay=weight_decay)


def train_steps(model: nn.Module, source: Iterator[Any], optimizer: Any, device: torch.device, steps: int) -> float:
    """The references' `train_one_epoch`, without what it prints; the last loss."""
    model.train()
    loss_value = math.nan
    for _ in range(steps):
        images, targets = next(source)
        images = [image.to(device) for image in images]
        targets = [{k: v.to(device) if isinstance(v, Tensor) else v for k, v in t.items()} for t in targets]
        loss_dict = model(images, targets)
        losses: Tensor = sum(loss for loss in loss_dict.values())  # type: ignore[assignment]
        loss_value = losses.item()
        if not math.isfinite(loss_value):
            print(f"Loss is {loss_value}, stopping training")
            sys.exit(1)
        optimizer.zero_grad()
        losses.backward()
        optimizer.step()
    return loss_value


@torch.inference_mode()
def predict_images(
    model: nn.Module, source: Iterator[Any], device: torch.device, images: int
) -> list[dict[str, Tensor]]:
    """The references' `evaluate` up to what it gives its evaluator: one image after the other."""
    model.eval()
    outputs: list[dict[str, Tensor]] = []
    for _ in range(images):
        batch, _targets = next(source)
        found = model([image.to(device) for image in batch])
        outputs = [{k: v.to("cpu") for k, v in t.items()} for t in found]
    return outputs
