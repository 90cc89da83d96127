"""The benchmark: the same work on both sides, in turns, and what it says."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from detlab.benchmark.contestants import TheirTraining, write_weights
from detlab.benchmark.plain import plain_model
from detlab.benchmark.turns import BenchmarkFailedError, Rival, Times, in_turns
from detlab.commands.bench import DEFAULTS, Settings, main, settings_of
from detlab.config import register
from detlab.errors import UserError
from detlab.preflight import compose_run

SMALL = [
    "model=mobilenet", "model.backbone.name=mobilenet_v3_small", "model.enlarge_to=null", "model.box_batch_size_per_image=8",
    "image_size.min=64", "image_size.max=96", "dataset.train_size=8", "dataset.val_size=4", "batch_size=2", "workers=0",
]  # fmt: skip


class Sleeper:
    """Writes into a file that it works, and takes as long as it is told."""

    def __init__(self, name: str, log: Path, seconds: float) -> None:
        self.name, self.log, self.seconds = name, log, seconds

    def round(self) -> float:
        with self.log.open("a") as log:
            log.write(f"{self.name} begins\n")
            log.flush()
            started = time.perf_counter()
            time.sleep(self.seconds)
            log.write(f"{self.name} ends\n")
        return time.perf_counter() - started

    def profile(self) -> str:
        return f"{self.name} sleeps"

    def close(self) -> None:
        self.log.with_suffix(f".{self.name}").write_text("closed")


class Failing(Sleeper):
    def round(self) -> float:
        raise ZeroDivisionError("of my own")


class Dying(Sleeper):
    def round(self) -> float:
        os._exit(7)


@pytest.mark.slow
def test_both_work_in_turns_and_never_together(tmp_path: Path) -> None:
    log, said = tmp_path / "log", []
    with Rival(Sleeper, "ours", log, 0.02) as ours, Rival(Sleeper, "theirs", log, 0.1) as theirs:
        times = in_turns(ours, theirs, 3, lambda *told: said.append(told))
        assert ours.ask("profile") == "ours sleeps"
        assert ours.ask("peak_memory") > 2**20
    lines = log.read_text().split("\n")[:-1]
    order = ["ours", "theirs", "ours", "theirs", "theirs", "ours", "ours", "theirs"]
    assert lines == [f"{name} {what}" for name in order for what in ("begins", "ends")]
    assert [told[0] for told in said] == [1, 2, 3]
    assert len(times.ours) == len(times.theirs) == 3
    assert 2 < times.ratio < 8
    assert {path.read_text() for path in tmp_path.glob("log.*")} == {"closed"}


def test_the_ratio_is_that_of_the_medians() -> None:
    times = Times([1.0, 2.0, 9.0], [8.0, 3.0, 6.0])
    assert times.ratio == 3.0
    assert times.ratios == [8.0, 1.5, 6 / 9]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "said"), [(Failing, "ZeroDivisionError: of my own"), (Dying, "ended with 7")])
def test_a_side_that_fails_is_told_with_its_own_trace(tmp_path: Path, kind: type[Any], said: str) -> None:
    with Rival(kind, "ours", tmp_path / "log", 0.0) as ours, pytest.raises(BenchmarkFailedError, match=said):
        ours.ask("round")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("ps") is None, reason="there is no ps to list the processes")
def test_ctrl_c_is_one_line_and_leaves_no_process(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "detlab.cli", "bench", *SMALL, "bench.rounds=1000"]
    with (tmp_path / "said").open("w") as said:
        run = subprocess.Popen(command, stdout=said, stderr=said, start_new_session=True)
        deadline = time.monotonic() + 120
        while "round 1" not in (tmp_path / "said").read_text() and time.monotonic() < deadline:
            time.sleep(0.2)
        os.killpg(run.pid, signal.SIGINT)
        assert run.wait(30) == 130
    lines = (tmp_path / "said").read_text().splitlines()
    assert [line for line in lines if not line.startswith("round ")] == ["detlab: interrupted"]
    deadline = time.monotonic() + 20
    while _alive(run.pid) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert _alive(run.pid) == []


def _alive(group: int) -> list[str]:
    """The processes of a group that still run."""
    listed = subprocess.run(["ps", "-eo", "pgid=,stat=,args="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in listed.splitlines()]
    return [row[2] for row in rows if int(row[0]) == group and not row[1].startswith("Z")]


def test_settings_and_overrides_are_told_apart() -> None:
    given = ["bench=predict", "model=mobilenet", "bench.rounds=2", "bench.units=7", "bench.profile=true"]
    assert settings_of(given) == (Settings("predict", 2, 7, True), ["model=mobilenet"])
    assert settings_of([]) == (Settings(), [])


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("bench=training", r"^bench: 'training' is not allowed; allowed: train, predict\.$"),
        ("bench.rounds=0", r"^bench\.rounds: '0' is not allowed; allowed: whole numbers from 1\.$"),
        ("bench.profile=yes", r"^bench\.profile: 'yes' is not allowed; allowed: true, false\.$"),
        ("bench.round=3", r"^bench\.round: no such key\. Did you mean bench\.rounds"),
    ],
)
def test_a_wrong_setting_is_the_users_mistake(override: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        settings_of([override])


def test_the_plain_model_is_made_of_torchvisions_parts_alone(tmp_path: Path) -> None:
    register()
    cfg = compose_run([*DEFAULTS, "model=maskrcnn", "model.backbone.name=resnet18", *SMALL[4:]])
    from omegaconf import OmegaConf

    plain = plain_model(OmegaConf.to_container(cfg.model, resolve=True))
    own = [value for value in _values(plain) if str(value).startswith("detlab.")]
    assert sorted(own) == ["detlab.models.backbones.backbone", "detlab.models.detectors.rcnn"]
    weights = tmp_path / "weights.pt"
    write_weights(cfg, weights)
    theirs = TheirTraining(OmegaConf.to_yaml(cfg), weights, 1)
    kinds = {type(module).__module__.partition(".")[0] for module in theirs.model.modules()}
    assert kinds == {"torch", "torchvision"}
    assert theirs.round() > 0
    theirs.close()


def _values(node: Any) -> list[Any]:
    if isinstance(node, dict | list):
        return [found for value in (node.values() if isinstance(node, dict) else node) for found in _values(value)]
    return [node]


@pytest.mark.slow
def test_frozen_norms_without_weights_are_given_statistics(tmp_path: Path) -> None:
    register()
    cfg = compose_run([*DEFAULTS, *SMALL, "model.norm=frozen", "model.trainable_backbone_layers=3"])
    write_weights(cfg, tmp_path / "weights.pt")
    weights = torch.load(tmp_path / "weights.pt", weights_only=True)
    variances = [value for key, value in weights.items() if key.endswith("running_var")]
    assert variances
    assert not any(torch.equal(value, torch.ones_like(value)) for value in variances)
    assert not any(key.endswith("num_batches_tracked") for key in weights)


@pytest.mark.slow
@pytest.mark.parametrize("work", ["train", "predict"])
def test_one_object_with_what_was_measured(work: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"bench={work}", "bench.rounds=2", "bench.units=2", *SMALL, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ratio"] == pytest.approx(report["theirs"] / report["ours"])
    assert len(report["all"]["ours"]) == report["rounds"] == 2
    assert report["work"]["bench"] == work
    assert report["precision"] == "fp32"
    assert min(report["memory"].values()) > 2**26
