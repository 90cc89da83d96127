"""What a run goes on from: found, verified, held against the present configuration and data, or refused."""

from __future__ import annotations

import dataclasses
import errno
import inspect
import json
import logging
import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import TINY
from omegaconf import OmegaConf
from torch import nn

from detlab import resumption, storage
from detlab.analysis.thresholds import record_of
from detlab.checkpoint import Checkpoints, Origin, Position, TrainingState, read, resumed_from
from detlab.data.fingerprint import fingerprint
from detlab.data.pennfudan import pennfudan as pennfudan_data
from detlab.engine import select_device
from detlab.errors import UserError
from detlab.models.backbones import backbone
from detlab.models.detectors import rcnn
from detlab.structures import ClassMap

Detlab = Callable[..., int]


class NoRecords:
    def sizes(self) -> dict[str, int]:
        return {"metrics.jsonl": 7}


def checkpoints(folder: Path, every_minutes: float = 1e-9) -> tuple[Checkpoints, TrainingState]:
    """The checkpoints of a small model with its state, at step 1."""
    origin = Origin(OmegaConf.create({"a": 1}), [], {}, ClassMap(("cat",)), None, {}, {})
    made = Checkpoints(folder, origin, every_minutes=every_minutes)
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    state = TrainingState(model, optimizer, schedule, None, Position(step=1))
    made.follow(state, NoRecords())
    return made, state


def test_a_state_is_saved_when_it_is_time_and_is_that_of_the_step(tmp_path: Path) -> None:
    made, state = checkpoints(tmp_path)
    made.at(5)
    with torch.no_grad():
        state.model.weight.zero_()  # after the copy was taken
    made.save()
    last, previous = (read(tmp_path / "checkpoints" / name) for name in ("last.pt", "previous.pt"))
    assert (last["position"]["step"], previous["position"]["records"]) == (5, {"metrics.jsonl": 7})
    assert float(last["model"]["weight"].abs().sum()) == 0 < float(previous["model"]["weight"].abs().sum())
    patient, _ = checkpoints(tmp_path / "patient", every_minutes=60)
    patient.at(5)
    assert not list((tmp_path / "patient" / "checkpoints").iterdir())


def test_a_full_disk_in_the_background_is_said_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made, state = checkpoints(tmp_path)
    made.save()

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "last.pt")

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr("torch.save", full)
        made.at(2)
        time.sleep(0.2)
        made.at(3)
    assert "could not be saved, training goes on without: [Errno 28] No space left" in caplog.text
    assert read(tmp_path / "checkpoints" / "last.pt")["position"]["step"] == 1
    made.save()
    assert read(tmp_path / "checkpoints" / "last.pt")["position"]["step"] == state.position.step == 3


def test_a_damaged_state_is_named_and_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made, state = checkpoints(tmp_path)
    made.save()
    state.position.step = 2
    made.save()
    last, previous = (tmp_path / "checkpoints" / name for name in ("last.pt", "previous.pt"))
    last.write_bytes(last.read_bytes()[:-1])
    with caplog.at_level(logging.WARNING):
        assert resumed_from(tmp_path).content["position"]["step"] == 1
    assert f"{last}: " in caplog.text
    assert "Going on from" in caplog.text
    with pytest.raises(storage.DamagedFileError, match=r"last\.pt"):
        resumed_from(last)  # who names a file means it
    previous.write_bytes(b"")
    with pytest.raises(storage.DamagedFileError, match=r"previous\.pt"):
        resumed_from(tmp_path)


def config(**changed: Any) -> dict[str, Any]:
    plain = {
        "epochs": 3,
        "max_steps": None,
        "workers": 2,
        "log_every": 10,
        "model": {"weights": "none", "norm": "auto"},
    }
    return {**plain, "dataset": {"root": "a", "fraction": 1.0}, "optimizer": {"lr": 0.1}, **changed}


@pytest.mark.parametrize(
    ("changed", "found"),
    [
        ({"workers": 0, "log_every": 1, "dataset": {"root": "b", "fraction": 1.0}}, {}),
        ({"epochs": 5}, {"epochs": (3, 5)}),
        ({"optimizer": {"lr": 0.2}}, {"optimizer.lr": (0.1, 0.2)}),
        ({"optimizer": {"lr": 0.1, "betas": [0.9, 0.99]}}, {"optimizer.betas": ("not there", [0.9, 0.99])}),
        ({"model": {"weights": "x.pt", "norm": "frozen"}}, {"model.norm": ("auto", "frozen")}),
    ],
)
def test_a_changed_key_counts_where_it_may_change_the_result(changed: dict[str, Any], found: dict[str, Any]) -> None:
    known = (*resumption.HARMLESS, *resumption.PLACES)
    assert resumption.changes(config(), config(**changed), passed_over=known) == found


def test_a_run_of_before_there_was_a_key_goes_on_where_the_key_says_what_it_did() -> None:
    now = config(model={"weights": "none", "norm": "auto", "size_divisible": 32, "keypoint_layers": None})
    assert resumption.changes(config(), now, passed_over=()) == {}
    now["model"]["size_divisible"] = 64
    assert resumption.changes(config(), now, passed_over=()) == {"model.size_divisible": (32, 64)}


def test_what_was_done_before_there_was_a_key_is_the_default_of_what_is_built() -> None:
    signatures = {"": select_device, "model": rcnn, "model.backbone": backbone}
    defaults = {node: dict(inspect.signature(made).parameters) for node, made in signatures.items()}
    defaults[""]["operating_precision"] = inspect.signature(record_of).parameters["precision"]
    for key, value in resumption.BEFORE.items():
        node, _, name = key.rpartition(".")
        assert defaults[node][name].default == value


def test_for_resume_auto_other_places_are_another_run() -> None:
    moved = config(dataset={"root": "b", "fraction": 1.0}, workers=0)
    assert resumption.changes(config(), moved, passed_over=resumption.HARMLESS) == {"dataset.root": ("a", "b")}


def test_a_changed_length_is_taken_where_it_changes_no_rate_else_refused_or_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    then, path = yaml.safe_dump(config()), tmp_path / "last.pt"
    longer = OmegaConf.create(config(epochs=5, resume_anyway=False))
    resumption.check_config(path, then, longer, same_rates=True)
    with pytest.raises(UserError, match=r"change the result: epochs 3 -> 5\.\n.*resume_anyway=true"):
        resumption.check_config(path, then, longer, same_rates=False)
    with caplog.at_level(logging.WARNING):
        resumption.check_config(path, then, OmegaConf.create(config(epochs=5, resume_anyway=True)), same_rates=False)
    assert "from here on with epochs 3 -> 5" in caplog.text


def test_other_data_are_refused_with_what_differs(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "split.json").write_text(json.dumps({"train": ["a", "b"], "val": ["c"]}))
    path = tmp_path / "checkpoints" / "last.pt"
    then = {"train": {"images": 2, "fingerprint": "1"}, "val": {"images": 1, "fingerprint": "2"}}
    resumption.check_data(path, then, then, {"train": ["a", "b"], "val": ["c"]})
    for train, names, said in (
        ({"images": 2, "fingerprint": "3"}, ["a", "x"], r"train has 2 images, had 2 \(without b, with x\)"),
        ({"images": 2, "fingerprint": "3"}, ["b", "a"], r"\(in another order\)"),
        ({"images": 2, "fingerprint": "3"}, ["a", "b"], r"\(of the same names: their objects or sizes differ\)"),
    ):
        with pytest.raises(UserError, match=said):
            resumption.check_data(path, then, {**then, "train": train}, {"train": names, "val": ["c"]})
    with pytest.raises(UserError, match="val is gone; test is new"):
        resumption.check_data(path, then, {"train": then["train"], "test": then["val"]}, {"train": [], "test": []})


def test_a_fingerprint_tells_data_by_their_objects_and_not_by_where_they_lie(pennfudan: Path, tmp_path: Path) -> None:
    choice: dict[str, Any] = {
        "part": "train", "url": "", "md5": "", "invalid": "error", "val_size": 2, "test_size": 0, "split_seed": 0,
        "split_file": None, "folds": None, "fold": None, "fraction": 1.0, "cache": "none",
    }  # fmt: skip
    data = pennfudan_data(root=str(pennfudan), **choice)
    moved = tmp_path / "moved"
    pennfudan.rename(moved)
    assert fingerprint(pennfudan_data(root=str(moved), **choice)) == fingerprint(data)
    assert fingerprint(pennfudan_data(root=str(moved), **{**choice, "split_seed": 1})) != fingerprint(data)
    boxes = data.index.boxes.copy()
    boxes[0, 2] += 1
    data.index = dataclasses.replace(data.index, boxes=boxes)
    assert fingerprint(pennfudan_data(root=str(moved), **choice)) != fingerprint(data)


@pytest.mark.slow
def test_resume_auto_goes_on_with_its_folder_else_with_the_newest_unfinished_run_of_the_same_configuration(
    detlab: Detlab, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = (*TINY, "schedule=constant", "epochs=2", "resume=auto")
    assert detlab(*run, "max_steps=1") == 0
    assert "resume=auto finds no run to go on with, and starts one" in capfd.readouterr().err
    folder = next(tmp_path.glob("outputs/*/*"))
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**record, "state": "interrupted"}))
    # Another configuration is another run.
    assert detlab(*run, "max_steps=1", "optimizer.lr=0.003") == 0
    assert "starts one" in capfd.readouterr().err
    assert detlab(*run, "max_steps=1", "log_every=2") == 0
    assert f"goes on with {folder.relative_to(tmp_path)}" in capfd.readouterr().err
    # Finished now: the next one is new, in the folder that is named, and goes on there afterwards.
    for said in ("starts one", "goes on with mine"):
        assert detlab(*run, "max_steps=1", "hydra.run.dir=mine") == 0
        assert said in capfd.readouterr().err
    assert len(list(tmp_path.glob("outputs/*/*"))) == 2
    # A finished run is not written over, though its checkpoints are gone.
    shutil.rmtree(tmp_path / "mine" / "checkpoints")
    for resume in ("resume=auto", "resume=null"):
        assert detlab(*run, resume, "max_steps=1", "hydra.run.dir=mine") == 2
        assert "mine" in capfd.readouterr().err
    assert (tmp_path / "mine" / "metrics.jsonl").exists()


def test_two_processes_do_not_train_in_one_folder(
    detlab: Detlab, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from detlab.locks import alone_in, is_taken

    (tmp_path / "a").mkdir()
    with alone_in(tmp_path / "a"):
        assert is_taken(tmp_path / "a")
        assert detlab(*TINY, "hydra.run.dir=a") == 2
        assert "another process is training there now" in capsys.readouterr().err
    assert not is_taken(tmp_path / "a")


@pytest.mark.long
def test_no_damage_to_a_real_state_goes_unseen(detlab: Detlab, tmp_path: Path) -> None:
    # Seven minutes: each of 1,100 damages is looked for in all of a file of hundreds of megabytes.
    assert detlab(*TINY, "max_steps=2", "hydra.run.dir=a") == 0
    path = tmp_path / "a" / "checkpoints" / "last.pt"
    size, chance = path.stat().st_size, random.Random(0)
    for place in sorted(chance.randrange(size) for _ in range(1000)):
        with path.open("r+b") as file:
            file.seek(place)
            (byte,) = file.read(1)
            file.seek(place)
            file.write(bytes([byte ^ (1 << chance.randrange(8))]))
            file.flush()
            with pytest.raises(storage.DamagedFileError):
                read(path)
            file.seek(place)
            file.write(bytes([byte]))
    read(path)
    for length in sorted((chance.randrange(size) for _ in range(100)), reverse=True):
        os.truncate(path, length)
        with pytest.raises(storage.DamagedFileError):
            read(path)
