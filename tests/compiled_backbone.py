"""Whether `torch.compile` of the backbone pays for itself within a run: training steps with and without it, in turns.

By hand: python tests/compiled_backbone.py [overrides], with a C++ compiler at hand.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from detlab.benchmark.contestants import OurTraining, write_weights
from detlab.commands.bench import DEFAULTS
from detlab.config import check, register
from detlab.preflight import compose_run


def main(rounds: int, units: int, overrides: list[str]) -> None:
    cfg = compose_run([*DEFAULTS, *overrides])
    check(cfg)
    text = OmegaConf.to_yaml(OmegaConf.create(OmegaConf.to_container(cfg, resolve=False)))  # pyright: ignore
    with tempfile.TemporaryDirectory() as scratch:
        weights = Path(scratch) / "weights.pt"
        write_weights(cfg, weights)
        sides: dict[str, Any] = {name: OurTraining(text, weights, units) for name in ("as it comes", "compiled")}
    sides["compiled"].model.backbone.compile()
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for name, side in sides.items():
        started = time.perf_counter()
        side.warm_up()
        print(f"{name:<12} the first {units} steps took {time.perf_counter() - started:.1f} s")
    for _ in range(rounds):
        for name, side in sides.items():
            taken[name].append(side.round())
    for side in sides.values():
        side.close()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {sides['compiled'].device.precision}:")
    for name, times in taken.items():
        print(f"{name:<12} {statistics.median(times):.3f} s a step ({min(times):.3f} to {max(times):.3f})")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--units", type=int, default=3, help="steps in a round")
    parser.add_argument("overrides", nargs="*")
    given = parser.parse_intermixed_args()
    register()
    main(given.rounds, given.units, given.overrides)
