"""`detlab rerun`: the same run once more, and what is not the same any more."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from detlab.errors import UserError
from detlab.untrusted import json_of, printable, saved_config

# What of a run.json is held against the present.
_COMPARED = ("fingerprints", "python", "versions", "hardware", "code")


def main(argv: list[str]) -> int:
    """Start a run with another's overrides, in a folder of its own, after saying what differs now.

    Args:
        argv: the arguments after `detlab rerun`: a run's folder, and overrides that are put behind its own.

    Returns:
        The new run's, or sweep's, exit status; with `--dry-run`, 0.

    Raises:
        UserError: no run's folder.
        SystemExit: argparse's, on `--help` (0) and on arguments that it does not know (2).
    """
    arguments = _parser().parse_intermixed_args(argv)
    from detlab.config import check, register
    from detlab.preflight import compose_run, recorded_and_new

    register()
    if arguments.failed:
        return _repeat_failed(arguments.run, arguments.overrides, only_said=arguments.dry_run)
    overrides = recorded_and_new(arguments.run, arguments.overrides)
    record = json_of(arguments.run / "run.json")
    lacking = [key for key in _COMPARED if key not in record]
    if lacking:
        raise UserError(f"{arguments.run}/run.json: damaged, or of an older detlab; it lacks {', '.join(lacking)}.")
    cfg = compose_run(overrides)
    check(cfg)
    found = list(differences(arguments.run, record, cfg))
    print(
        f"{arguments.run}: {'differs now:' if found else 'nothing that is known of it differs now'}", *found, sep="\n  "
    )
    if arguments.dry_run:
        return 0
    from detlab import run

    sys.argv[1:] = overrides
    return run.main()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="detlab rerun",
        description="Repeats a run in a new folder, with its own overrides and those given, and says what differs now: settings, "
        "data, code, versions, hardware.",
        epilog="example: detlab rerun outputs/2026-01-31/12-00-00. A run with classes of your own needs allow=[...] again.",
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="a run's folder; with --failed a sweep's")
    parser.add_argument("overrides", metavar="OVERRIDE", nargs="*", default=[], help="key=value, behind the run's own")
    parser.add_argument(
        "--failed", action="store_true", help="the jobs of a sweep that are not done, in their own folders"
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what differs, or which jobs those are")
    return parser


def _repeat_failed(sweep: Path, overrides: list[str], *, only_said: bool) -> int:
    """Do the jobs of a sweep that are not done: from their state where they have one, else from the beginning."""
    from hydra.core.override_parser.types import Quote, QuotedString

    from detlab import run
    from detlab.preflight import overrides_parser
    from detlab.sweeps import SETTLED, brief, jobs_of

    jobs = jobs_of(sweep, overrides_parser())
    left = [job for job in jobs if job.outcome.state not in SETTLED]
    at_work = sum(job.outcome.state == "at work" for job in jobs)
    print(f"{sweep}: {len(left)} of {len(jobs)} jobs to repeat" + (f", {at_work} at work now" if at_work else ""))
    for job in left:
        why = f": {brief(job.outcome.why)}" if job.outcome.why else ""
        print(printable(f"  {job.folder.name}  {job.outcome.state}{why}"))
    if only_said or not left:
        return 0
    swept = "hydra.sweep.dir=" + QuotedString(str(sweep), Quote.single).with_quotes()
    sys.argv[1:] = ["hydra/sweeper=repeat", swept, "hydra.mode=MULTIRUN", *overrides]
    return run.main()


def differences(run: Path, record: Mapping[str, Any], cfg: Any) -> Iterator[str]:
    """What of a recorded run is not the same now, a line each.

    Args:
        run: its folder.
        record: its run.json.
        cfg: the configuration composed now.
    """
    from detlab import parts, records
    from detlab.data.fingerprint import fingerprint
    from detlab.engine import select_device
    from detlab.resumption import HARMLESS, changes, plain

    path = run / "config.yaml"
    try:
        then = plain(saved_config(path.read_text(encoding="utf-8"), path))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}).") from None
    # A run writes down what it took `auto` for.
    settings = {key: pair for key, pair in changes(then, plain(cfg), passed_over=HARMLESS).items() if pair[1] != "auto"}
    yield from (f"{key}: {before} -> {now}" for key, (before, now) in settings.items())
    data = {part: fingerprint(images) for part, images in parts.data_sets(cfg).items()}
    yield from _different("data, the fingerprint of", record["fingerprints"], data)
    now = records.circumstances(select_device(cfg.device, cfg.precision))
    yield from _different("", {"python": record["python"]}, {"python": now["python"]})
    yield from _different("version of", record["versions"], now["versions"])
    # The processes are started later.
    hardware = {key: value for key, value in record["hardware"].items() if key not in ("processes", "threads")}
    yield from _different("hardware,", hardware, {key: now["hardware"][key] for key in hardware})
    yield from _code(record["code"], records.code_now())


def _different(what: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for key in (*then, *(key for key in now if key not in then)):
        before, after = (side[key] if key in side else "not there" for side in (then, now))
        if before != after:
            yield f"{what} {key}: {before} -> {after}".strip()


def _code(then: list[dict[str, Any]], now: list[dict[str, Any]]) -> Iterator[str]:
    commits = [{code["folder"]: code["commit"] for code in side} for side in (then, now)]
    yield from _different("code, the commit in", *commits)
    for code in then:
        if code["patch"] is not None:
            yield f"code in {code['folder']}: the run had uncommitted changes, kept in its {code['patch']}"
    for code in now:
        if code["patch"]:
            yield f"code in {code['folder']}: there are uncommitted changes now"
