"""Does the fast path learn as well as the plain one: the same runs by both, seed by seed, and what their AP differs by.

By hand: python tests/paired_ap.py FOLDER --seeds 16 --jobs 2 [overrides]. A run that is there and has ended is not made again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

FAST = ("precision=auto",)
# Torchvision's own operations and pycocotools, in place of what detlab does faster.
PLAIN = (
    "model.box_roi_pool.method=torchvision", "model.mask_roi_pool.method=torchvision", "model.rpn_sampled_gradient=false",
    "model.rpn_batched=false", "model.backbone.fold_norms=false", "model.masks_in_boxes=false", "evaluator.backend=pycocotools",
    "precision=fp32",
)  # fmt: skip
KINDS = (("fast", FAST), ("plain", PLAIN))
METRICS = ("val/bbox/AP", "val/segm/AP")
# Student's t of 95 %, two-sided, by degrees of freedom.
T95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


def last_metrics(folder: Path, *overrides: str) -> dict[str, float]:
    """The numbers of a run's last evaluation; of a new run, where there is none that has ended."""
    done = folder / "done"
    if not done.exists():
        command = [sys.executable, "-m", "detlab.run", f"hydra.run.dir={folder}", "resume=auto", *overrides]
        subprocess.run(command, check=True)
        done.touch()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if METRICS[0] in line][-1]


def interval(differences: list[float]) -> tuple[float, float]:
    """Where the mean of all differences like these lies, with 95 % confidence if they are normally distributed."""
    mean = statistics.fmean(differences)
    half = T95[len(differences) - 2] * statistics.stdev(differences) / len(differences) ** 0.5
    return mean - half, mean + half


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=5, choices=range(2, len(T95) + 2))
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--jobs", type=int, default=1, help="runs beside each other")
    parser.add_argument("overrides", nargs="*")
    given = parser.parse_intermixed_args()
    folder = given.folder.resolve()
    seeds = range(given.first, given.first + given.seeds)
    with ThreadPoolExecutor(given.jobs) as pool:
        pending = [
            [
                pool.submit(last_metrics, folder / f"{kind}-{seed}", f"seed={seed}", *more, *given.overrides)
                for kind, more in KINDS
            ]
            for seed in seeds
        ]
        pairs = [[run.result() for run in runs] for runs in pending]
    for metric in METRICS:
        for seed, (fast, plain) in zip(seeds, pairs, strict=True):
            print(f"seed {seed}  {metric}  fast {fast[metric]:.4f}  plain {plain[metric]:.4f}")
        apart = [fast[metric] - plain[metric] for fast, plain in pairs]
        low, high = interval(apart)
        print(f"{metric}  fast less plain {statistics.fmean(apart):+.4f}, 95 % interval {low:+.4f} to {high:+.4f}")
