"""The same losses as the tutorial's loop in plain torchvision."""

from __future__ import annotations

import copy
import json
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from conftest import lines_of, write_pennfudan
from omegaconf import DictConfig
from PIL import Image
from torchvision.models.detection import FasterRCNN, maskrcnn_resnet50_fpn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign

from detlab.config import build
from detlab.engine import Device
from detlab.models.weights import settle

# Regions enough that all are taken, so that no sampling is left to chance.
REGIONS = {"rpn_batch_size_per_image": 1_000_000, "box_batch_size_per_image": 1000, "rpn_post_nms_top_n_train": 40}
SIZE = {"min_size": 60, "max_size": 80}


class PennFudanDataset(torch.utils.data.Dataset):
    """The tutorial's, with the box's last column inside."""

    def __init__(self, root: Path) -> None:
        self.images = sorted((root / "PNGImages").iterdir())
        self.masks = sorted((root / "PedMasks").iterdir())

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, dict[str, Any]]:
        image = torchvision.transforms.functional.to_tensor(Image.open(self.images[index]).convert("RGB"))
        mask = np.array(Image.open(self.masks[index]))
        masks = mask == np.unique(mask)[1:][:, None, None]
        boxes = [[p[1].min(), p[0].min(), p[1].max() + 1, p[0].max() + 1] for p in (np.nonzero(m) for m in masks)]
        return image, {
            "boxes": torch.as_tensor(np.array(boxes), dtype=torch.float32),
            "labels": torch.ones(len(masks), dtype=torch.int64),
            "masks": torch.as_tensor(masks, dtype=torch.uint8),
        }


def plain_maskrcnn() -> torch.nn.Module:
    model = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, **SIZE, **REGIONS)
    model.roi_heads.box_predictor = FastRCNNPredictor(1024, 2)
    model.roi_heads.mask_predictor = MaskRCNNPredictor(256, 256, 2)
    return model


def plain_mobilenet() -> torch.nn.Module:
    backbone = torchvision.models.mobilenet_v2(weights=None).features
    backbone.out_channels = 1280
    return FasterRCNN(
        backbone,
        num_classes=2,
        rpn_anchor_generator=AnchorGenerator(((32, 64, 128, 256, 512),), ((0.5, 1.0, 2.0),)),
        box_roi_pool=MultiScaleRoIAlign(["0"], 7, 2),
        **SIZE,
        **REGIONS,
    )


def plain_losses(model: torch.nn.Module, root: Path, epochs: int) -> list[dict[str, float]]:
    """The tutorial's loop: SGD, linear warm-up over the first epoch, a tenth of the rate every third epoch."""
    loader = torch.utils.data.DataLoader(
        PennFudanDataset(root), batch_size=2, collate_fn=lambda b: tuple(zip(*b, strict=True))
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.005, momentum=0.9, weight_decay=0.0005)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=3, gamma=0.1)
    model.train()
    rows = []
    for epoch in range(epochs):
        warmup = None
        if epoch == 0:
            total = min(1000, len(loader) - 1)
            warmup = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.001, total_iters=total)
        for images, targets in loader:
            losses = model(list(images), list(targets))
            total_loss = sum(losses.values())
            optimizer.zero_grad()
            total_loss.backward()
            optimizer.step()
            rows.append({name: float(value.detach()) for name, value in {"loss": total_loss, **losses}.items()})
            if warmup is not None:
                warmup.step()
        schedule.step()
    return rows


# Eight steps have the end of the warm-up and of an epoch; twenty the tenth of the rate.
@pytest.mark.parametrize("steps", [pytest.param(8, marks=pytest.mark.slow), pytest.param(20, marks=pytest.mark.long)])
@pytest.mark.parametrize(("name", "make"), [("maskrcnn", plain_maskrcnn), ("mobilenet", plain_mobilenet)])
def test_steps_of_the_plain_twin_have_the_losses_of_the_plain_loop(
    detlab: Callable[..., int],
    composed: Callable[..., DictConfig],
    tmp_path: Path,
    name: str,
    make: Callable[[], torch.nn.Module],
    steps: int,
) -> None:
    root = write_pennfudan(tmp_path / "PennFudanPed", 12)
    torch.manual_seed(0)
    # torchvision's own start diverges at this rate on an untrained network; the names of the weights are the same.
    cfg = composed(f"model={name}")
    settle(cfg.model)
    start = build(cfg.model, group="model", num_classes=2).state_dict()
    torch.save(start, tmp_path / "start.pt")
    model = make()
    model.load_state_dict(start, strict=True)
    expected = plain_losses(model, root, epochs=-(-steps // 6))[:steps]
    # A split file keeps the sorted order, and all for training.
    names = [image.name for image in sorted((root / "PNGImages").iterdir())]
    (tmp_path / "split.json").write_text(json.dumps({"train": names, "val": []}))
    status = detlab(
        f"model={name}", f"model.weights={tmp_path / 'start.pt'}", "model.anchor_generator.sizes=" + ANCHORS[name],
        *(f"model.{key}={value}" for key, value in REGIONS.items()), "image_size.min=60", "image_size.max=80",
        "model.enlarge_to=null",
        "dataset=pennfudan", f"dataset.root={root}", f"dataset.split_file={tmp_path / 'split.json'}",
        "augmentation=none", "shuffle=false", "batch_size=2", "epochs=4", f"max_steps={steps}", "workers=0", "log_every=1",
        "optimizer=sgd", "optimizer.lr=0.005", "optimizer.weight_decay=0.0005", "optimizer.fused=false", *PLAIN[name],
        "schedule=step", "schedule.warmup_steps=5", "eval_every=100", "precision=fp32", "hydra.run.dir=a",
    )  # fmt: skip
    assert status == 0
    ours = [line for line in lines_of(tmp_path / "a") if "train/loss" in line]
    assert len(ours) == steps
    for mine, plain in zip(ours, expected, strict=True):
        for key, value in plain.items():
            assert mine[f"train/{key}"] == pytest.approx(value, rel=1e-5), (mine["step"], key)


@pytest.mark.long
@pytest.mark.parametrize(("name", "make"), [("maskrcnn", plain_maskrcnn), ("mobilenet", plain_mobilenet)])
def test_from_each_of_twenty_states_the_fast_path_has_the_plain_ones_losses_and_gradients(
    composed: Callable[..., DictConfig],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    name: str,
    make: Callable[[], torch.nn.Module],
) -> None:
    ours, theirs = twins(composed, monkeypatch, name, make)
    exact = [copy.deepcopy(model).double() for model in (ours, theirs)]
    apart, rounding = [], []
    for step, batch in states_of(theirs, write_pennfudan(tmp_path / "PennFudanPed", 12), steps=20):
        found = []
        for model in (ours, *exact, theirs):
            model.load_state_dict(theirs.state_dict())
            found.append(losses_and_gradient(model, batch, seed=step))
        (losses, gradient), (fast_losses, fast), (plain_losses, plain), (their_losses, their_gradient) = found
        assert fast_losses == pytest.approx(plain_losses, rel=1e-10, abs=1e-12), step
        assert (fast - plain).norm() <= 1e-9 * plain.norm(), step
        assert losses == pytest.approx(their_losses, rel=1e-5, abs=1e-8), step
        apart.append(float((gradient - their_gradient).norm() / plain.norm()))
        rounding.append(float((their_gradient - plain).norm() / plain.norm()))
    for what, numbers in (
        ("fast path from the plain one", apart),
        ("plain one in float32 from the same in float64", rounding),
    ):
        over = sum(number > 1e-4 for number in numbers)
        print(
            f"{name}, gradients, {what}: {statistics.median(numbers):.1e} in the median, {max(numbers):.1e} at most, "
            f"above 1e-4 in {over} of {len(numbers)} steps"
        )
    # Where a rounding error flips a ReLU, float32 itself is further from the truth than 1e-4, in the plain loop too.
    assert statistics.median(apart) <= 1e-4
    assert max(apart) <= max(1e-4, *rounding)


@pytest.mark.long
@pytest.mark.parametrize(("name", "make"), [("maskrcnn", plain_maskrcnn), ("mobilenet", plain_mobilenet)])
def test_from_each_of_twenty_states_bf16_is_as_near_to_fp32_as_torchvisions_own_model_in_bf16(
    composed: Callable[..., DictConfig],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    name: str,
    make: Callable[[], torch.nn.Module],
) -> None:
    ours, theirs = twins(composed, monkeypatch, name, make)
    device = Device(torch.device("cpu"), "bf16")
    in_bf16 = [device.place(model) for model in (ours, copy.deepcopy(theirs))]
    apart: list[list[float]] = [[], []]
    cosines: list[list[float]] = [[], []]
    for step, batch in states_of(theirs, write_pennfudan(tmp_path / "PennFudanPed", 12), steps=20):
        their_losses, their_gradient = losses_and_gradient(theirs, batch, seed=step)
        total = sum(their_losses.values())
        for which, model in enumerate(in_bf16):
            model.load_state_dict(theirs.state_dict())
            with device.autocast():
                losses, gradient = losses_and_gradient(model, batch, seed=step)
            apart[which].append(abs(sum(losses.values()) - total) / total)
            cosines[which].append(float(torch.nn.functional.cosine_similarity(gradient, their_gradient, dim=0)))
    for which, losses_apart, cosine in zip(("detlab", "torchvision"), apart, cosines, strict=True):
        print(
            f"{name}, {which} in bf16: loss apart by {statistics.median(losses_apart):.2g} (at most {max(losses_apart):.2g}) of ",
            end="",
        )
        print(f"itself, cosine of the gradients {statistics.median(cosine):.3f} (at least {min(cosine):.3f})")
    assert statistics.median(apart[0]) <= 1.5 * statistics.median(apart[1]) + 0.01
    assert statistics.median(cosines[0]) >= statistics.median(cosines[1]) - 0.1


def twins(
    composed: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch, name: str, make: Callable[[], torch.nn.Module]
) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Our fast model and torchvision's, from the same weights."""
    # Not smaller: of norms over a handful of cells the gradient jumps where a rounding error flips a ReLU.
    monkeypatch.setitem(SIZE, "min_size", 120)
    monkeypatch.setitem(SIZE, "max_size", 160)
    regions = (f"model.{key}={value}" for key, value in REGIONS.items())
    sizes = ("image_size.min=120", "image_size.max=160", "model.enlarge_to=null")
    cfg = composed(f"model={name}", "model.anchor_generator.sizes=" + ANCHORS[name], *regions, *sizes)
    # As many anchors as the smaller maps have make the gradient of the sampled ones the cheaper one.
    cfg.model.rpn_batch_size_per_image = 8 if name == "mobilenet" else 64
    settle(cfg.model)
    torch.manual_seed(0)
    ours, theirs = build(cfg.model, group="model", num_classes=2).train(), make().train()
    theirs.rpn.fg_bg_sampler.batch_size_per_image = cfg.model.rpn_batch_size_per_image
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def states_of(theirs: torch.nn.Module, root: Path, steps: int) -> Iterator[tuple[int, list[Any]]]:
    """Of the plain loop each step and its batch; after each, the step is taken along the gradient found meanwhile."""
    data = PennFudanDataset(root)
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.005, momentum=0.9, weight_decay=0.0005)
    for step in range(steps):
        yield step, [data[(2 * step + i) % len(data)] for i in range(2)]
        optimizer.step()


def losses_and_gradient(model: torch.nn.Module, batch: list[Any], seed: int) -> tuple[dict[str, float], torch.Tensor]:
    """In the model's own precision; the gradient stays in its parameters too."""
    dtype = next(model.parameters()).dtype
    images = [image.to(dtype) for image, _ in batch]
    targets = [{**target, "boxes": target["boxes"].to(dtype)} for _, target in batch]
    torch.manual_seed(seed)
    model.zero_grad()
    losses = model(images, targets)
    sum(losses.values()).backward()
    gradient = torch.cat([p.grad.flatten().double() for p in model.parameters() if p.grad is not None])
    return {key: value.item() for key, value in losses.items()}, gradient


# What makes of a model its plain twin, equal to torchvision's in every bit.
PLAIN = {
    "maskrcnn": (
        "model.box_roi_pool.method=torchvision",
        "model.mask_roi_pool.method=torchvision",
        "model.rpn_sampled_gradient=false",
        "model.rpn_batched=false",
        "model.backbone.fold_norms=false",
    ),
    "mobilenet": (
        "model.box_roi_pool.method=torchvision",
        "model.rpn_sampled_gradient=false",
        "model.rpn_batched=false",
        "model.backbone.fold_norms=false",
    ),
}
ANCHORS = {"maskrcnn": "[[32],[64],[128],[256],[512]]", "mobilenet": "[[32,64,128,256,512]]"}
