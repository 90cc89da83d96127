"""How long it is until the first batch: new processes, detlab's own way of starting a run and a plain script."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from omegaconf import DictConfig, OmegaConf

from detlab import parts
from detlab.benchmark.turns import BenchmarkFailedError, heedless_of_ctrl_c
from detlab.download import cache_folder
from detlab.errors import UserError

# What a user waits for before any run; nothing plain does the like.
COMMANDS = (("--help",), ("--cfg", "job"))


class Start:
    """A program that says, in one line of JSON, when it has its first batch; each round starts it anew.

    Its line holds `steps`, seconds by name from its own first line of code on, and `memory`, in bytes at its peak.

    Args:
        module: that is run.
        arguments: of its command line.
    """

    def __init__(self, module: str, arguments: Sequence[str]) -> None:
        self.command = [sys.executable, "-m", module, *arguments]
        self.steps: list[dict[str, float]] = []
        self.memory = 0

    def ask(self, what: str) -> Any:
        """See `detlab.benchmark.turns.Side`; there is nothing to profile."""
        if what == "round":
            return self._round()
        if what == "warm_up":
            self._round()
            self.steps = []
        return {"peak_memory": self.memory, "result": {}}.get(what)

    def _round(self) -> float:
        started = time.perf_counter()
        with heedless_of_ctrl_c():
            process = subprocess.Popen(self.command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert process.stdout is not None
        try:
            said: list[str] = []
            for line in process.stdout:
                said.append(line)
                if line.startswith('{"steps"'):
                    break
            seconds = time.perf_counter() - started
            process.communicate()
        finally:
            process.kill()
        if process.returncode or not said or not said[-1].startswith('{"steps"'):
            raise BenchmarkFailedError(f"{self.command[2]} ended with {process.returncode}.\n{''.join(said)}")
        told = json.loads(said[-1])
        self.steps.append({"interpreter": seconds - sum(told["steps"].values()), **told["steps"]})
        self.memory = max(self.memory, told["memory"])
        return seconds

    def median_steps(self) -> dict[str, float]:
        """Seconds of each step."""
        return {name: statistics.median(steps[name] for steps in self.steps) for name in self.steps[0]}


@contextmanager
def sides(cfg: DictConfig, overrides: Sequence[str]) -> Iterator[tuple[Start, Start]]:
    """Detlab's start of a run with these overrides, and a plain script's of the same; both with random weights.

    Raises:
        UserError: a model that the plain script cannot make.
    """
    parts.data_sets(cfg)  # what is downloaded is so before
    random = ["model.weights=none"] if "weights" in cfg.model else []
    ours = Start("detlab.benchmark.first_batch", [*overrides, *random, "devices=1"])
    theirs = Start("detlab.benchmark.plain_first_batch", [json.dumps(_plain_script(cfg))])
    yield ours, theirs


def _plain_script(cfg: DictConfig) -> dict[str, Any]:
    """What `plain_first_batch` is told.

    Raises:
        UserError: a model that it cannot make.
    """
    model: Any = OmegaConf.to_container(cfg.model, resolve=True)
    backbone = model.get("backbone", {"name": "", "fpn": False})
    body, fpn = backbone["name"], backbone["fpn"]
    if not body.startswith("resnet" if fpn else "mobilenet"):
        raise UserError(
            "model: bench=start has a plain script for a ResNet with a feature pyramid, as in maskrcnn and fasterrcnn, and for a "
            "MobileNet without one, as in mobilenet; take one of these."
        )
    heads = {"segm": model["mask_roi_pool"], "keypoints": model["keypoint_roi_pool"]}
    dataset: Any = OmegaConf.to_container(cfg.dataset, resolve=True)
    if dataset["_target_"].endswith(".pennfudan") and dataset["root"] is None:
        dataset["root"] = str(cache_folder() / "PennFudanPed")
    return {
        "dataset": dataset,
        "backbone": body,
        "fpn": fpn,
        "iou_types": ["bbox", *(name for name, pool in heads.items() if pool is not None)],
        "sizes": {"min_size": model["min_size"], "max_size": model["max_size"]},
        "batch_size": cfg.batch_size,
        "workers": cfg.workers,
        "device": cfg.device,
    }


def told(ours: Any, theirs: Any, rounds: int) -> dict[str, Any]:
    """What a report says beside the seconds: those of the steps, and of the commands that start nothing; medians."""
    return {
        "steps": {"ours": ours.median_steps(), "theirs": theirs.median_steps()},
        "commands": {
            " ".join(flags): statistics.median(_command_seconds(flags) for _ in range(rounds)) for flags in COMMANDS
        },
    }


def _command_seconds(flags: Sequence[str]) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "detlab.run", *flags], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started
