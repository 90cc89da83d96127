"""What a benchmark found, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def lines(report: Mapping[str, Any]) -> list[str]:
    """The report of `detlab.benchmark.measure.measured`, line by line."""
    work = report["work"]
    done = ", ".join(f"{key} {value}" for key, value in list(work.items())[2:])
    versions = ", ".join(
        f"{name} {version}" for name, version in report["versions"].items() if name.startswith("torch")
    )
    hardware = ", ".join(f"{key} {value}" for key, value in report["hardware"].items())
    return [
        f"{work['bench']}, {work['name']}: {done}",
        *(_table(report) if work["bench"] == "growth" else _compared(report)),
        *_steps(report),
        f"{report['threads']} threads; {hardware}; python {report['python']}, {versions}",
        *report.get("profiles", []),
    ]


def _compared(report: Mapping[str, Any]) -> list[str]:
    """Both sides' medians and spread, and their ratio."""
    memory, unit = report["memory"], report["unit"]
    low, high = report["ratio_of_rounds"]
    learns = report["work"]["bench"] in ("train", "predict")
    arithmetic = {"ours": f" ({report['precision']})", "theirs": " (fp32)"}
    names = {side: name + learns * arithmetic[side] for side, name in (("ours", "detlab"), ("theirs", "plain"))}
    return [
        *(
            f"{name:<13}  {report[side]:.3f} s a {unit} ({min(report['all'][side]):.3f} to {max(report['all'][side]):.3f}), "
            f"{memory[side] / 2**20:.0f} MiB at its peak"
            for side, name in names.items()
        ),
        f"ratio {report['ratio']:.2f} of medians ({low:.2f} to {high:.2f} in {report['rounds']} rounds), memory "
        f"{memory['ours'] / memory['theirs']:.2f}",
    ]


def _steps(report: Mapping[str, Any]) -> list[str]:
    """Of a start, its parts and what the commands take that start nothing."""
    parts = [
        f"{side}: " + ", ".join(f"{step} {seconds:.3f} s" for step, seconds in steps.items())
        for side, steps in report.get("steps", {}).items()
    ]
    return parts + [f"python -m detlab.run {flags}: {s:.3f} s" for flags, s in report.get("commands", {}).items()]


def _table(report: Mapping[str, Any]) -> list[str]:
    """Of growth, a line for each number of each kind, and how steeply the kind grows."""
    rows = []
    for row in report["rows"]:
        rate = f", {row['images_a_second']:.2f} images a second" if "images_a_second" in row else ""
        rows.append(f"{row['of']:<10}{row['at']:>9.4g}{row['seconds']:>12.4f} s{rate}")
    steep = [f"{kind}: seconds grow with the power {power:.2f}" for kind, power in report["exponents"].items()]
    return ["seconds of an evaluation without its model; of processes, of an image in training", *rows, *steep]
