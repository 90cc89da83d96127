"""Does this project work: its data set, its model, and a short run of its recipe? `python -m pytest`, a minute or two."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mine import CLASSES, Shapes, detector

PROJECT = Path(__file__).resolve().parents[1]


def test_each_box_of_the_data_set_encloses_its_mask() -> None:
    shapes = Shapes(count=20, height=96, width=128)
    for image, target in (shapes[i] for i in range(len(shapes))):
        assert image.shape == (3, 96, 128)
        assert set(target["labels"].tolist()) <= set(range(1, len(CLASSES) + 1))
        for (x0, y0, x1, y1), mask in zip(target["boxes"].int().tolist(), target["masks"], strict=True):
            assert mask.sum() == mask[y0:y1, x0:x1].sum() > 0
            assert mask[y0].any()
            assert mask[y1 - 1].any()
            assert mask[:, x0].any()
            assert mask[:, x1 - 1].any()


def test_the_model_gives_losses_in_training_and_boxes_in_evaluation() -> None:
    image, target = Shapes(count=1, height=96, width=128)[0]
    model = detector(num_classes=len(CLASSES) + 1, min_size=96, max_size=128, anchor_sizes=[16, 32, 64])
    losses = model([image / 255], [target])
    assert all(torch.isfinite(loss) for loss in losses.values())
    (found,) = model.eval()([image / 255])
    assert {"boxes", "labels", "scores"} <= found.keys()


@pytest.mark.parametrize("overrides", [[], ["model=mine"]], ids=["first", "own model"])
def test_the_recipe_trains_and_is_scored(overrides: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "detlab.run", "experiment=first", "debug=smoke", "allow=[mine]", *overrides]
    done = subprocess.run(
        [*command, f"hydra.run.dir={tmp_path}/run"], cwd=PROJECT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert any("train/loss" in line for line in lines)
    assert 0 <= [line["val/bbox/AP"] for line in lines if "val/bbox/AP" in line][-1] <= 1
