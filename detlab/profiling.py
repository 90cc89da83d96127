"""Where the time of a training step goes: a trace and a table, by torch's profiler."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch.profiler import ProfilerActivity, profile, schedule

log = logging.getLogger(__name__)

# The first steps allocate memory and choose kernels; they say nothing about the rest.
WARMUP_STEPS = 2


def activities() -> list[ProfilerActivity]:
    """What torch's profiler can watch here."""
    return [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]


def _sorted_by() -> str:
    return "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"


def table(profiler: Any, rows: int) -> str:
    """The operations that took the most time, of a GPU where there is one."""
    return profiler.key_averages().table(sort_by=_sorted_by(), row_limit=rows, max_name_column_width=48)


def profiled(batches: Iterable[Any], folder: Path, cfg: DictConfig) -> Iterator[Any]:
    """The same batches; meanwhile the profiler watches, and in the end its table is said.

    After two steps of warm-up it records `cfg.profile` steps. It leaves in the run's folder `profile.txt`, the table of what took
    the most time, and `trace.pt.trace.json`, for https://ui.perfetto.dev or TensorBoard's profiler plugin.
    """
    wanted = schedule(wait=0, warmup=WARMUP_STEPS * cfg.accumulate, active=cfg.profile * cfg.accumulate, repeat=1)

    def write(profiler: Any) -> None:
        said = table(profiler, 25)
        (folder / "profile.txt").write_text(said)
        profiler.export_chrome_trace(str(folder / "trace.pt.trace.json"))
        log.info(
            "%d steps, by %s:\n%s\nall of it: %s, %s",
            cfg.profile,
            _sorted_by(),
            said,
            folder / "profile.txt",
            "trace.pt.trace.json",
        )

    with profile(activities=activities(), schedule=wanted, on_trace_ready=write) as profiler:
        for batch in batches:
            yield batch
            profiler.step()
