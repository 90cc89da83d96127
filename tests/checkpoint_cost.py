"""What saving the state once a minute costs: minutes of training with and without it, in turns.

By hand: python tests/checkpoint_cost.py --folder /tmp/cost --rounds 4 [overrides]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from itertools import count
from pathlib import Path
from typing import cast

from omegaconf import DictConfig, OmegaConf

from detlab import parts, records
from detlab.checkpoint import Checkpoints, Position, TrainingState
from detlab.config import check, register
from detlab.engine import StepReport, select_device, train_one_epoch
from detlab.models.weights import settle
from detlab.preflight import compose_run
from detlab.resumption import plain


class Silent:
    """A writer that writes nothing, and records of no length."""

    def training_step(self, report: StepReport) -> None: ...

    def sizes(self) -> dict[str, int]:
        return {}


class Minute:
    """Ends an epoch after a minute."""

    told = False

    def __init__(self) -> None:
        self._end = time.monotonic() + 60

    def at(self, _step: int) -> bool:
        return time.monotonic() > self._end

    def agree(self) -> bool:
        return False


def steps_per_second(cfg: DictConfig, folder: Path, rounds: int) -> dict[str, list[float]]:
    """Of each minute, with and without a state that is saved in the middle of it."""
    device = select_device(cfg.device, cfg.precision)
    data = parts.data_sets(cfg)
    batches = parts.training_batches(cfg, data["train"], device)
    model = device.place(parts.detector(cfg, data["train"].class_map, data["train"].keypoints))
    optimizer = parts.optimizer(cfg, model)
    schedule = parts.schedule(cfg, optimizer, total_steps=10**6, steps_per_epoch=batches.steps)
    found: dict[str, list[float]] = {"with": [], "without": []}
    epochs = count()
    for _ in range(rounds):
        for kind, minutes in (("with", 0.5), ("without", 1000.0)):
            origin = records.origin(cfg, data)
            checkpoints = Checkpoints(folder / kind, origin, every_minutes=minutes)
            checkpoints.follow(TrainingState(model, optimizer, schedule, None, Position()), Silent())
            stopping, began, done = Minute(), time.monotonic(), 0
            while not stopping.at(done):
                epoch = next(epochs)
                batches.start(epoch, 0)
                done += train_one_epoch(
                    model, batches, optimizer, schedule, Silent(), stopping, device=device, epoch=epoch, step=0,
                    steps=batches.steps, accumulate=cfg.accumulate, clip_grad_norm=cfg.clip_grad_norm, seed=cfg.seed,
                    iou_types=model.iou_types, saving=checkpoints,  # type: ignore[arg-type]
                )  # fmt: skip
            found[kind].append(done / (time.monotonic() - began))
            saved = list((folder / kind / "checkpoints").glob("*.pt"))
            assert bool(saved) == (kind == "with"), saved
            print(
                f"{kind:<8} {found[kind][-1]:.3f} steps a second, {sum(p.stat().st_size for p in saved) >> 20} MiB",
                flush=True,
            )
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, default=Path(tempfile.mkdtemp()))
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("overrides", nargs="*")
    given = parser.parse_intermixed_args()
    register()
    composed = compose_run([*given.overrides, "dataset.train_size=2000"])
    check(composed)
    settle(composed.model)
    composed = cast(DictConfig, OmegaConf.create(plain(composed)))
    told = {
        kind: statistics.median(rates) for kind, rates in steps_per_second(composed, given.folder, given.rounds).items()
    }
    print(
        f"median with {told['with']:.3f}, without {told['without']:.3f} steps a second: {told['with'] / told['without']:.4f}"
    )
