"""What several tests build: a small Penn-Fudan folder, a tiny detector, a composed config."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from PIL import Image

from detlab.config import CONF, register

# Test processes beside each other (-n) share the cores; this is said before torch is imported, and goes to what the tests start.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# The tests say what comes out on a processor, some of them in every bit, and their own models know no other device.
os.environ["CUDA_VISIBLE_DEVICES"] = ""

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    """Hydra sets up logging and a run takes Ctrl-C; the next test finds both as they were."""
    handlers, level, interrupt = logging.root.handlers[:], logging.root.level, signal.getsignal(signal.SIGINT)
    yield
    for handler in logging.root.handlers:
        if handler not in handlers:
            handler.close()
    logging.root.handlers[:], logging.root.level = handlers, level
    signal.signal(signal.SIGINT, interrupt)


def write_pennfudan(root: Path, count: int, *, size: tuple[int, int] = (60, 80), people: int | None = None) -> Path:
    """A folder like the zip's: `count` images of noise with a bright rectangle for each of 1 or 2 people, or of so many."""
    (root / "PNGImages").mkdir(parents=True)
    (root / "PedMasks").mkdir()
    random = np.random.default_rng(0)
    height, width = size
    for i in range(count):
        image = random.integers(0, 90, (height, width, 3), dtype=np.uint8)
        mask = np.zeros((height, width), dtype=np.uint8)
        for person in range(people or 1 + i % 2):
            x, y = 5 + 40 * person, int(random.integers(2, 20))
            image[y : y + 35, x : x + 18] = 200
            mask[y : y + 35, x : x + 18] = person + 1
        Image.fromarray(image).save(root / "PNGImages" / f"Ped{i:05d}.png")
        Image.fromarray(mask).save(root / "PedMasks" / f"Ped{i:05d}_mask.png")
    return root


@pytest.fixture
def torchvision_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision's own downloads fail the test."""
    import torch
    import torchvision

    def refuse(url: str, *_: Any, **__: Any) -> None:
        raise AssertionError(f"torchvision downloads {url}")

    for module in (torch.hub, torchvision.models._api):
        monkeypatch.setattr(module, "load_state_dict_from_url", refuse)


@pytest.fixture
def pennfudan(tmp_path: Path) -> Path:
    """Six small images with their masks."""
    return write_pennfudan(tmp_path / "PennFudanPed", 6)


@pytest.fixture
def composed() -> Callable[..., DictConfig]:
    """Compose the real config with overrides."""

    def compose_it(*overrides: str) -> DictConfig:
        register()
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return compose("config", list(overrides))

    return compose_it


@pytest.fixture
def detlab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run `python -m detlab.run` within this process, in an empty working folder; gives the exit status."""

    def run_it(*overrides: str) -> int:
        from detlab.run import main

        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("sys.argv", ["detlab", *overrides])
        monkeypatch.setattr("sys.path", sys.path[:])
        return main()

    return run_it


def lines_of(run_folder: Path, *, perf: bool = False) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, without what the machine's speed decides."""
    lines = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if perf or not key.startswith("perf/")} for line in lines]


# A run of seconds with a small Mask R-CNN of the real parts: MobileNetV3-Small, few regions, small images.
TINY = (
    "dataset.train_size=8",
    "dataset.val_size=4",
    "image_size.min=72",
    "image_size.max=96",
    "batch_size=2",
    "epochs=1",
    "workers=0",
    "log_every=1",
    "model.backbone.name=mobilenet_v3_small",
    "model.backbone.fpn_channels=64",
    "model.rpn_pre_nms_top_n_train=100",
    "model.rpn_post_nms_top_n_train=50",
    "model.rpn_pre_nms_top_n_test=50",
    "model.rpn_post_nms_top_n_test=20",
    "model.box_batch_size_per_image=16",
)
# Four times as large, and the norms' and layers' names are those that most users see; it detects something after 4 steps.
RESNET = ("model.backbone.name=resnet18", "model.backbone.fpn_channels=256")
