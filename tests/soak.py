"""Runs that are killed again and again must end as one that was left alone.

By hand: python tests/soak.py --kills 100 --model maskrcnn --folder /tmp/soak
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from conftest import TINY, lines_of
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import detlab.blackbox
import detlab.run
import detlab.validation
from detlab.storage import load

MOBILENET = (
    *(o for o in TINY if not o.startswith("model.backbone")), "model=mobilenet", "model.enlarge_to=96",
)  # fmt: skip
MODELS = {"maskrcnn": TINY, "mobilenet": MOBILENET}
# Where a save can be cut short: before each of these calls, the n-th time that it is made.
CALLS = ("write", "fsync", "rename", "link")


@dataclass(frozen=True)
class Harm:
    """When a run is killed: after so many seconds, or at the n-th of a kind of call that its saves make."""

    seconds: float = 60.0
    call: str | None = None
    count: int = 0


def _kill_at(harm: Harm) -> None:
    """Let this process kill itself, as `kill -9` does, at the n-th of its calls."""
    left = harm.count

    def before(call: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **keywords: Any) -> Any:
            nonlocal left
            if call == harm.call:
                left -= 1
                if left <= 0:
                    os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **keywords)

        return counted

    from detlab import storage

    storage._Sealing.write = before("write", storage._Sealing.write)
    os.fsync = before("fsync", os.fsync)
    Path.replace = before("rename", Path.replace)
    os.link = before("link", os.link)


def _child(folder: Path, arguments: list[str], harm: Harm) -> None:
    os.setpgrp()
    os.chdir(folder)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    _kill_at(harm)
    sys.argv = ["detlab", *arguments]
    status = detlab.run.main()
    os._exit(status)


def attempt(folder: Path, arguments: list[str], harm: Harm) -> int:
    """One try in a process of its own; its exit status, -9 where it was killed."""
    process = multiprocessing.get_context("fork").Process(target=_child, args=(folder, arguments, harm))
    process.start()
    process.join(harm.seconds)
    if process.is_alive():
        assert process.pid is not None
        os.killpg(process.pid, signal.SIGKILL)
        process.join()
    assert process.exitcode is not None
    return process.exitcode


def soak(folder: Path, overrides: tuple[str, ...], *, kills: int, seed: int, steps: int) -> dict[str, int]:
    """Kill runs `kills` times in all, each time resumed, and hold each that reaches its end against one left alone.

    Every kind of harm has its turn: of five kills each is another.

    Returns:
        How often each harm was done, and how many runs were brought to their end.
    """
    chance = random.Random(seed)
    epoch = 5
    arguments = [
        *overrides, f"dataset.train_size={2 * epoch}", f"epochs={steps // epoch}", "eval_every=4", "ema=0.9", "max_steps=null",
        "checkpoint.every_minutes=0.003", "resume=auto", "dataset.test_size=2",
    ]  # fmt: skip
    alone = folder / "alone"
    folder.mkdir(parents=True, exist_ok=True)
    assert attempt(folder, [*arguments, "hydra.run.dir=alone"], Harm(seconds=3600)) == 0
    done = dict.fromkeys(("killed", *CALLS, "runs"), 0)
    while sum(done.values()) - done["runs"] < kills:
        status = -9
        while status != 0:
            harm = Harm(seconds=chance.uniform(0.3, 5))
            if (rarest := min(("killed", *CALLS), key=done.__getitem__)) != "killed":
                harm = Harm(call=rarest, count=chance.choice((1, 2, 3, 5, 8, 13)), seconds=8)
            if sum(done.values()) - done["runs"] >= kills:
                harm = Harm(seconds=3600)
            status = attempt(folder, [*arguments, "hydra.run.dir=killed"], harm)
            assert status in (0, -9), status
            done[harm.call or "killed"] += status == -9
            print(f"\r{done}", end="", file=sys.stderr)
        same(alone, folder / "killed")
        shutil.rmtree(folder / "killed")
        done["runs"] += 1
    return done


def same(alone: Path, killed: Path) -> None:
    """Fail unless two runs left the same: weights, optimizer and average metrics but for `perf/`, steps on the board."""
    for name in ("last.pt", "best.pt", "best_ema.pt"):
        a, b = (_comparable(load(run / "checkpoints" / name)) for run in (alone, killed))
        assert a.keys() == b.keys(), name
        assert [key for key in a if a[key] != b[key]] == [], name
    assert lines_of(killed) == lines_of(alone)
    for name in ("predictions.json", "split.json"):
        assert (alone / name).read_bytes() == (killed / name).read_bytes(), name
    assert json.loads((killed / "run.json").read_text())["state"] == "done"
    steps = [[event.step for event in _board(run).Scalars("train/loss")] for run in (alone, killed)]
    assert steps[0] == steps[1] == list(range(1, len(steps[0]) + 1))
    values = [[(event.step, event.value) for event in _board(run).Scalars("val/bbox/AP")] for run in (alone, killed)]
    assert values[0] == values[1]
    assert not list(killed.rglob("*.tmp"))


def _board(run: Path) -> EventAccumulator:
    board = EventAccumulator(str(run), size_guidance={"scalars": 0})
    board.Reload()
    return board


def _comparable(value: Any, prefix: str = "") -> dict[str, Any]:
    """A state as bytes and plain values by path; where its records end, and its folder's name, may differ."""
    if isinstance(value, torch.Tensor):
        return {prefix: value.numpy().tobytes()}
    if isinstance(value, dict):
        kept = {k: v for k, v in value.items() if k not in ("records", "overrides", "config")}
        return {key: leaf for k, v in kept.items() for key, leaf in _comparable(v, f"{prefix}/{k}").items()}
    if isinstance(value, list | tuple):
        return {key: leaf for i, v in enumerate(value) for key, leaf in _comparable(v, f"{prefix}/{i}").items()}
    return {prefix: repr(value)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--model", choices=MODELS, default="maskrcnn")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=100)
    given = parser.parse_args()
    torch.set_num_threads(1)
    began = time.monotonic()
    told = soak(given.folder, MODELS[given.model], kills=given.kills, seed=given.seed, steps=given.steps)
    print(f"\n{given.model}: {told}, all runs equal to the one left alone, {time.monotonic() - began:.0f} s")
