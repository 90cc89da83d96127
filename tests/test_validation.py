"""What a run does beside training: validation loss, early stopping, the held-out part, overfitting on purpose, a profile."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, lines_of
from omegaconf import DictConfig
from torch import Tensor, nn

from detlab import checkpoint
from detlab.checkpoint import Position
from detlab.data.loader import evaluation_loader
from detlab.data.subset import FirstImages
from detlab.data.synthetic import Synthetic
from detlab.engine import Device, evaluate, select_device, validation_loss
from detlab.errors import UserError
from detlab.evaluation.coco import CocoEvaluator
from detlab.stopping import RunStopping

Detlab = Callable[..., int]
CPU = Device(torch.device("cpu"), "fp32")
STILL = ("optimizer.lr=1e-30", "optimizer.weight_decay=0", "model.norm=group")  # weights that no step moves


def part(name: str, **sizes: int) -> Synthetic:
    given = {"train_size": 8, "val_size": 4, "test_size": 0, **sizes}
    return Synthetic(part=name, difficulty="easy", seed=0, folds=None, fold=None, fraction=1.0, **given)


class SumsPixels(nn.Module):
    """A detector whose losses can be computed by hand; a draw stands for torchvision's sampling."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        assert self.training
        assert not torch.is_grad_enabled()
        self.norm(images[0][None])
        return {
            "loss_pixels": images[0].sum(),
            "loss_drawn": torch.rand(()),
            "objects": torch.tensor(len(targets[0]["boxes"])),
        }


def test_the_validation_loss_is_the_mean_over_images_and_moves_no_norm_and_no_weight() -> None:
    data = part("val")
    model = SumsPixels()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    loader = evaluation_loader(data, workers=0, pin_memory=False, trainable=True)
    never = RunStopping(max_steps=None, max_minutes=None)
    first, second = (validation_loss(model, loader, never, device=CPU, seed=3, iou_types=("bbox",)) for _ in range(2))
    assert first is not None
    assert first == second
    sums = [float((data[i][0].float() / 255).sum()) for i in range(len(data))]
    assert first["loss_pixels"] == pytest.approx(sum(sums) / 4, rel=1e-6)
    assert first["objects"] == sum(len(data[i][1]["boxes"]) for i in range(4)) / 4
    assert first["loss"] == pytest.approx(first["loss_pixels"] + first["loss_drawn"] + first["objects"], rel=1e-6)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.slow
def test_a_run_logs_the_validation_loss_and_trains_as_without_it(detlab: Detlab, tmp_path: Path) -> None:
    for asked in ("true", "false"):
        assert detlab(*TINY, "epochs=2", "max_steps=6", f"val_loss={asked}", f"hydra.run.dir=loss_{asked}") == 0
    with_it, without = lines_of(tmp_path / "loss_true"), lines_of(tmp_path / "loss_false")
    losses = [line for line in with_it if "val/loss" in line]
    assert [line["step"] for line in losses] == [4, 6]
    assert losses[0]["val/loss"] == pytest.approx(
        sum(v for k, v in losses[0].items() if k.startswith("val/loss_")), rel=1e-6
    )
    assert losses[0]["val/loss"] > 0
    assert [line for line in with_it if "val/loss" not in line] == without


@pytest.mark.slow
def test_patience_ends_a_run_that_no_longer_improves(
    detlab: Detlab, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert detlab(*TINY, *STILL, "dataset.train_size=2", "epochs=9", "patience=2", "hydra.run.dir=run") == 0
    assert "stopped by patience" in capsys.readouterr().out
    assert [line["epoch"] for line in lines_of(tmp_path / "run") if "val/bbox/AP" in line] == [0, 1, 2]
    assert detlab("resume=run") == 0  # nothing left to do
    assert lines_of(tmp_path / "run")[-1]["epoch"] == 2
    assert detlab("resume=run", "patience=null", "epochs=4", "resume_anyway=true") == 0
    assert lines_of(tmp_path / "run")[-1]["epoch"] == 3


def test_a_better_evaluation_renews_patience() -> None:
    position = Position()
    for step, value in enumerate([0.1, 0.1, 0.2, float("nan"), 0.15], start=1):
        position.step = step
        position.improve({"bbox/AP": value}, "bbox/AP")
    assert (position.best, position.best_step, position.stale) == (0.2, 3, 2)


@pytest.mark.slow
def test_a_run_stops_where_its_objective_is_reached(
    detlab: Detlab, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert detlab(*TINY, "epochs=5", "stop_at=0", "hydra.run.dir=run") == 0
    assert "stopped by stop_at" in capsys.readouterr().out
    assert [line["epoch"] for line in lines_of(tmp_path / "run") if "val/bbox/AP" in line] == [0]


@pytest.mark.slow
def test_the_held_out_part_is_scored_once_with_the_best_weights(detlab: Detlab, tmp_path: Path) -> None:
    # The second epoch, at an absurd rate, ruins the weights of the first.
    run = (*TINY, "dataset.test_size=3", "epochs=2", "schedule=step", "schedule.step_epochs=1", "schedule.gamma=1e3")
    assert detlab(*run, "schedule.warmup_steps=0", "clip_grad_norm=1", "optimizer=sgd", "hydra.run.dir=run") == 0
    lines = lines_of(tmp_path / "run")
    tested = [line for line in lines if "test/bbox/AP" in line]
    assert tested == [lines[-1]]
    names = json.loads((tmp_path / "run" / "split.json").read_text())
    assert names["test"] == ["test-0000", "test-0001", "test-0002"]

    data = part("test", test_size=3)
    metrics = {}
    for name in ("best", "last"):
        state = checkpoint.read(tmp_path / "run" / "checkpoints" / f"{name}.pt")
        model, classes, _ = checkpoint.load_model(tmp_path / "run" / "checkpoints" / "best.pt")
        model.load_state_dict(state["model"])
        evaluator = CocoEvaluator(ground_truth=data.ground_truth(), class_map=classes, iou_types=("bbox", "segm"))
        never = RunStopping(max_steps=None, max_minutes=None)
        loader = evaluation_loader(data, workers=0, pin_memory=False)
        metrics[name] = evaluate(model, loader, evaluator, never, device=select_device("cpu", "fp32"))
    expected = {f"test/{name}": pytest.approx(value, nan_ok=True) for name, value in (metrics["best"] or {}).items()}
    known = {name: float("nan") if value is None else value for name, value in tested[0].items()}
    assert {name: known[name] for name in expected} == expected
    assert metrics["best"] != metrics["last"]
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["position"]["test_metrics"]["bbox/AP"] == tested[0]["test/bbox/AP"]
    assert record["images"] == {"train": 8, "val": 4, "test": 3}


@pytest.mark.slow
def test_ctrl_c_in_the_midst_of_an_evaluation_loses_no_step(
    detlab: Detlab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: Any, **_: Any) -> None:
        stopping = arguments[3]
        signal.raise_signal(signal.SIGINT)
        stopping.agree()

    with monkeypatch.context() as patched:
        patched.setattr("detlab.validation.evaluate", interrupted)
        assert detlab(*TINY, "epochs=2", "hydra.run.dir=run") == 130
    assert checkpoint.read(tmp_path / "run" / "checkpoints" / "last.pt")["position"]["step"] == 4
    assert detlab("resume=run") == 0
    lines = lines_of(tmp_path / "run")
    assert [line["step"] for line in lines if "train/loss" in line] == list(range(1, 9))
    assert [line["step"] for line in lines if "val/bbox/AP" in line] == [4, 8]


@pytest.mark.slow
def test_overfitting_trains_on_and_scores_the_first_images_with_objects(detlab: Detlab, tmp_path: Path) -> None:
    assert detlab(*TINY, "debug=overfit", "overfit=2", "batch_size=2", "epochs=1", "hydra.run.dir=run") == 0
    names = json.loads((tmp_path / "run" / "split.json").read_text())
    assert names["train"] == names["val"]
    assert len(names["train"]) == 2
    truth = part("train").ground_truth()
    first = [
        image["id"] for image in truth["images"] if any(a["image_id"] == image["id"] for a in truth["annotations"])
    ]
    scored = {row["image_id"] for row in json.loads((tmp_path / "run" / "predictions.json").read_text())}
    assert scored <= set(first[:2])


def test_the_first_images_are_a_data_set_of_their_own() -> None:
    whole = part("train")
    few = FirstImages(whole, 3)
    truth = few.ground_truth()
    assert [image["file_name"] for image in truth["images"]] == list(few.image_names)
    assert [few[i][1]["image_id"] for i in range(3)] == [image["id"] for image in truth["images"]]
    assert [row["id"] for row in truth["annotations"]] == list(range(1, len(truth["annotations"]) + 1))
    assert len(truth["annotations"]) == sum(len(few[i][1]["boxes"]) for i in range(3)) > 0
    assert few.get_height_and_width(2) == (144, 192)


def test_nothing_to_overfit_on_is_said() -> None:
    class Empty:
        def ground_truth(self) -> dict[str, Any]:
            return {"images": [{"id": 1}], "annotations": []}

        def __len__(self) -> int:
            return 1

    with pytest.raises(UserError, match="none of the 1 images for training has an object"):
        FirstImages(Empty(), 2)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_profile_leaves_a_trace_and_a_table(
    detlab: Detlab, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = [override for override in TINY if not override.startswith("epochs")]
    assert detlab(*tiny, "debug=profile", "dataset.train_size=16", "hydra.run.dir=run") == 0
    table = (tmp_path / "run" / "profile.txt").read_text()
    assert "aten::" in table
    assert table.splitlines()[3] in capsys.readouterr().out
    trace = json.loads((tmp_path / "run" / "trace.pt.trace.json").read_text())
    steps = {event["name"] for event in trace["traceEvents"] if event["name"].startswith("ProfilerStep#")}
    assert len(steps) == 5


def test_a_profile_of_more_steps_than_there_are_is_refused(detlab: Detlab, capsys: pytest.CaptureFixture[str]) -> None:
    assert detlab(*TINY, "profile=3", "hydra.run.dir=run") == 2
    assert "profile: 3 steps after 2 of warm-up, but this run's first epoch has 4" in capsys.readouterr().err


def test_the_best_is_told_by_the_objective_of_now() -> None:
    position = Position(step=5)
    position.improve({"bbox/AP": 0.4, "segm/AP": 0.3, "bbox/AP50": float("nan")}, "bbox/AP")
    position.judge_by("segm/AP")
    assert position.best == 0.3
    position.judge_by("bbox/AP50")
    assert position.best is None


@pytest.mark.slow
def test_name_and_tags_are_kept(detlab: Detlab, tmp_path: Path, composed: Callable[..., DictConfig]) -> None:
    assert composed().tags == []
    assert detlab(*TINY, "max_steps=1", "name=mine", "tags=[first, small]", "hydra.run.dir=run") == 0
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["name"], record["tags"]) == ("mine", ["first", "small"])


@pytest.mark.slow
def test_averaged_weights_are_scored_and_saved_beside_and_a_resumed_run_continues_their_average(
    detlab: Detlab, tmp_path: Path
) -> None:
    run = (*TINY, "ema=0.5", "epochs=2", "schedule.warmup_steps=0")
    assert detlab(*run, "hydra.run.dir=whole") == 0
    assert detlab(*run, "max_steps=5", "schedule=constant", "hydra.run.dir=halves") == 0
    assert detlab("resume=halves", "max_steps=null") == 0
    assert detlab(*run, "schedule=constant", "hydra.run.dir=at_once") == 0
    halves, at_once = (
        checkpoint.read(tmp_path / name / "checkpoints" / "last.pt")["average"] for name in ("halves", "at_once")
    )
    assert halves["updates"] == at_once["updates"] == 8
    assert all(torch.equal(value, at_once["model"][name]) for name, value in halves["model"].items())
    lines = lines_of(tmp_path / "whole")
    assert [line["epoch"] for line in lines if "val_ema/bbox/AP" in line] == [0, 1]
    saved = {
        name: checkpoint.read(tmp_path / "whole" / "checkpoints" / f"{name}.pt")
        for name in ("best", "best_ema", "last")
    }
    weight = "rpn.head.cls_logits.weight"
    assert not torch.equal(saved["best_ema"]["model"][weight], saved["last"]["model"][weight])
    model, _, _ = checkpoint.load_model(tmp_path / "whole" / "checkpoints" / "best_ema.pt")
    assert torch.equal(model.state_dict()[weight], saved["best_ema"]["model"][weight])
    best = max(line["val_ema/segm/AP"] for line in lines if "val_ema/segm/AP" in line)
    assert saved["best_ema"]["metrics"]["segm/AP"] == best


@pytest.mark.slow
def test_parameter_groups_train_at_their_own_rate_and_decay(detlab: Detlab, tmp_path: Path) -> None:
    groups = "optimizer.groups={backbone.*: {lr_factor: 1e-30, weight_decay: 0}}"
    assert detlab(*TINY, "schedule.warmup_steps=0", "max_steps=2", groups, "hydra.run.dir=run") == 0
    assert detlab(*TINY, *STILL, "model.norm=batch", "max_steps=1", "hydra.run.dir=start") == 0
    ended, began = (checkpoint.read(tmp_path / name / "checkpoints" / "last.pt")["model"] for name in ("run", "start"))
    parameters = {name for name in began if name.endswith((".weight", ".bias"))}
    moved = {name for name in parameters if float((began[name] - ended[name]).abs().max()) > 1e-12}
    assert moved == {name for name in parameters if not name.startswith("backbone.")}
