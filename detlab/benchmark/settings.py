"""What a benchmark can be told on the command line, work by work; imports nothing heavy, so that --help answers at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detlab.errors import UserError

# Each work's settings and their defaults.
DEFAULTS: dict[str, dict[str, Any]] = {
    "train": {"bench.rounds": 5, "bench.units": 3, "bench.profile": False},
    "predict": {"bench.rounds": 5, "bench.units": 3, "bench.profile": False},
    "evaluate": {"bench.rounds": 5, "bench.images": 5000, "bench.profile": False},
    "masks": {"bench.rounds": 5, "bench.images": 100, "bench.profile": False},
    "start": {"bench.rounds": 5},
    "growth": {"bench.rounds": 3, "bench.images": 2000, "bench.units": 5, "bench.plot": None},
}


@dataclass(frozen=True)
class Settings:
    """What is timed, by the `bench` overrides; a work has those of them that `DEFAULTS` gives it.

    Args:
        work: `bench=`.
        rounds: `bench.rounds=`, of each side.
        units: `bench.units=`, steps or images in a round.
        images: `bench.images=`, made images in a round; for growth, the most.
        profile: `bench.profile=`, whether to tell where the time goes, and of training the memory.
        plot: `bench.plot=`, the file that is drawn.
    """

    work: str
    rounds: int
    units: int = 1
    images: int = 0
    profile: bool = False
    plot: Path | None = None


def settings_of(overrides: Sequence[str]) -> tuple[Settings, list[str]]:
    """The settings of the benchmark, and the overrides that are a run's.

    Raises:
        UserError: an unknown setting, one that the chosen work does not have, or a value that it cannot take.
    """
    given = [text.partition("=")[::2] for text in overrides if text.partition("=")[0].split(".")[0] == "bench"]
    others = [text for text in overrides if text.partition("=")[0].split(".")[0] != "bench"]
    work = "train"
    for key, value in given:
        if key == "bench":
            work = _one_of(key, value, tuple(DEFAULTS))
    values = dict(DEFAULTS[work])
    for key, value in given:
        if key != "bench":
            _check_key(key, work)
            values[key] = _value(key, value)
    return Settings(work, **{key.removeprefix("bench."): value for key, value in values.items()}), others


def _check_key(key: str, work: str) -> None:
    from detlab.config import did_you_mean

    known = list(dict.fromkeys(name for names in DEFAULTS.values() for name in names))
    if key not in known:
        raise UserError(f"{key}: no such key.{did_you_mean(key, known)} There are {', '.join(known)}.")
    if key not in DEFAULTS[work]:
        raise UserError(f"{key}: bench={work} does not have it; it has {', '.join(DEFAULTS[work])}.")


def _value(key: str, value: str) -> int | bool | Path:
    if key == "bench.profile":
        return _one_of(key, value, ("true", "false")) == "true"
    if key == "bench.plot":
        if Path(value).suffix.lower() not in (".png", ".jpg", ".jpeg") or not Path(value).parent.is_dir():
            raise UserError(f"{key}: {value!r} is not allowed; allowed: a .png or .jpg file in a folder that is there.")
        return Path(value)
    if not value.isdecimal() or int(value) < 1:
        raise UserError(f"{key}: {value!r} is not allowed; allowed: whole numbers from 1.")
    return int(value)


def _one_of(key: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise UserError(f"{key}: {value!r} is not allowed; allowed: {', '.join(allowed)}.")
    return value
