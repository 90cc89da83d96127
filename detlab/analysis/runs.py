"""What do the run folders below a folder say, each as far as it can be read?"""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from detlab.errors import UserError
from detlab.locks import was_left
from detlab.untrusted import json_of, saved_config, texts_of

# A folder with one of these is a run's; Hydra makes .hydra before a job begins.
MARKS = ("run.json", "metrics.jsonl", "failed.json", ".hydra")
STATES = ("done", "running", "interrupted", "cut off", "failed", "damaged", "not begun")
Line = dict[str, float | None]


@dataclass(frozen=True)
class Run:
    """A run's folder, read. What it lacks is empty or None; `why` says what is wrong with it.

    Args:
        folder: where it lies.
        name: its path relative to the folder that was searched.
        state: one of STATES; `cut off` was killed, `not begun` has neither run.json nor a failure on record, `damaged` a run.json
            that cannot be read.
        why: why it failed, or what of it cannot be read; empty where nothing is wrong.
        overrides: as given on the command line, in order.
        settings: its configuration, flat (`optimizer.lr`), with the group choices (`model`) over it.
        objective: the metric that named its best checkpoint, without `val/`.
        lines: of metrics.jsonl; what was not finite is None.
        seconds: from start to end, of the last attempt where it was resumed.
        commit: of the code, shortened, with `+` where there were uncommitted changes.
    """

    folder: Path
    name: str
    state: str
    why: str = ""
    overrides: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    objective: str | None = None
    lines: Sequence[Line] = ()
    seconds: float | None = None
    commit: str = ""

    def evaluations(self) -> list[Line]:
        """The lines with numbers of the validation part, without those of losses alone."""
        return [line for line in self.lines if any(_is_score(tag) for tag in line)]

    def curve(self, tag: str) -> list[tuple[float, float]]:
        """Steps and values of a tag."""
        pairs = [(line["step"], line.get(tag)) for line in self.lines if line.get("step") is not None]
        return [(step, value) for step, value in pairs if step is not None and value is not None]

    def best(self, metric: str) -> Line | None:
        """The first of the evaluations with the largest value of a metric (`bbox/AP`)."""
        tag = f"val/{metric}"
        scored = [line for line in self.evaluations() if line.get(tag) is not None]
        return max(scored, key=lambda line: line[tag] or 0.0) if scored else None

    def last(self) -> Line | None:
        """The last evaluation."""
        evaluations = self.evaluations()
        return evaluations[-1] if evaluations else None

    def images_per_second(self) -> float | None:
        """The median over the logged steps."""
        rates = [rate for _, rate in self.curve("perf/images_per_second")]
        return statistics.median(rates) if rates else None

    def given(self) -> dict[str, str]:
        """The overrides by key, without the marks of adding; of a key given twice, the last."""
        pairs = (text.partition("=") for text in self.overrides)
        return {key if key.startswith("~") else key.lstrip("+"): value for key, _, value in pairs}

    def setting(self, key: str) -> str:
        """A key's value as text: as it was given, else as the configuration has it; empty where nobody says."""
        given = self.given()
        return given[key] if key in given else _text(self.settings[key]) if key in self.settings else ""


def find_runs(folder: Path) -> list[Run]:
    """All runs at any depth of a folder, itself included, by name with numbers in order. Links are not followed.

    Raises:
        UserError: no such folder, or none of a run in it.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give a sweep's folder, or any with runs below it.")
    found = []
    for place, folders, files in os.walk(folder):
        names = {*folders, *files}
        if names.intersection(MARKS):
            found.append(Path(place))
        folders[:] = [name for name in folders if not name.startswith(".") and name != "checkpoints"]
    if not found:
        raise UserError(f"{folder}: no run below it (a run's folder has {', '.join(MARKS[:2])} or {MARKS[3]}).")
    return [read_run(place, folder) for place in sorted(found, key=_in_order)]


def _in_order(path: Path) -> list[tuple[int, str]]:
    """Sorts 2-... before 10-..."""
    numbers = [(part.partition("-")[0], part) for part in path.parts]
    return [(int(number) if number.isdecimal() and len(number) < 10 else 0, part) for number, part in numbers]


def read_run(folder: Path, base: Path) -> Run:
    """Read a run's folder; what is damaged is told in `why`, and nothing is raised for it."""
    faults: list[str] = []
    record = _record(folder / "run.json", faults)
    failure = _record(folder / "failed.json", faults)
    overrides = _overrides(folder, record, failure, faults)
    settings = _settings(folder / "config.yaml", faults)
    lines = list(_lines(folder / "metrics.jsonl", faults))
    state = _state(folder, record, failure)
    reasons = [_text(each["why"]) for each in (record, failure) if each.get("why")]
    if state in ("failed", "not begun") and not reasons:
        reasons = [_end_of_log(folder / "detlab.log")]
    choices = record["choices"] if isinstance(record.get("choices"), dict) else {}
    objective = settings.get("objective")
    return Run(
        folder=folder,
        name=folder.relative_to(base).as_posix() if folder != base else folder.resolve().name,
        state=state,
        why="; ".join([*reasons[:1], *faults]),
        overrides=tuple(overrides),
        settings={**settings, **{str(key): value for key, value in choices.items()}},
        objective=objective if isinstance(objective, str) else None,
        lines=lines,
        seconds=_seconds(record),
        commit=_commit(record),
    )


def _record(path: Path, faults: list[str]) -> dict[str, Any]:
    """A JSON object; empty where there is none, or none that can be read."""
    if not path.exists():
        return {}
    try:
        content = json_of(path)
    except (OSError, ValueError) as error:
        faults.append(f"{path.name} cannot be read ({error})")
        return {}
    if not isinstance(content, dict):
        faults.append(f"{path.name} is no JSON object")
        return {}
    return content


def _end_of_log(path: Path) -> str:
    """The last line of a log: what a job that failed before its records began has left."""
    try:
        lines = path.read_bytes()[-4096:].decode("utf-8", "replace").split("\n")
    except OSError:
        lines = []
    said = [line.strip() for line in lines if line.strip()]
    return (
        f"no reason is recorded; its log ends with: {said[-1]}" if said else "no reason is recorded, and nothing logged"
    )


def _state(folder: Path, record: Mapping[str, Any], failure: Mapping[str, Any]) -> str:
    if record:
        state = record.get("state")
        if state == "running" and was_left(folder):
            return "cut off"
        return state if isinstance(state, str) and state in STATES else "damaged"
    if (folder / "run.json").exists():
        return "damaged"
    return "failed" if failure or (folder / "failed.json").exists() else "not begun"


def _overrides(folder: Path, record: Mapping[str, Any], failure: Mapping[str, Any], faults: list[str]) -> list[str]:
    """From the record of the run, else of its failure, else from Hydra's own."""
    for each in (record, failure):
        listed = each.get("overrides")
        if isinstance(listed, list):
            return [text for text in listed if isinstance(text, str)]
    path = folder / ".hydra" / "overrides.yaml"
    try:
        return texts_of(path) if path.exists() else []
    except (OSError, ValueError) as error:
        faults.append(f".hydra/overrides.yaml cannot be read ({error})")
        return []


def _settings(path: Path, faults: list[str]) -> dict[str, Any]:
    """A saved configuration, flat."""
    if not path.exists():
        return {}
    from omegaconf import OmegaConf

    try:
        content = OmegaConf.to_container(saved_config(path.read_text(encoding="utf-8"), path))
    except (OSError, UnicodeDecodeError, UserError) as error:
        faults.append(f"{path.name} cannot be read ({' '.join(str(error).split())})")
        return {}
    return dict(_flat(content))


def _flat(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in node.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _lines(path: Path, faults: list[str]) -> Iterator[Line]:
    """The lines that can be read; a last line that is not whole is one that is being written."""
    if not path.exists():
        return
    bad = 0
    try:
        texts = path.read_bytes().split(b"\n")
    except OSError as error:
        faults.append(f"{path.name} cannot be read ({error})")
        return
    for text in texts[:-1]:
        try:
            content = json.loads(text, parse_constant=lambda _: None)
        except (ValueError, RecursionError):
            content = None
        if isinstance(content, dict):
            yield {tag: value for tag, value in content.items() if value is None or _is_number(value)}
        else:
            bad += 1
    if bad:
        faults.append(f"{bad} line(s) of {path.name} cannot be read")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= 1e300


def _is_score(tag: str) -> bool:
    return tag.startswith("val/") and "/" in tag.removeprefix("val/")


def _seconds(record: Mapping[str, Any]) -> float | None:
    try:
        ended, started = (datetime.fromisoformat(record[key]) for key in ("ended", "started"))
        return (ended - started).total_seconds()
    except (KeyError, TypeError, ValueError):
        return None


def _commit(record: Mapping[str, Any]) -> str:
    """Of the first repository: the working folder's where that is one, else detlab's."""
    code = record.get("code")
    first = code[0] if isinstance(code, list) and code and isinstance(code[0], dict) else {}
    commit = first.get("commit")
    return commit[:10] + ("+" if first.get("patch") else "") if isinstance(commit, str) else ""


def _text(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return "null" if value is None else str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
