"""The main job, end to end, with small models on the embedded data set."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import TINY, lines_of
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from detlab.checkpoint import read

Detlab = Callable[..., int]


def board_of(folder: Path) -> EventAccumulator:
    board = EventAccumulator(str(folder))
    board.Reload()
    return board


def test_a_run_leaves_its_records_as_documented(detlab: Detlab, tmp_path: Path) -> None:
    assert detlab(*TINY, "hydra.run.dir=a") == 0
    folder = tmp_path / "a"
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert {
        "config.yaml",
        "metrics.jsonl",
        "run.json",
        "split.json",
        "predictions.json",
        "checkpoints/best.pt",
        "checkpoints/last.pt",
        ".hydra/overrides.yaml",
    } <= names
    lines = lines_of(folder, perf=True)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 4]
    assert {"train/loss", "train/loss_mask", "train/lr", "perf/images_per_second", "perf/max_memory"} <= lines[0].keys()
    assert {"val/bbox/AP", "val/bbox/ARl", "val/segm/AP50", "val/segm/AR100"} <= lines[-1].keys()
    record = json.loads((folder / "run.json").read_text())
    assert (record["state"], record["position"]["step"], record["classes"]) == ("done", 4, ["person"])
    split = json.loads((folder / "split.json").read_text())
    assert (len(split["train"]), len(split["val"])) == (8, 4)
    board = board_of(folder)
    assert [event.step for event in board.Scalars("train/loss")] == [1, 2, 3, 4]
    assert "val/bbox/AP" in board.Tags()["scalars"]
    assert "val/predictions" in board.Tags()["images"]
    assert "config/text_summary" in board.Tags()["tensors"]
    assert "_hparams_/session_start_info" in board.summary_metadata
    assert len(list(folder.rglob("events.out.tfevents.*"))) == 1
    said = (folder / "detlab.log").read_text()
    assert "classes:\n  label  id in the files  class\n      1                1  person\n" in said


@pytest.mark.slow
def test_the_same_command_twice_gives_the_same_numbers_whatever_the_number_of_workers(
    detlab: Detlab, tmp_path: Path
) -> None:
    for workers in (0, 1, 2):
        assert detlab(*TINY, f"workers={workers}", f"hydra.run.dir=w{workers}") == 0
    alone = lines_of(tmp_path / "w0")
    assert len({line["train/loss"] for line in alone[:4]}) == 4
    assert lines_of(tmp_path / "w1") == alone
    assert lines_of(tmp_path / "w2") == alone


@pytest.mark.slow
def test_a_resumed_run_ends_as_one_that_was_left_alone(detlab: Detlab, tmp_path: Path) -> None:
    assert detlab(*TINY, "epochs=2", "schedule=constant", "hydra.run.dir=whole") == 0
    assert detlab(*TINY, "epochs=2", "schedule=constant", "max_steps=5", "hydra.run.dir=parts") == 0
    assert detlab("resume=parts", "max_steps=null") == 0
    whole, parts = (read(tmp_path / name / "checkpoints" / "last.pt")["model"] for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    # The stop at step 5 was followed by an evaluation that the whole run did not make.
    resumed = [line for line in lines_of(tmp_path / "parts") if not (line["step"] == 5 and "val/bbox/AP" in line)]
    assert resumed == lines_of(tmp_path / "whole")
    assert [event.step for event in board_of(tmp_path / "parts").Scalars("train/loss")] == list(range(1, 9))


PREDICT = """
import json, sys
import torch
from pathlib import Path
from detlab.checkpoint import load_model
from detlab.data.synthetic import Synthetic
from detlab.evaluation.results import prediction_to_results
model, classes, _ = load_model(Path(sys.argv[1]))
data = Synthetic(part="val", difficulty="easy", seed=0, train_size=8, val_size=4, test_size=0, folds=None, fold=None, fraction=1.0)
rows = []
with torch.inference_mode():
    for image, target in (data[i] for i in range(len(data))):
        prediction = model([image.as_subclass(torch.Tensor).float() / 255])[0]
        rows += prediction_to_results(target["image_id"], prediction, classes, model.iou_types)
Path(sys.argv[2]).write_text(json.dumps(rows))
"""


@pytest.mark.slow
def test_predictions_of_the_run_equal_those_after_loading_in_a_new_process_offline(
    detlab: Detlab, tmp_path: Path
) -> None:
    assert detlab(*TINY, "hydra.run.dir=a") == 0
    best, rows = tmp_path / "a" / "checkpoints" / "best.pt", tmp_path / "rows.json"
    # A proxy that nobody serves: a download would fail.
    offline = {**os.environ, "https_proxy": "http://127.0.0.1:9", "TORCH_HOME": str(tmp_path / "no-cache")}
    subprocess.run([sys.executable, "-c", PREDICT, str(best), str(rows)], check=True, env=offline, cwd=tmp_path)
    before, after = json.loads((tmp_path / "a" / "predictions.json").read_text()), json.loads(rows.read_text())
    assert len(before) > 10
    assert after == before
    assert not (tmp_path / "no-cache").exists()


@pytest.mark.slow
def test_a_new_rate_holds_from_where_a_run_is_resumed_and_other_batches_are_refused(
    detlab: Detlab, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert detlab(*TINY, "max_steps=2", "schedule=constant", "schedule.warmup_steps=0", "hydra.run.dir=a") == 0
    assert detlab("resume=a", "batch_size=4") == 2
    assert "saved with batch_size=2, but now it is 4" in capsys.readouterr().err
    assert detlab("resume=a", "max_steps=3", "optimizer.lr=0.0005") == 2
    # At a constant rate the length changes no step.
    assert "which change the result: optimizer.lr 0.001 -> 0.0005.\n" in capsys.readouterr().err
    assert detlab("resume=a", "max_steps=3", "optimizer.lr=0.0005", "resume_anyway=true") == 0
    assert "resume_anyway: from here on with optimizer.lr" in (tmp_path / "a" / "detlab.log").read_text()
    rates = [line["train/lr"] for line in lines_of(tmp_path / "a") if "train/lr" in line]
    assert rates[0] != rates[2] == 0.0005


@pytest.mark.slow
def test_a_folder_that_holds_a_run_is_not_written_over(
    detlab: Detlab, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert detlab(*TINY, "max_steps=1", "hydra.run.dir=a") == 0
    before = lines_of(tmp_path / "a")
    assert detlab(*TINY, "max_steps=2", "hydra.run.dir=a") == 2
    assert "holds a run already; resume=a goes on with it" in capsys.readouterr().err
    assert lines_of(tmp_path / "a") == before


@pytest.mark.slow
def test_a_state_is_found_when_only_the_previous_one_is_whole(detlab: Detlab, tmp_path: Path) -> None:
    assert detlab(*TINY, "epochs=2", "max_steps=7", "hydra.run.dir=a") == 0
    (tmp_path / "a" / "checkpoints" / "last.pt").unlink()
    assert detlab("resume=a", "max_steps=5", "resume_anyway=true") == 0
    assert read(tmp_path / "a" / "checkpoints" / "last.pt")["position"]["step"] == 5


@pytest.mark.slow
def test_a_sweep_goes_on_after_a_bad_job_and_names_it(
    detlab: Detlab, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = [o for o in TINY if not o.startswith("batch_size")]
    status = detlab("-m", *overrides, "max_steps=1", "batch_size=9,2", "optimizer.lr=0.001,0.01", "hydra.sweep.dir=s")
    assert status == 1
    captured = capsys.readouterr()
    failed = captured.err.split("failed jobs, the others are done:")[1]
    assert failed.count("batch_size: 9 images a step") == 2
    assert captured.out.split("jobs done:")[1].count("segm/AP") == 2
    done = sorted(path.parent.name for path in (tmp_path / "s").glob("*/predictions.json"))
    assert [name.partition("-")[0] for name in done] == ["2", "3"]
    assert all("optimizer.lr=0.0" in name and "batch_size=2" in name for name in done)
    lr = [next(e.value for e in board_of(tmp_path / "s" / name).Scalars("train/lr")) for name in done]
    assert lr[1] == pytest.approx(10 * lr[0])


@pytest.mark.slow
def test_ctrl_c_saves_the_state_leaves_with_130_and_can_be_resumed(detlab: Detlab, tmp_path: Path) -> None:
    overrides = [o for o in TINY if not o.startswith("workers")]
    command = [sys.executable, "-m", "detlab.run", *overrides, "workers=1", "epochs=50", "hydra.run.dir=a"]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    metrics = tmp_path / "a" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.read_text().count("\n") >= 2):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers too
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert said.strip().splitlines()[-1].startswith("detlab: Ctrl-C: the state is saved. Go on with: resume=")
    assert "Traceback" not in said
    step = read(tmp_path / "a" / "checkpoints" / "last.pt")["position"]["step"]
    assert step >= 2
    assert json.loads((tmp_path / "a" / "run.json").read_text())["state"] == "interrupted"
    assert detlab("resume=a", f"max_steps={step + 1}", "resume_anyway=true") == 0
    assert read(tmp_path / "a" / "checkpoints" / "last.pt")["position"]["step"] == step + 1


def test_a_non_finite_loss_stops_the_run_with_losses_step_and_images(
    detlab: Detlab, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = detlab(*TINY, "optimizer.lr=1e30", "schedule.warmup_steps=0", "epochs=2", "hydra.run.dir=a")
    assert status == 1
    said = capsys.readouterr().err
    assert "non-finite loss in step" in said
    assert "loss_classifier=" in said
    assert "images [" in said
    assert "Traceback" not in said
    record = json.loads((tmp_path / "a" / "run.json").read_text())
    assert record["state"] == "failed"
    assert "non-finite loss" in record["why"]


@pytest.mark.slow
def test_accumulated_micro_batches_count_as_one_step_of_the_same_images(detlab: Detlab, tmp_path: Path) -> None:
    assert detlab(*TINY, "batch_size=4", "accumulate=2", "model.norm=group", "hydra.run.dir=a") == 0
    lines = lines_of(tmp_path / "a")
    assert [line["step"] for line in lines] == [1, 2, 2]


@pytest.mark.slow
def test_bf16_trains_close_to_fp32(detlab: Detlab, tmp_path: Path) -> None:
    for precision in ("fp32", "bf16"):
        assert detlab(*TINY, f"precision={precision}", "max_steps=1", f"hydra.run.dir={precision}") == 0
    fp32, bf16 = (lines_of(tmp_path / name)[0] for name in ("fp32", "bf16"))
    assert bf16["train/loss"] == pytest.approx(fp32["train/loss"], rel=0.05)
    assert bf16["train/loss"] != fp32["train/loss"]


TUTORIAL = """
import os
import torch
from PIL import Image
import numpy as np


class PennFudanDataset(torch.utils.data.Dataset):
    def __init__(self, root, transforms):
        self.root = root
        self.transforms = transforms
        self.imgs = list(sorted(os.listdir(os.path.join(root, "PNGImages"))))
        self.masks = list(sorted(os.listdir(os.path.join(root, "PedMasks"))))

    def __getitem__(self, idx):
        img = Image.open(os.path.join(self.root, "PNGImages", self.imgs[idx])).convert("RGB")
        mask = np.array(Image.open(os.path.join(self.root, "PedMasks", self.masks[idx])))
        obj_ids = np.unique(mask)[1:]
        masks = mask == obj_ids[:, None, None]
        boxes = []
        for i in range(len(obj_ids)):
            pos = np.nonzero(masks[i])
            boxes.append([np.min(pos[1]), np.min(pos[0]), np.max(pos[1]), np.max(pos[0])])
        boxes = torch.as_tensor(boxes, dtype=torch.float32)
        target = {
            "boxes": boxes,
            "labels": torch.ones((len(obj_ids),), dtype=torch.int64),
            "masks": torch.as_tensor(masks, dtype=torch.uint8),
            "image_id": torch.tensor([idx]),
            "area": (boxes[:, 3] - boxes[:, 1]) * (boxes[:, 2] - boxes[:, 0]),
            "iscrowd": torch.zeros((len(obj_ids),), dtype=torch.int64),
        }
        if self.transforms is not None:
            img, target = self.transforms(img, target)
        return img, target

    def __len__(self):
        return len(self.imgs)
"""


def test_the_tutorials_own_data_set_class_works_by_target_unchanged(
    detlab: Detlab, tmp_path: Path, pennfudan: Path
) -> None:
    (tmp_path / "mine_tutorial.py").write_text(TUTORIAL)
    overrides = [o for o in TINY if not o.startswith("dataset")]
    status = detlab(
        *overrides,
        "dataset=custom",
        "dataset.dataset._target_=mine_tutorial.PennFudanDataset",
        f"+dataset.dataset.root={pennfudan}",
        "+dataset.dataset.transforms={_target_: torchvision.transforms.v2.ToImage}",
        "dataset.classes=[pedestrian]",
        "dataset.val_size=2",
        "allow=[mine_tutorial]",
        "hydra.run.dir=a",
    )
    assert status == 0
    lines = lines_of(tmp_path / "a")
    assert {"val/bbox/AP", "val/segm/AP"} <= lines[-1].keys()


@pytest.mark.parametrize(
    "model",
    [
        pytest.param("maskrcnn", marks=pytest.mark.long),  # the default, which the recipes and most tests train
        pytest.param("fasterrcnn", marks=pytest.mark.slow),
        pytest.param("mobilenet", marks=pytest.mark.slow),
    ],
)
def test_smoke_takes_each_model_through_the_whole_run(detlab: Detlab, tmp_path: Path, model: str) -> None:
    assert detlab("debug=smoke", f"model={model}", "hydra.run.dir=a") == 0
    assert (tmp_path / "a" / "checkpoints" / "best.pt").exists()
