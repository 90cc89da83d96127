"""Writing what a run has to tell, also after an attempt that broke off."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from detlab.checkpoint import Position
from detlab.console import Console, duration
from detlab.engine import StepReport
from detlab.writer import RunWriter


def writer(
    folder: Path, step: int = 0, log_every: int = 1, records: Mapping[str, int] = MappingProxyType({})
) -> RunWriter:
    console, cpu = Console(10, bar=True), torch.device("cpu")
    return RunWriter(folder, console, log_every=log_every, step=step, records=records, device=cpu)


def report(step: int) -> StepReport:
    return StepReport(step, 0, {"loss": torch.tensor(1.5), "loss_mask": torch.tensor(0.5)}, 0.1, 4, 0.1, 0.5)


def steps_of(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_line_is_written_every_so_many_steps_with_the_documented_tags(tmp_path: Path) -> None:
    with writer(tmp_path, log_every=2) as out:
        for step in range(1, 6):
            out.training_step(report(step))
    assert steps_of(tmp_path) == [2, 4]
    line = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    assert line["perf/images_per_second"] == 8.0
    assert set(line) == {
        "step", "epoch", "train/loss", "train/loss_mask", "train/lr", "perf/images_per_second", "perf/data_time",
        "perf/step_time", "perf/max_memory",
    }  # fmt: skip


def test_what_a_broken_off_attempt_wrote_after_its_last_state_is_dropped(tmp_path: Path) -> None:
    with writer(tmp_path) as out:
        for step in range(1, 4):
            out.training_step(report(step))
        saved = out.sizes()
        # The evaluation of step 3 is made again too: the state was saved before it.
        out.evaluation(3, 1, {"bbox/AP": 0.5}, 1.0)
        out.training_step(report(4))
    with (tmp_path / "metrics.jsonl").open("a") as lines:
        lines.write('{"step": 6, "ep')
    with writer(tmp_path, step=3, records=saved) as out:
        out.evaluation(3, 1, {"bbox/AP": 0.5}, 1.0)
        out.training_step(report(4))
    assert steps_of(tmp_path) == [1, 2, 3, 3, 4]
    board = EventAccumulator(str(tmp_path))
    board.Reload()
    assert [event.step for event in board.Scalars("train/loss")] == [1, 2, 3, 4]
    assert [event.step for event in board.Scalars("val/bbox/AP")] == [3]


def test_what_an_attempt_wrote_that_saved_nothing_is_dropped_whole(tmp_path: Path) -> None:
    with writer(tmp_path) as out:
        out.training_step(report(1))
    with writer(tmp_path) as out:
        out.training_step(report(1))
    assert steps_of(tmp_path) == [1]
    assert len(list(tmp_path.glob("events.out.tfevents.*"))) == 1


def test_numbers_that_are_none_are_null_in_json_and_absent_in_tensorboard(tmp_path: Path) -> None:
    with writer(tmp_path) as out:
        out.evaluation(3, 1, {"bbox/AP": 0.5, "bbox/APl": math.nan}, 1.0)
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {
        "step": 3, "epoch": 1, "val/bbox/AP": 0.5, "val/bbox/APl": None
    }  # fmt: skip
    board = EventAccumulator(str(tmp_path))
    board.Reload()
    assert board.Tags()["scalars"] == ["val/bbox/AP"]


def test_hyper_parameters_and_final_metrics_stand_in_the_runs_own_file(tmp_path: Path) -> None:
    with writer(tmp_path) as out:
        out.hyper_parameters({"optimizer.lr": 0.1, "model": "maskrcnn", "max_steps": None}, {"bbox/AP": 0.5})
    board = EventAccumulator(str(tmp_path))
    board.Reload()
    content = board.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    assert b"optimizer.lr" in content
    assert b"maskrcnn" in content
    assert len(list(tmp_path.rglob("events.out.tfevents.*"))) == 1


def test_the_best_evaluation_is_the_one_with_the_highest_value_and_nan_is_the_worst() -> None:
    position = Position()
    seen = []
    for step, value in enumerate((math.nan, 0.2, math.nan, 0.1, 0.3), start=1):
        position.step = step
        seen.append(position.improve({"bbox/AP": value}, "bbox/AP"))
    assert seen == [True, True, False, False, True]
    assert (position.best, position.best_step, position.evaluated) == (0.3, 5, 5)


def test_durations_are_readable() -> None:
    assert [duration(s) for s in (7.4, 65, 3725)] == ["0:07", "1:05", "1:02:05"]
