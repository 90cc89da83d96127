"""What became of the jobs of a sweep: done, failed, cut off, or never begun? Their folders tell, whatever process did them."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.config_loader_impl import get_overrides_dirname
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from detlab.config import safe_name
from detlab.errors import UserError
from detlab.locks import is_taken
from detlab.resumption import end_of
from detlab.untrusted import WithoutAliases, json_of, saved_config, texts_of

FAILED = "failed.json"
# How a job stands that is not to be repeated.
SETTLED = ("done", "at work")
BASIC_SWEEPER = f"{BasicSweeper.__module__}.{BasicSweeper.__name__}"


@dataclass(frozen=True)
class Outcome:
    """What a job's folder says of its end.

    Attributes:
        folder: the job's own.
        state: `done`, `failed`, `interrupted` (by a signal), `cut off` (killed), `at work`, or `not begun`.
        why: the reason of a failure.
        best: the best value of the objective, in words, of a job that is done.
    """

    folder: Path
    state: str
    why: str | None = None
    best: str | None = None


def note_failure(folder: Path, error: Exception, overrides: list[str], status: int) -> None:
    """Leave a failed job's reason in its folder, unless that is the folder of a finished run, or of one at work."""
    said = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    with contextlib.suppress(OSError):  # a full disk: its error is told, and would be hidden by ours
        if end_of(folder) == "done" or is_taken(folder):
            return
        beside = folder / f".{FAILED}.{os.getpid()}.tmp"
        beside.write_text(json.dumps({"why": said, "overrides": overrides, "status": status}, indent=1) + "\n", "utf-8")
        beside.replace(folder / FAILED)


def brief(why: str) -> str:
    """A failure's reason in part of a line; the whole of it is in the job's folder."""
    said = " ".join(why.split())
    return said if len(said) <= 200 else f"{said[:196]} ..."


def outcome_of(folder: Path) -> Outcome:
    """What became of the job whose folder this is."""
    state = end_of(folder)
    if state == "done":
        return Outcome(folder, state, best=_best(folder))
    if is_taken(folder):
        return Outcome(folder, "at work")
    if (folder / FAILED).is_file():
        return Outcome(folder, "failed", why=_why(folder / FAILED))
    if state == "failed":
        return Outcome(folder, "failed", why=_why(folder / "run.json"))
    if state in ("running", "interrupted"):
        return Outcome(folder, "cut off" if state == "running" else state)
    return Outcome(folder, "not begun")


def _why(path: Path) -> str:
    try:
        return str(json_of(path)["why"])
    except (OSError, ValueError, KeyError, TypeError):
        return f"{path.name} is damaged"


def _best(folder: Path) -> str:
    path = folder / "config.yaml"
    try:
        objective = saved_config(path.read_text(encoding="utf-8"), path).objective
        value = json_of(folder / "run.json")["position"]["best"]
        return f"{objective} {float('nan') if value is None else value:.4f}"
    except (OSError, ValueError, KeyError, TypeError, UserError, OmegaConfBaseException):
        return "its records are damaged"


def stamps(sweep: Path) -> dict[Path, int]:
    """The folders of a sweep's jobs that have begun, each with when something was last noted there, in ns."""
    names = (".hydra/overrides.yaml", "run.json", FAILED)
    noted = [path for name in names for path in sweep.glob(f"*/{name}")]
    found: dict[Path, int] = {}
    for path in noted:
        folder = sweep / path.relative_to(sweep).parts[0]
        with contextlib.suppress(OSError):
            found[folder] = max(found.get(folder, 0), path.stat().st_mtime_ns)
    return dict(sorted(found.items(), key=lambda item: _number(item[0])))


def _number(folder: Path) -> tuple[int, str]:
    number = folder.name.partition("-")[0]
    return (int(number) if number.isdecimal() else 0, folder.name)


@dataclass(frozen=True)
class Planned:
    """One job of a sweep, as the sweep's own record has it.

    Attributes:
        number: its place, from 0.
        folder: where it was done, or would have been.
        overrides: its own.
        outcome: what became of it.
    """

    number: int
    folder: Path
    overrides: list[str]
    outcome: Outcome


def jobs_of(sweep: Path, parser: OverridesParser) -> list[Planned]:
    """All jobs of a sweep, those too that never began, from what Hydra wrote down of it.

    Args:
        sweep: its folder.
        parser: reads overrides.

    Raises:
        UserError: no sweep's folder, or one whose jobs cannot be told from it.
    """
    record = _record(sweep)
    path = sweep / "multirun.yaml"
    try:
        hydra = record["hydra"]
        sweeper, subdir = hydra["sweeper"]["_target_"], str(hydra["sweep"]["subdir"])
        params, task = (
            hydra["sweeper"]["params"] if sweeper == BASIC_SWEEPER else None,
            list(hydra["overrides"]["task"]),
        )
        apart = [str(key) for key in hydra["job"]["config"]["override_dirname"]["exclude_keys"]]
        if sweeper != BASIC_SWEEPER:
            raise UserError(
                f"{sweep}: an Optuna sweep goes on by its own command, with hydra.sweep.dir={sweep} behind it."
                if "detlab" in str(sweeper)
                else f"{path}: made by the sweeper {sweeper}; only Hydra's own tells which jobs there were."
            )
        if not subdir.startswith("${hydra.job.num}-"):
            raise UserError(f"{path}: hydra.sweep.subdir is {subdir!r}; the folders of its jobs do not begin with N-.")
        given = parser.parse_overrides([*(f"{key}={value}" for key, value in (params or {}).items()), *map(str, task)])
        (batch,) = BasicSweeper.split_arguments(given, None)
    except (KeyError, TypeError, AttributeError, ValueError, HydraException) as error:
        raise UserError(f"{path}: damaged ({' '.join(str(error).split())}).") from None
    swept = {o.get_key_element() for o in given if o.is_sweep_override()}
    return [_planned(sweep, number, overrides, swept, apart, parser) for number, overrides in enumerate(batch)]


def _record(sweep: Path) -> Any:
    path = sweep / "multirun.yaml"
    try:
        return yaml.load(path.read_text(encoding="utf-8"), WithoutAliases)
    except OSError:
        raise UserError(f"{sweep}: holds no multirun.yaml; it is no sweep's folder.") from None
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: damaged ({' '.join(str(error).split())}).") from None


def _planned(
    sweep: Path, number: int, overrides: list[str], swept: set[str], apart: list[str], parser: OverridesParser
) -> Planned:
    own = {text for text in overrides if text.partition("=")[0] in swept}
    begun = [path for path in sweep.glob(f"{number}-*") if path.is_dir()]
    mine = [path for path in begun if (recorded := _recorded(path)) is None or own <= recorded]
    if begun and not mine:
        raise UserError(
            f"{begun[0]}: made with other overrides than {', '.join(sorted(own))}, as multirun.yaml has it."
        )
    name = safe_name(get_overrides_dirname(parser.parse_overrides(overrides), apart, ",", "="))
    folder = mine[0] if mine else sweep / f"{number}-{name}"
    return Planned(number, folder, overrides, outcome_of(folder))


def _recorded(folder: Path) -> set[str] | None:
    """The overrides of a job that has begun; None where it was killed before Hydra had written them."""
    path = folder / ".hydra" / "overrides.yaml"
    try:
        return set(texts_of(path)) if path.stat().st_size else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return set()
