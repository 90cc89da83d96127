"""`detlab bench`: how much faster is detlab than the plain torchvision loop, here, on the same work?"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detlab.errors import UserError

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from detlab.benchmark.turns import Times

WORKS = ("train", "predict")
# Both sides train by the tutorial's optimizer, at a rate at which random weights stay what they are.
DEFAULTS = ("optimizer=sgd", "optimizer.lr=0.0001", "optimizer.weight_decay=0.0005")


@dataclass(frozen=True)
class Settings:
    """What is timed, by the `bench` overrides.

    Args:
        work: `bench=`, one of `WORKS`.
        rounds: `bench.rounds=`, of each side.
        units: `bench.units=`, steps or images in a round.
        profile: `bench.profile=`, whether to tell where the time goes, by operation.
    """

    work: str = "train"
    rounds: int = 5
    units: int = 3
    profile: bool = False


def main(argv: list[str]) -> int:
    """Time both sides in turns, and say how they compare.

    Args:
        argv: the arguments after `detlab bench`.

    Returns:
        0.

    Raises:
        UserError: an override that does not fit.
        SystemExit: argparse's, on `--help` (0) and on arguments that it does not know (2).
    """
    arguments = _parser().parse_intermixed_args(argv)
    # Only now: all this takes time, which --help should not.
    from detlab.config import check, register
    from detlab.preflight import compose_run

    settings, overrides = settings_of(arguments.overrides)
    register()
    cfg = compose_run([*DEFAULTS, *overrides])
    check(cfg)
    report = measured(cfg, settings, quiet=arguments.json)
    if arguments.json:
        print(json.dumps({key: value for key, value in report.items() if key != "profiles"}))
    else:
        print("\n".join(_lines(report)))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="detlab bench",
        description="Times detlab against torchvision's own loop on the same images, weights, input size and regions, in turns, "
        "and prints medians and their ratio. torchvision's default would enlarge small images to 800 pixels; here both sides "
        "resize as model.min_size and model.max_size say.",
        epilog="example: detlab bench bench=train model=mobilenet dataset.difficulty=hard precision=bf16",
        allow_abbrev=False,
    )
    parser.add_argument(
        "overrides",
        metavar="OVERRIDE",
        nargs="*",
        help="key=value, group=choice, as of a run; bench=train (the default) or predict, bench.rounds=5, bench.units=3 (steps or "
        "images in a round), bench.profile=true (where the time goes, by operation)",
    )
    parser.add_argument(
        "--json", action="store_true", help="one JSON object: ratio, ours, theirs, rounds, work and more"
    )
    return parser


def settings_of(overrides: list[str]) -> tuple[Settings, list[str]]:
    """The settings of the benchmark, and the overrides that are a run's.

    Raises:
        UserError: an unknown setting, or a value that it cannot take.
    """
    from detlab.config import did_you_mean

    chosen: dict[str, Any] = {}
    others = []
    for override in overrides:
        key, _, value = override.partition("=")
        if key == "bench":
            chosen["work"] = _one_of(key, value, WORKS)
        elif key == "bench.profile":
            chosen["profile"] = _one_of(key, value, ("true", "false")) == "true"
        elif key in ("bench.rounds", "bench.units"):
            if not value.isdecimal() or int(value) < 1:
                raise UserError(f"{key}: {value!r} is not allowed; allowed: whole numbers from 1.")
            chosen[key.removeprefix("bench.")] = int(value)
        elif key.startswith("bench."):
            known = ["bench.rounds", "bench.units", "bench.profile"]
            raise UserError(f"{key}: no such key.{did_you_mean(key, known)} There are {', '.join(known)}.")
        else:
            others.append(override)
    return Settings(**chosen), others


def _one_of(key: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise UserError(f"{key}: {value!r} is not allowed; allowed: {', '.join(allowed)}.")
    return value


def measured(cfg: DictConfig, settings: Settings, *, quiet: bool) -> dict[str, Any]:
    """Both sides timed: medians, spread, ratio, memory, and on what."""
    # Only now: torch takes seconds, which --help and a wrong key should not.
    from omegaconf import OmegaConf

    from detlab.benchmark.contestants import CONTESTANTS, UNITS, write_weights
    from detlab.benchmark.turns import Rival, in_turns
    from detlab.engine import select_device
    from detlab.records import circumstances

    config = OmegaConf.to_yaml(OmegaConf.create(OmegaConf.to_container(cfg, resolve=False)))  # pyright: ignore
    device = select_device(cfg.device, cfg.precision)

    def said(number: int, ours: float, theirs: float) -> None:
        if not quiet:
            print(f"round {number}: {ours:.3f} s, plain {theirs:.3f} s", file=sys.stderr)

    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.pt"
        write_weights(cfg, weights)
        ours, theirs = CONTESTANTS[settings.work]
        with (
            Rival(ours, config, weights, settings.units) as first,
            Rival(theirs, config, weights, settings.units) as second,
        ):
            times = in_turns(first, second, settings.rounds, said)
            peaks = [side.ask("peak_memory") for side in (first, second)]
            profiles = [side.ask("profile") for side in (first, second)] if settings.profile else []
    return {
        **_numbers(times),
        "unit": UNITS[settings.work],
        "rounds": settings.rounds,
        "units_a_round": settings.units,
        "memory": {"ours": peaks[0], "theirs": peaks[1]},
        "work": _work(cfg, settings),
        "precision": device.precision,
        "threads": _threads(),
        **circumstances(device),
        "profiles": profiles,
    }


def _threads() -> int:
    import torch

    return torch.get_num_threads()


def _numbers(times: Times) -> dict[str, Any]:
    return {
        "ratio": times.ratio,
        "ours": statistics.median(times.ours),
        "theirs": statistics.median(times.theirs),
        "ratio_of_rounds": [min(times.ratios), max(times.ratios)],
        "all": {"ours": list(times.ours), "theirs": list(times.theirs)},
    }


def _work(cfg: DictConfig, settings: Settings) -> dict[str, Any]:
    """What both sides did, in plain values."""
    model = cfg.model
    return {
        "bench": settings.work,
        "name": cfg.name,
        "images_a_step": cfg.batch_size if settings.work == "train" else 1,
        "min_size": _plain(model.get("min_size")),
        "max_size": model.get("max_size"),
        "enlarge_to": model.get("enlarge_to"),
        "regions_an_image": model.get(
            "box_batch_size_per_image" if settings.work == "train" else "rpn_post_nms_top_n_test"
        ),
        "workers": cfg.workers,
    }


def _plain(value: Any) -> Any:
    from omegaconf import OmegaConf

    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def _lines(report: dict[str, Any]) -> list[str]:
    """The report in words."""
    work, memory = report["work"], report["memory"]
    low, high = report["ratio_of_rounds"]
    versions = ", ".join(
        f"{name} {version}" for name, version in report["versions"].items() if name.startswith("torch")
    )
    hardware = ", ".join(f"{key} {value}" for key, value in report["hardware"].items())
    spread = {side: f"{min(times):.3f} to {max(times):.3f}" for side, times in report["all"].items()}
    return [
        f"{work['bench']}, {work['name']}: " + ", ".join(f"{key} {value}" for key, value in list(work.items())[2:]),
        f"detlab ({report['precision']})  {report['ours']:.3f} s a {report['unit']} ({spread['ours']}), "
        f"{memory['ours'] / 2**20:.0f} MiB at its peak",
        f"plain (fp32)   {report['theirs']:.3f} s a {report['unit']} ({spread['theirs']}), "
        f"{memory['theirs'] / 2**20:.0f} MiB at its peak",
        f"ratio {report['ratio']:.2f} of medians ({low:.2f} to {high:.2f} in {report['rounds']} rounds), memory "
        f"{memory['ours'] / memory['theirs']:.2f}",
        f"{report['threads']} threads; {hardware}; python {report['python']}, {versions}",
        *report["profiles"],
    ]
