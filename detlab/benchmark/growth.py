"""What more costs: an evaluation of more images, objects or classes, and training in more processes."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from detlab import pictures
from detlab.benchmark import chart
from detlab.benchmark.detections import Density
from detlab.benchmark.scoring import OurScoring, scored_types
from detlab.benchmark.settings import Settings
from detlab.benchmark.turns import BenchmarkFailedError, heedless_of_ctrl_c
from detlab.errors import UserError
from detlab.structures import IouType

# Of the most images: a shape of growth shows in a few doublings.
SHARES = (1 / 8, 1 / 4, 1 / 2, 1)
LEAST_IMAGES = 8
# Objects of an image as in val2017, and times these. Not more: of the detections of an image, five an object, 100 count.
FULLER = (1 / 4, 1 / 2, 1, 2)
CLASSES = (20, 80, 320, 1280)
PROCESSES = (1, 2)
# Steps of a run that come before the ones that count.
_WARM_UP = 2
_BETWEEN_LOOKS = 0.2  # seconds
_SECONDS_TO_END = 60


def measured(cfg: DictConfig, overrides: Sequence[str], settings: Settings, *, quiet: bool) -> dict[str, Any]:
    """Rows of what was measured, and how steeply each grows.

    Returns:
        `rows`: `of` (images, objects, classes, processes), `at` (how many; of objects, an image) and `seconds`: of an evaluation,
        for processes of an image in training. `exponents`: of each kind, the slope of the logarithms: 1 where twice as many take
        twice as long.

    Raises:
        UserError: a batch that two processes cannot share, or a model that is scored by keypoints.
        BenchmarkFailedError: a run failed.
    """
    if settings.images < LEAST_IMAGES:
        raise UserError(
            f"bench.images: {settings.images} is not allowed; allowed with bench=growth: from {LEAST_IMAGES}."
        )
    shares = max(PROCESSES) * cfg.accumulate
    if cfg.batch_size % shares:
        raise UserError(
            f"batch_size: {cfg.batch_size} cannot be shared by {max(PROCESSES)} processes; take a multiple of {shares}."
        )
    config = OmegaConf.to_yaml(OmegaConf.create(OmegaConf.to_container(cfg, resolve=False)))  # pyright: ignore
    iou_types = scored_types(config)
    rows = []
    for row in chain(_evaluations(config, iou_types, settings), _trainings(overrides, settings)):
        rows.append(row)
        if not quiet:
            print(f"{row['of']} {row['at']:g}: {row['seconds']:.4f} s", file=sys.stderr)
    report = {
        "work": {"bench": "growth", "name": cfg.name, "iou_types": list(iou_types), "images_a_step": cfg.batch_size},
        "rounds": settings.rounds,
        "rows": rows,
        "exponents": {kind: exponent(curve(rows, kind)) for kind in dict.fromkeys(row["of"] for row in rows)},
    }
    if settings.plot is not None:
        pictures.save(chart.drawn({kind: curve(rows, kind) for kind in report["exponents"]}), settings.plot)
    return report


def _evaluations(config: str, iou_types: tuple[IouType, ...], settings: Settings) -> Iterator[dict[str, Any]]:
    """Rows of an evaluation without its model, one after the other."""
    of_val2017 = Density()
    few = max(1, settings.images // 4)
    plans = [
        *(("images", round(share * settings.images), of_val2017) for share in SHARES),
        *(("objects", few, replace(of_val2017, objects=factor * of_val2017.objects)) for factor in FULLER),
        *(("classes", few, replace(of_val2017, classes=classes)) for classes in CLASSES),
    ]
    for kind, images, density in plans:
        scoring = OurScoring(config, iou_types, images, density)
        scoring.warm_up()
        seconds = statistics.median(scoring.round() for _ in range(settings.rounds))
        held = {"images": images, "objects": scoring.made.objects / images, "classes": density.classes}
        yield {"of": kind, "at": held[kind], "seconds": seconds, "detections": scoring.made.detections, **held}


def _trainings(overrides: Sequence[str], settings: Settings) -> Iterator[dict[str, Any]]:
    """Rows of real runs on the CPU, whose cores the processes share."""
    for processes in PROCESSES:
        settled = (
            f"devices={processes}",
            "device=cpu",
            "epochs=1000",
            "eval_every=1000",
            "max_steps=null",
            "log_every=1",
        )
        with tempfile.TemporaryDirectory() as folder:
            run = Path(folder) / "run"
            rates = _rates([*overrides, *settled, f"hydra.run.dir={run}"], run / "metrics.jsonl", settings.units)
        rate = statistics.median(rates)
        yield {"of": "processes", "at": processes, "seconds": 1 / rate, "images_a_second": rate}


def _rates(overrides: Sequence[str], metrics: Path, steps: int) -> list[float]:
    """Images a second of so many steps of a run, which is ended then.

    Raises:
        BenchmarkFailedError: it ended by itself.
    """
    with tempfile.TemporaryFile("w+") as said:
        command = [sys.executable, "-m", "detlab.run", *overrides]
        with heedless_of_ctrl_c():
            process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT)
        try:
            while process.poll() is None:
                rates = _rates_in(metrics)[_WARM_UP:]
                if len(rates) >= steps:
                    return rates[:steps]
                time.sleep(_BETWEEN_LOOKS)
        finally:
            _end(process)
        said.seek(0)
        raise BenchmarkFailedError(f"detlab.run ended with {process.returncode}.\n{said.read()}")


def _rates_in(metrics: Path) -> list[float]:
    """Images a second of the steps that a run has written down."""
    written = metrics.read_text().split("\n")[:-1] if metrics.exists() else []
    found = (json.loads(line).get("perf/images_per_second") for line in written)
    return [rate for rate in found if rate is not None]


def _end(process: subprocess.Popen[Any]) -> None:
    """End a run as a scheduler does, so that it ends its own processes."""
    process.terminate()
    try:
        process.wait(_SECONDS_TO_END)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def curve(rows: Sequence[Mapping[str, Any]], kind: str) -> list[tuple[float, float]]:
    """How many, and the seconds, of the rows of a kind."""
    return [(row["at"], row["seconds"]) for row in rows if row["of"] == kind]


def exponent(points: Sequence[tuple[float, float]]) -> float:
    """The slope of the straight line through the logarithms of points (x, y), by least squares."""
    x, y = np.log(np.asarray(points)).T
    return float(np.polyfit(x, y, 1)[0])
