"""What a run shows while it goes: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

log = logging.getLogger(__name__)


def peak_memory(device: torch.device) -> float:
    """Largest memory so far in MiB: torch's on a GPU, else this process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def duration(seconds: float) -> str:
    """Hours, minutes and seconds: 1:02:03 or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Console:
    """The bar of a run, and its lines.

    Args:
        total_steps: optimizer steps of the whole run.
    """

    def __init__(self, total_steps: int) -> None:
        self.total_steps = total_steps
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[said]}"),
            disable=not sys.stdout.isatty(),
            transient=True,
        )
        self._task = self._progress.add_task("training", total=total_steps, said="")

    @contextmanager
    def open(self) -> Iterator[Console]:
        """Show the bar; log lines then go above it."""
        out = sys.stdout
        handlers = [h for h in logging.root.handlers if isinstance(h, logging.StreamHandler) and h.stream is out]
        with self._progress:
            for handler in handlers:
                handler.setStream(sys.stdout)
            try:
                yield self
            finally:
                for handler in handlers:
                    handler.setStream(out)

    def step(self, step: int, said: str) -> None:
        """Move the bar; without a bar, say it."""
        if self._progress.disable:
            log.info("%s", said)
        else:
            self._progress.update(self._task, completed=step, said=said)

    def say(self, text: str) -> None:
        """A line that stays."""
        log.info("%s", text)
