"""Both sides of a work timed in turns: medians, spread, ratio, memory, and on what."""

from __future__ import annotations

import math
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from detlab.benchmark import contestants, growth, scoring, start
from detlab.benchmark.detections import MadeImages
from detlab.benchmark.settings import Settings
from detlab.benchmark.turns import Contestant, Rival, Side, Times, in_turns
from detlab.engine import select_device
from detlab.errors import BrokenDownError, UserError
from detlab.records import circumstances

CONTESTANTS: dict[str, tuple[Callable[..., Contestant], Callable[..., Contestant]]] = {
    "train": (contestants.OurTraining, contestants.TheirTraining),
    "predict": (contestants.OurPrediction, contestants.TheirPrediction),
    "evaluate": (scoring.OurScoring, scoring.TheirScoring),
    "masks": (scoring.OurMasks, scoring.TheirMasks),
}
# What the seconds are of.
UNITS = {"train": "training step", "predict": "image", "evaluate": "round", "masks": "round", "start": "start"}
# What the plain loop, the tutorial's, does not do otherwise.
PLAIN: dict[str, Any] = {
    "augmentation._target_": "detlab.data.transforms.Flip",
    "augmentation.p": 0.5,
    "accumulate": 1,
    "clip_grad_norm": None,
    "ema": None,
    "optimizer.groups": None,
}
# What choices are called that these are the `_target_` of.
CHOICES = {"augmentation": "flip", "optimizer": "sgd"}
# How far two sides' numbers may lie apart: they may add in another order.
TOLERANCE = 1e-6


class DifferentResultsError(BrokenDownError):
    """Two sides that are to do the same work found different things; the first of them."""


def measured(cfg: DictConfig, overrides: Sequence[str], settings: Settings, *, quiet: bool) -> dict[str, Any]:
    """What `detlab bench` reports, in plain values.

    Args:
        cfg: the composed configuration.
        overrides: that it is composed of.
        settings: what to time.
        quiet: say nothing of each round.

    Raises:
        UserError: a configuration that the work does not fit.
        DifferentResultsError: the two sides do not agree.
        BenchmarkFailedError: a side failed.
    """
    if settings.work in ("train", "start"):
        _check_plain(cfg, settings.work)
    device = select_device(cfg.device, cfg.precision)
    if settings.work == "growth":
        report = growth.measured(cfg, overrides, settings, quiet=quiet)
    else:
        report = _in_turns(cfg, overrides, settings, quiet=quiet)
    return {
        **report,
        "precision": device.precision,
        "threads": torch.get_num_threads(),
        **circumstances(device),
    }


def _check_plain(cfg: DictConfig, work: str) -> None:
    """Refuse what the plain loop does not do, so that both sides do the same.

    Raises:
        UserError: names the key.
    """
    only_at_start = {"optimizer._target_": "torch.optim.SGD"} if work == "start" else {}
    for key, only in {**PLAIN, **only_at_start}.items():
        value = OmegaConf.select(cfg, key)
        if value != only:
            group = key.partition("._target_")[0]
            allowed = CHOICES[group] if group in CHOICES else _as_typed(only)
            raise UserError(
                f"{group}: {_as_typed(_plain(value))} is not allowed; the plain loop knows {group}={allowed} alone, "
                "and both do the same."
            )


def _as_typed(value: Any) -> str:
    return "null" if value is None else str(value)


def _in_turns(cfg: DictConfig, overrides: Sequence[str], settings: Settings, *, quiet: bool) -> dict[str, Any]:
    def said(number: int, ours: float, theirs: float) -> None:
        if not quiet:
            print(f"round {number}: {ours:.3f} s, plain {theirs:.3f} s", file=sys.stderr)

    with _sides(cfg, overrides, settings) as both:
        times = in_turns(*both, settings.rounds, said)
        results = [side.ask("result") for side in both]
        check_same(*results)
        peaks = [side.ask("peak_memory") for side in both]
        profiles = [side.ask("profile") for side in both] if settings.profile else []
        started = start.told(*both, settings.rounds) if settings.work == "start" else {}
    return {
        **_numbers(times),
        "unit": UNITS[settings.work],
        "rounds": settings.rounds,
        "units_a_round": settings.units,
        "memory": {"ours": peaks[0], "theirs": peaks[1]},
        "work": _work(cfg, settings, results[0]),
        **started,
        "profiles": profiles,
    }


@contextmanager
def _sides(cfg: DictConfig, overrides: Sequence[str], settings: Settings) -> Iterator[tuple[Side, Side]]:
    """Both contestants, each in a process of its own, ready."""
    if settings.work == "start":
        with start.sides(cfg, overrides) as both:
            yield both
        return
    config = OmegaConf.to_yaml(OmegaConf.create(OmegaConf.to_container(cfg, resolve=False)))  # pyright: ignore
    with tempfile.TemporaryDirectory() as folder:
        if settings.work in ("evaluate", "masks"):
            iou_types = scoring.scored_types(config) if settings.work == "evaluate" else ("segm",)
            arguments: tuple[Any, ...] = (config, iou_types, settings.images)
        else:
            weights = Path(folder) / "weights.pt"
            contestants.write_weights(cfg, weights)
            arguments = (config, weights, settings.units)
        ours, theirs = CONTESTANTS[settings.work]
        with Rival(ours, *arguments) as first, Rival(theirs, *arguments) as second:
            yield first, second


def check_same(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    """Hold what both sides found against each other: numbers to `TOLERANCE`, all else exactly.

    Raises:
        DifferentResultsError: says where they differ.
    """
    differing = [name for name in {**ours, **theirs} if not _same(ours.get(name), theirs.get(name))]
    if differing:
        name = differing[0]
        more = f", and {len(differing) - 1} more differ" if len(differing) > 1 else ""
        raise DifferentResultsError(
            f"the two sides do not find the same: {name} is {ours.get(name)} by detlab and {theirs.get(name)} by the plain "
            f"way{more}; their times cannot be compared."
        )


def _same(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, float) and isinstance(theirs, float):
        return math.isclose(ours, theirs, rel_tol=0, abs_tol=TOLERANCE) or (math.isnan(ours) and math.isnan(theirs))
    return ours == theirs


def _numbers(times: Times) -> dict[str, Any]:
    return {
        "ratio": times.ratio,
        "ours": statistics.median(times.ours),
        "theirs": statistics.median(times.theirs),
        "ratio_of_rounds": [min(times.ratios), max(times.ratios)],
        "all": {"ours": list(times.ours), "theirs": list(times.theirs)},
    }


def _work(cfg: DictConfig, settings: Settings, found: Mapping[str, Any]) -> dict[str, Any]:
    """What both sides did, in plain values."""
    named = {"bench": settings.work, "name": cfg.name}
    if settings.work in ("evaluate", "masks"):
        return {**named, **_made_work(cfg, settings, found)}
    if settings.work == "start":
        return {**named, "images_a_step": cfg.batch_size, "workers": cfg.workers}
    training = settings.work == "train"
    model = cfg.model
    return {
        **named,
        "images_a_step": cfg.batch_size if training else 1,
        "min_size": _plain(model.get("min_size")),
        "max_size": model.get("max_size"),
        "enlarge_to": model.get("enlarge_to"),
        "size_divisible": model.get("size_divisible"),
        "regions_an_image": model.get("box_batch_size_per_image" if training else "rpn_post_nms_top_n_test"),
        "workers": cfg.workers,
    }


def _made_work(cfg: DictConfig, settings: Settings, found: Mapping[str, Any]) -> dict[str, Any]:
    """How much the made images hold, and of an evaluation its AP, the same on both sides."""
    made = MadeImages(settings.images, seed=cfg.seed)
    counts = {"images": len(made), "detections": made.detections}
    if settings.work == "masks":
        return {**counts, "mask_cells": "28 x 28"}
    evaluator = {key: value for key, value in _plain(cfg.evaluator).items() if key != "_target_"}
    return {
        **counts,
        "objects": made.objects,
        "crowds": made.crowds,
        "classes": made.density.classes,
        **{name: round(value, 6) for name, value in found.items() if name.endswith("/AP")},
        **{f"evaluator.{key}": value for key, value in evaluator.items()},
    }


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
