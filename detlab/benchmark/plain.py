"""The rival: loops of training, prediction and evaluation as torchvision's tutorial and its references/detection write them."""

from __future__ import annotations

import copy
import io
import math
import sys
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from typing import Any, cast

import numpy as np
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from detlab.structures import FIELD_OF, DetectionDataset, IouType, Keypoints

# What is detlab's own in a model's config, and torchvision's in its place.
PLAIN_TARGETS = {
    "detlab.ops.roi_align.MultiScaleRoIAlign": "torchvision.ops.MultiScaleRoIAlign",
    "detlab.ops.anchors.AnchorGenerator": "torchvision.models.detection.anchor_utils.AnchorGenerator",
}
PLAIN_SETTINGS = {"rpn_sampled_gradient": False, "rpn_batched": False, "fold_norms": False, "masks_in_boxes": False}


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
        flip = v2.RandomHorizontalFlip(0.5) if "keypoints" not in self.fields else FlipWithKeypoints(dataset.keypoints)
        self.transforms = v2.Compose(
            [*([flip] if train else []), v2.ToDtype(torch.float, scale=True), v2.ToPureTensor()]
        )

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        image, sample = self.dataset[index]
        size = (image.shape[1], image.shape[2])
        target: dict[str, Any] = {key: sample[key] for key in ("labels", "image_id", "area", "iscrowd")}
        target["boxes"] = tv_tensors.BoundingBoxes(sample["boxes"], format="XYXY", canvas_size=size)  # pyright: ignore
        if "masks" in self.fields and "masks" in sample:
            target["masks"] = tv_tensors.Mask(sample["masks"])
        if "keypoints" in self.fields and "keypoints" in sample:
            target["keypoints"] = sample["keypoints"]
        return self.transforms(tv_tensors.Image(image), target)


class FlipWithKeypoints(nn.Module):
    """The references' `RandomHorizontalFlip`: of two images it mirrors one, and points of left and right change places."""

    def __init__(self, keypoints: Keypoints | None) -> None:
        super().__init__()
        assert keypoints is not None
        self.mirrored = list(keypoints.mirrored)

    def forward(self, image: Tensor, target: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """The image and its target, or both mirrored."""
        if torch.rand(1) >= 0.5:
            return image, target
        target = {
            key: functional.horizontal_flip(value) if isinstance(value, tv_tensors.TVTensor) else value
            for key, value in target.items()
        }
        points = target["keypoints"][:, self.mirrored]
        points[..., 0] = image.shape[-1] - points[..., 0]
        points[points[..., 2] == 0] = 0
        return functional.horizontal_flip(image), {**target, "keypoints": points}


def collate_fn(batch: Sequence[Any]) -> Any:
    """The references' `utils.collate_fn`."""
    return tuple(zip(*batch, strict=True))


def batches(dataset: Dataset[Any], order: Sequence[list[int]], workers: int) -> Generator[Any, None, None]:
    """The references' loader, in an order that is given, again and again; its workers end with it."""
    loader = DataLoader(dataset, batch_sampler=order, num_workers=workers, collate_fn=collate_fn)
    while True:
        yield from loader


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


def index_of(ground_truth: dict[str, Any]) -> COCO:
    """The index that pycocotools makes of a COCO dict, as `CocoDetection` holds one."""
    index = COCO()
    index.dataset = cast("Any", ground_truth)
    with redirect_stdout(io.StringIO()):
        index.createIndex()
    return index


def run_lengths_of(masks: Tensor) -> list[dict[str, Any]]:
    """The references' way from pasted masks, probabilities `[N, 1, H, W]`, to run lengths: one by one, of the whole image."""
    rles = []
    # .numpy(): they give the tensor to np.array, which does the same and now warns.
    for mask in (masks > 0.5).numpy():
        rle: Any = coco_mask.encode(np.array(mask[0, :, :, np.newaxis], dtype=np.uint8, order="F"))
        rles.append({**rle[0], "counts": rle[0]["counts"].decode("utf-8")})
    return rles


class TutorialEvaluator:
    """The references' `CocoEvaluator` on one process: every batch is scored as it comes, by pycocotools, summed up at the end.

    Args:
        truth: pycocotools' index of the ground truth; copied, as theirs is.
        iou_types: of `bbox` and `segm`.
    """

    def __init__(self, truth: COCO, iou_types: Sequence[IouType]) -> None:
        self._truth = copy.deepcopy(truth)
        self._scored = {iou_type: COCOeval(self._truth, iouType=cast("Any", iou_type)) for iou_type in iou_types}
        self._of_batches: dict[str, list[np.ndarray]] = {iou_type: [] for iou_type in iou_types}
        self._image_ids: list[int] = []

    def update(self, predictions: Mapping[int, Mapping[str, Tensor]]) -> None:
        """Score a batch: predictions by image id, with `masks` `[N, 1, H, W]` for segm."""
        image_ids = [int(i) for i in np.unique(list(predictions))]
        self._image_ids += image_ids
        for iou_type, scored in self._scored.items():
            rows = [
                row
                for image_id, found in predictions.items()
                for row in (_box_rows(image_id, found) if iou_type == "bbox" else _mask_rows(image_id, found))
            ]
            with redirect_stdout(io.StringIO()):
                scored.cocoDt = self._truth.loadRes(cast("Any", rows)) if rows else COCO()
                scored.params.imgIds = list(image_ids)
                scored.evaluate()
            shape = (-1, len(scored.params.areaRng), len(image_ids))
            self._of_batches[iou_type].append(np.asarray(scored.evalImgs).reshape(shape))

    def summarize(self) -> dict[str, list[float]]:
        """The 12 numbers of each type, in pycocotools' order, -1 where there is nothing to measure."""
        image_ids, first = np.unique(self._image_ids, return_index=True)
        for iou_type, scored in self._scored.items():
            batches = np.concatenate(self._of_batches[iou_type], 2)
            scored.evalImgs = list(batches[..., first].flatten())
            scored.params.imgIds = list(image_ids)
            scored._paramsEval = copy.deepcopy(scored.params)  # pyright: ignore[reportAttributeAccessIssue]
            with redirect_stdout(io.StringIO()):
                scored.accumulate()
                scored.summarize()
        return {iou_type: [float(value) for value in scored.stats] for iou_type, scored in self._scored.items()}


def _box_rows(image_id: int, found: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    x0, y0, x1, y1 = found["boxes"].unbind(1)
    boxes = torch.stack((x0, y0, x1 - x0, y1 - y0), dim=1).tolist()
    return _rows(image_id, found, "bbox", boxes)


def _mask_rows(image_id: int, found: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    return _rows(image_id, found, "segmentation", run_lengths_of(found["masks"]))


def _rows(image_id: int, found: Mapping[str, Tensor], field: str, values: Sequence[Any]) -> list[dict[str, Any]]:
    """Rows of COCO's results; a label is the id of its class."""
    return [
        {"image_id": image_id, "category_id": label, field: value, "score": score}
        for value, label, score in zip(values, found["labels"].tolist(), found["scores"].tolist(), strict=True)
    ]
