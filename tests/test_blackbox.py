"""A step that breaks down is kept, names its image and its loss, and can be repeated."""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY, lines_of

from detlab.checkpoint import read
from detlab.cli import main as detlab_command

Detlab = Callable[..., int]

# A detector of torchvision's with one loss that is not a number where it meets an image whose first pixel is black.
POISONED = """
import torch
from torch import nn

from detlab.models.detectors import rcnn


class Poisoned(nn.Module):
    def __init__(self, detector, loss, how):
        super().__init__()
        self.detector, self.loss, self.how, self.iou_types = detector, loss, how, detector.iou_types

    def forward(self, images, targets=None):
        result = self.detector(images, targets)
        if self.training and self.loss in result and any(float(image[:, 0, 0].sum()) == 0 for image in images):
            if self.how == "loss":
                result[self.loss] = result[self.loss] * float("nan")
            else:  # a loss that is finite, with a gradient that is not
                result[self.loss] = result[self.loss] + (result[self.loss] - result[self.loss].detach()).sqrt()
        return result


def poisoned(loss, how, **settings):
    return Poisoned(rcnn(**settings), loss, how)
"""
# Its data: image 3 alone has that pixel.
DATA = """
import torch
from detlab.data.synthetic import Synthetic


class OneBad(Synthetic):
    def __getitem__(self, index):
        image, target = super().__getitem__(index)
        image[:, 0, 0] = 0 if target["image_id"] == 3 else 9
        return image, target
"""
LOSSES = {
    "maskrcnn": ("loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg", "loss_mask"),
    "mobilenet": ("loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg"),
    "keypointrcnn": ("loss_keypoint",),
}
SMALL = {
    "maskrcnn": TINY,
    "mobilenet": (*(o for o in TINY if not o.startswith("model.backbone")), "model.enlarge_to=96"),
    "keypointrcnn": (*TINY, "model.keypoint_layers=[16]"),
}


def poison(folder: Path, monkeypatch: pytest.MonkeyPatch, model: str, loss: str, how: str = "loss") -> list[str]:
    """The overrides of a run in `folder` whose image 3 ruins one loss."""
    (folder / "poisoned.py").write_text(POISONED + DATA)
    monkeypatch.setenv("DETLAB_ALLOW", "poisoned")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "poisoned", raising=False)
    chosen = [f"model={model}", "model._target_=poisoned.poisoned", f"+model.loss={loss}", f"+model.how={how}"]
    data = ["dataset._target_=poisoned.OneBad", "augmentation=none"]
    return [*SMALL[model], *chosen, *data, "hydra.run.dir=run"]


def cases() -> list[tuple[str, str, str]]:
    every = [(model, loss, "loss") for model, losses in LOSSES.items() for loss in losses]
    return [*every, ("maskrcnn", "loss_mask", "gradient")]


@pytest.mark.slow
@pytest.mark.parametrize(("model", "loss", "how"), cases())
def test_the_black_box_names_the_image_and_the_loss_and_replay_reproduces_it(
    detlab: Detlab,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    model: str,
    loss: str,
    how: str,
) -> None:
    assert detlab(*poison(tmp_path, monkeypatch, model, loss, how)) == 1
    said = capsys.readouterr().err
    named = loss if how == "loss" else "gradient"
    assert f"non-finite {how} in step " in said
    assert f"Not finite alone: image 3 (train-0002): {named}." in said
    crash = read(tmp_path / "run" / "crash.pt")["crash"]
    share = crash["processes"][0]
    assert share["culprits"] == {3: [named]}
    ids = [target["image_id"] for batch in share["batches"] for target in batch["targets"]]
    assert 3 in ids
    assert crash["gradient_norms"]
    assert detlab_command(["replay", "run/crash.pt", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["reproduced"]
    assert told["culprits"] == {"3": [named]}
    assert "returned nan values" in told["backward"]
    if how == "loss":
        assert told["losses"][0][loss] == told["recorded"][0][loss] == "nan"
        assert told["forward"] == "Poisoned"


@pytest.mark.slow
def test_steps_are_left_out_up_to_a_limit(
    detlab: Detlab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = [*poison(tmp_path, monkeypatch, "maskrcnn", "loss_mask"), "on_nonfinite=skip", "epochs=2"]
    assert detlab(*run, "max_skipped=1", "eval_every=9") == 1
    said = capsys.readouterr().err
    assert "More than max_skipped=1 steps were left out." in said
    assert "detlab replay" in said
    assert (tmp_path / "run" / "detlab.log").read_text().count("left out: non-finite loss") == 1
    assert detlab(*run[:-1], "hydra.run.dir=other", "epochs=1") == 0
    losses = [line["train/loss_mask"] for line in lines_of(tmp_path / "other") if "train/loss" in line]
    assert losses.count(None) == 1
    state = read(tmp_path / "other" / "checkpoints" / "last.pt")
    assert state["position"]["skipped"] == 1
    assert all(bool(weight.isfinite().all()) for weight in state["model"].values())


def test_a_black_box_that_finds_no_room_does_not_hide_what_broke_down(
    detlab: Detlab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(content: Any, path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr("detlab.blackbox.storage.save", full)
    run = (*TINY, "optimizer.lr=1e30", "schedule.warmup_steps=0", "hydra.run.dir=run")
    assert detlab(*run) == 1
    said = capsys.readouterr().err
    assert "detlab: non-finite" in said
    assert "It could not be kept ([Errno 28] No space left on device: 'run/crash.pt')" in said.replace(
        f"{tmp_path}/", ""
    )


@pytest.mark.slow
def test_two_processes_agree_on_a_step_that_is_left_out(
    detlab: Detlab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = [*poison(tmp_path, monkeypatch, "maskrcnn", "loss_mask"), "on_nonfinite=skip", "devices=2"]
    assert detlab(*run) == 0
    capsys.readouterr()
    losses = [line["train/loss_mask"] for line in lines_of(tmp_path / "run") if "train/loss" in line]
    assert losses.count(None) == 1
    assert len(losses) == 4
    assert len(read(tmp_path / "run" / "crash.pt")["crash"]["processes"]) == 2
    assert detlab_command(["replay", "run", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["culprits"] == {"3": ["loss_mask"]}
    assert [part["loss_mask"] == "nan" for part in told["losses"]].count(True) == 1


@pytest.mark.slow
def test_a_job_that_breaks_down_in_one_process_fails_in_all_and_the_next_begins_clean(
    detlab: Detlab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = [
        o for o in poison(tmp_path, monkeypatch, "maskrcnn", "loss_mask") if not o.startswith(("+model.loss", "hydra"))
    ]
    assert detlab("-m", *run, "devices=2", "+model.loss=loss_mask,loss_none", "hydra.sweep.dir=sweep") == 1
    said = capsys.readouterr()
    assert said.err.count("non-finite loss in step") == 1
    states = {path.parent.name[0]: json.loads(path.read_text())["state"] for path in tmp_path.glob("sweep/*/run.json")}
    assert states == {"0": "failed", "1": "done"}


def test_what_is_no_crash_is_refused_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.pt").write_bytes(b"nothing")
    assert detlab_command(["replay", str(tmp_path / "a.pt")]) == 2
    assert "not a file that torch.save wrote" in capsys.readouterr().err
    assert detlab_command(["replay", str(tmp_path)]) == 2
    assert "holds no crash.pt; none of its steps broke down" in capsys.readouterr().err
