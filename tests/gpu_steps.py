"""What a training step takes on a GPU, by each of detlab's ways and by torchvision's own loop, on the same batches held in memory.

By hand: python tests/gpu_steps.py MODEL FOLDER [overrides], with Penn-Fudan in FOLDER. Images are not loaded meanwhile: of a step
of a tenth of a second that would be most, and the same on both sides.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from detlab.benchmark.contestants import OurTraining, TheirTraining, write_weights
from detlab.commands.bench import DEFAULTS
from detlab.config import check, register
from detlab.preflight import compose_run

BATCHES = 6
WAYS = {
    "detlab": (),
    "in fp32": ("precision=fp32",),
    "images one by one in the RPN": ("model.rpn_batched=false",),
    "RPN's gradient everywhere": ("model.rpn_sampled_gradient=false",),
    "RoIAlign torchvision": ("model.box_roi_pool.method=torchvision",),
    "RoIAlign sparse": ("model.box_roi_pool.method=sparse",),
    "RoIAlign dense": ("model.box_roi_pool.method=dense",),
}


class Held:
    """The same batches again and again."""

    def __init__(self, batches: list[Any]) -> None:
        self._again = cycle(batches)

    def __iter__(self) -> Iterator[Any]:
        return self._again


def configured(*overrides: str) -> tuple[DictConfig, str]:
    """A checked configuration, and as the contestants take it."""
    cfg = compose_run([*DEFAULTS, *overrides])
    check(cfg)
    return cfg, OmegaConf.to_yaml(OmegaConf.create(OmegaConf.to_container(cfg, resolve=False)))  # pyright: ignore


def seconds_of(side: Any) -> list[float]:
    """Of a step on each batch."""
    return [side.round() for _ in range(BATCHES)]


def main(model: str, folder: Path, rounds: int, overrides: list[str]) -> None:
    common = (
        f"model={model}", "dataset=pennfudan", f"dataset.root={folder}", "dataset.val_size=10", "precision=auto",
        "model.box_batch_size_per_image=512", "batch_size=8", "workers=8", *overrides,
    )  # fmt: skip
    cfg, text = configured(*common)
    with tempfile.TemporaryDirectory() as scratch:
        weights = Path(scratch) / "weights.pt"
        write_weights(cfg, weights)
        plain = TheirTraining(text, weights, 1)
        plain_batches = [next(plain.source) for _ in range(BATCHES)]
        plain.close()
        plain.source = cycle(plain_batches)  # pyright: ignore
        sides: dict[str, Any] = {"plain loop": plain}
        batches: list[Any] = []
        for name, more in WAYS.items():
            side = OurTraining(configured(*common, *more)[1], weights, 1)
            if not batches:
                source = iter(side.batches)
                batches = [next(source) for _ in range(BATCHES)]
                side.close()
            side.batches = Held(batches)  # pyright: ignore
            sides[name] = side
        for side in sides.values():
            seconds_of(side)  # memory is taken, kernels are chosen
        taken: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(rounds):
            for name, side in sides.items():
                taken[name].append(statistics.fmean(seconds_of(side)))
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    print(
        f"{device}, torch {torch.__version__}: {model}, {BATCHES} batches of {cfg.batch_size}, {rounds} rounds in turns"
    )
    for name, times in taken.items():
        middle = statistics.median(times)
        ratio = statistics.median(taken["plain loop"]) / middle
        print(
            f"{name:<30} {middle * 1e3:9.1f} ms a step ({min(times) * 1e3:.1f} to {max(times) * 1e3:.1f}), ratio {ratio:.2f}"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("overrides", nargs="*")
    given = parser.parse_intermixed_args()
    register()
    started = time.perf_counter()
    main(given.model, given.folder, given.rounds, given.overrides)
    print(f"{time.perf_counter() - started:.0f} s in all")
