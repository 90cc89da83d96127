"""Runs that several test files look at: made once, when the first of them asks."""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import RESNET, TINY, write_pennfudan

from detlab.run import main

# A model that sees: every bright upright stripe of an image is an object, with its pixels for a mask. It reports them with scores
# of 0.9, 0.8 and so on, and behind them, at 0.2, a square of 8 pixels at the lower right where nothing is.
BRIGHT = """
import torch
from torch import nn


class Bright(nn.Module):
    iou_types = ("bbox", "segm")

    def __init__(self, num_classes):
        super().__init__()
        self.level = nn.Parameter(torch.tensor(0.6))

    def forward(self, images, targets=None):
        if self.training:
            return {"loss_level": (self.level - 0.6) ** 2}
        return [self.look(image.mean(0) > self.level) for image in images]

    def look(self, bright):
        height, width = bright.shape
        columns = torch.cat([torch.zeros(1), bright.any(0).float(), torch.zeros(1)]).diff().nonzero()[:, 0].reshape(-1, 2)
        masks = [bright & (torch.arange(width) >= x0) & (torch.arange(width) < x1) for x0, x1 in columns.tolist()]
        nothing = torch.zeros_like(bright)
        nothing[-8:, -8:] = True
        masks = torch.stack([*masks, nothing])
        rows = [mask.any(1).nonzero()[:, 0] for mask in masks]
        boxes = [[x0, ys[0], x1, ys[-1] + 1] for (x0, x1), ys in zip([*columns.tolist(), (width - 8, width)], rows)]
        scores = [0.9 - 0.1 * i for i in range(len(boxes) - 1)] + [0.2]
        return {
            "boxes": torch.tensor(boxes, dtype=torch.float32),
            "labels": torch.ones(len(boxes), dtype=torch.int64),
            "scores": torch.tensor(scores),
            "masks": masks[:, None].float(),
        }
"""


@contextmanager
def _at_work(folder: Path, *overrides: str) -> Iterator[None]:
    """`detlab train OVERRIDES` in an existing folder; leaves this process as it was."""
    handlers, level = logging.root.handlers[:], logging.root.level
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sys.argv", ["detlab", *overrides])
        patch.setattr("sys.path", sys.path[:])
        yield
    for handler in set(logging.root.handlers) - set(handlers):
        handler.close()
    logging.root.handlers[:], logging.root.level = handlers, level


@functools.cache
def mask_rcnn(base: Path) -> Path:
    """The folder of a small run of the real Mask R-CNN, in which the first evaluation was the best one."""
    folder = base / "mask_rcnn"
    folder.mkdir()
    with _at_work(folder, *TINY, *RESNET, "epochs=2", "optimizer.lr=0.002", "hydra.run.dir=first-run"):
        assert main() == 0
    return folder / "first-run"


@functools.cache
def untrained(base: Path, name: str, *overrides: str) -> Path:
    """A checkpoint `NAME.pt` like a run's best one, of a detector that nobody trained, but whose heads tell regions apart."""
    import torch
    from hydra import compose, initialize_config_dir

    from detlab import storage
    from detlab.checkpoint import Origin
    from detlab.config import CONF, build, register
    from detlab.models.weights import settle
    from detlab.structures import PERSON, ClassMap

    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", list(overrides))
    settle(cfg.model)
    cfg.name = name  # Hydra knows none, where there is no command line
    classes = ClassMap(("dog", "cat"), (3, 7))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build(cfg.model, group="model", num_classes=3, num_keypoints=len(PERSON))
        for key, parameter in model.named_parameters():
            if key.endswith(".weight") and any(
                head in key for head in ("predictor", "cls_logits", "bbox_pred", "conv_fcn")
            ):
                torch.nn.init.normal_(parameter, std=2 * parameter.detach()[0].numel() ** -0.5)
            elif key.endswith("cls_logits.bias"):
                torch.nn.init.zeros_(parameter)  # RetinaNet's begins where no score is above 0.01
    figures = {"precision": [0.9, None], "recall": [0.8, None], "f1": [0.85, None]}
    operating = {"iou_type": "bbox", "by": "f1", "thresholds": [0.4, None], **figures}
    origin = Origin(cfg, list(overrides), {}, classes, PERSON, {}, {})
    path = base / f"{name}.pt"
    storage.save({**origin.record(), "model": model.state_dict(), "operating": operating}, path)
    return path


@functools.cache
def bright(base: Path) -> Path:
    """The folder of a run of the model that sees, `Bright` in ../bright_model.py, on ../PennFudanPed: 6 images, of them 4 in `val`.

    Its class is the user's own: `DETLAB_ALLOW=bright_model` and `allow=[bright_model]` permit it.
    """
    folder = base / "bright"
    write_pennfudan(folder / "PennFudanPed", 6)
    (folder / "bright_model.py").write_text(BRIGHT)
    (folder / "conf" / "model").mkdir(parents=True)
    (folder / "conf" / "model" / "bright.yaml").write_text("_target_: bright_model.Bright\nobjective: segm/AP\n")
    overrides = (
        "model=bright",
        "dataset=pennfudan",
        "dataset.root=PennFudanPed",
        "dataset.val_size=4",
        "batch_size=2",
        "epochs=1",
        "workers=0",
    )
    with _at_work(folder, *overrides, "allow=[bright_model]", "hydra.run.dir=run"):
        assert main() == 0
    return folder / "run"
