"""What of a run may differ where it goes on: nothing that changes its result, unless the user says so."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from detlab.errors import UserError
from detlab.untrusted import json_of, saved_config

log = logging.getLogger(__name__)

# Keys that change no number of a run, at most when it ends.
HARMLESS = (
    "name", "tags", "workers", "timeout", "log_every", "histograms", "operating_precision", "profile", "max_minutes",
    "max_skipped", "patience", "stop_at", "checkpoint", "resume", "resume_anyway", "allow", "dataset.cache", "keep_freed_memory",
)  # fmt: skip
# Those of them that say when it ends.
STOPPING = ("max_minutes", "max_skipped", "patience", "stop_at")
# Keys that say where something lies. A state has the weights, and which data it goes on with tells their fingerprint.
PLACES = (
    "model.weights", "dataset.root", "dataset.url", "dataset.md5", "dataset.data", "dataset.split_file",
)  # fmt: skip
# Keys that matter where the rates of the steps to come depend on the length of the run.
LENGTH = ("epochs", "max_steps")

# What runs did whose configurations are from before there was the key.
BEFORE = {
    "model.rpn_sampled_gradient": True, "model.rpn_batched": None, "model.masks_in_boxes": True, "model.size_divisible": 32,
    "channels_last": None, "operating_precision": None,
    "model.backbone.fold_norms": True, "model.keypoint_roi_pool": None, "model.keypoint_layers": None,
}  # fmt: skip

Changes = dict[str, tuple[Any, Any]]
ABSENT = "not there"


def changes(then: Mapping[str, Any], now: Mapping[str, Any], *, passed_over: tuple[str, ...]) -> Changes:
    """Of two configurations, resolved and plain, the keys whose values differ, with both values; but for some."""
    before, after = dict(_flat(then)), dict(_flat(now))
    keys = [*before, *(key for key in after if key not in before)]
    absent = {key: BEFORE.get(key, ABSENT) for key in keys}
    pairs = {key: (before.get(key, absent[key]), after.get(key, absent[key])) for key in keys}
    return {key: (a, b) for key, (a, b) in pairs.items() if a != b and not _below(key, passed_over)}


def _below(key: str, tops: tuple[str, ...]) -> bool:
    return any(key == top or key.startswith(f"{top}.") for top in tops)


def _flat(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def plain(cfg: DictConfig) -> dict[str, Any]:
    """A configuration as it is written down: resolved, without Hydra's own."""
    ours = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    return yaml.safe_load(OmegaConf.to_yaml(ours, resolve=True))


def said(found: Changes) -> str:
    """Changes in words."""
    return ", ".join(f"{key} {_short(a)} -> {_short(b)}" for key, (a, b) in found.items())


def _short(value: Any) -> str:
    text = "null" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def holds_state(run: Path) -> bool:
    """Whether a folder holds what a run can go on from."""
    states = (run / "checkpoints" / name for name in ("last.pt", "previous.pt"))
    return (run / "run.json").is_file() and any(state.is_file() for state in states)


def end_of(run: Path) -> str | None:
    """How a run ended, as its record says: `running`, `done`, ...; None where it does not."""
    try:
        return json_of(run / "run.json")["state"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def holds_run(folder: Path) -> bool:
    """Whether a folder holds what a new run there would write over: weights, or the records of a run that was finished."""
    return any(folder.glob("checkpoints/*.pt")) or end_of(folder) == "done"


def check_config(path: Path, then: str, cfg: DictConfig, *, same_rates: bool) -> None:
    """Refuse to go on from a state with a configuration that changes the result; with `resume_anyway`, say it.

    Args:
        path: of the state.
        then: its configuration, as YAML.
        cfg: the present one.
        same_rates: whether the steps to come have the rates that they would have had: then the length may change.

    Raises:
        UserError: names each key with both values.
    """
    found = changes(plain(saved_config(then, path)), plain(cfg), passed_over=(*HARMLESS, *PLACES))
    if same_rates:
        found = {key: pair for key, pair in found.items() if key not in LENGTH}
    if not found:
        return
    if not cfg.resume_anyway:
        raise UserError(
            f"resume: {path} was saved with other settings, which change the result: {said(found)}.\n"
            "Leave them as they were, or take them from here on with resume_anyway=true."
        )
    log.warning("resume_anyway: from here on with %s; the result is that of neither setting alone", said(found))


def check_data(path: Path, then: Mapping[str, Any], now: Mapping[str, Any], names: Mapping[str, list[str]]) -> None:
    """Refuse to go on from a state with other data.

    Args:
        path: of the state, in `RUN/checkpoints/`.
        then: for each part `images`, their number, and `fingerprint`, as the state has them.
        now: the same of the present data set.
        names: of the present images, by part.

    Raises:
        UserError: says which part differs, and in what.
    """
    if then == now:
        return
    before = _split_of(path.parent.parent)
    told = []
    for part in (*then, *(part for part in now if part not in then)):
        if part not in now or part not in then:
            told.append(f"{part} is {'new' if part in now else 'gone'}")
        elif then[part] != now[part]:
            count = f"{part} has {now[part]['images']} images, had {then[part]['images']}"
            told.append(count + _example(before[part] if part in before else [], names[part]))
    raise UserError(
        f"{path}: the data set is not the one that it was saved with: {'; '.join(told)}. The position in an epoch would mean other "
        "images: start a new run from its weights instead: model.weights=.../best.pt"
    )


def _split_of(run: Path) -> dict[str, list[str]]:
    """The names that a run wrote down; none where the file is gone."""
    try:
        return json_of(run / "split.json")
    except (OSError, ValueError):
        return {}


def _example(before: list[str], now: list[str]) -> str:
    if not before:
        return ""
    gone, new = (sorted(set(a) - set(b)) for a, b in ((before, now), (now, before)))
    if gone or new:
        return f" ({', '.join([*(f'without {name}' for name in gone[:1]), *(f'with {name}' for name in new[:1])])})"
    return " (in another order)" if before != now else " (of the same names: their objects or sizes differ)"
