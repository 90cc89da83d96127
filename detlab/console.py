"""What a run shows while it goes: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from rich.console import Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

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
        bar: whether to show one where the output is a terminal.
    """

    def __init__(self, total_steps: int, *, bar: bool) -> None:
        self.total_steps = total_steps
        self._on_terminal = bar and sys.stdout.isatty()
        self._progress = Progress(
            TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"),
            TimeRemainingColumn(),
        )  # fmt: skip
        self._task = self._progress.add_task("training", total=total_steps)
        self._said = Text()

    @contextmanager
    def open(self) -> Iterator[Console]:
        """Show the bar with what the last step said below it; log lines then go above them."""
        if not self._on_terminal:
            yield self
            return
        out = sys.stdout
        handlers = [h for h in logging.root.handlers if isinstance(h, logging.StreamHandler) and h.stream is out]
        with Live(Group(self._progress, self._said), transient=True, refresh_per_second=4):
            for handler in handlers:
                handler.setStream(sys.stdout)
            try:
                yield self
            finally:
                for handler in handlers:
                    handler.setStream(out)

    def step(self, step: int, said: str) -> None:
        """Move the bar; without a bar, say it."""
        if self._on_terminal:
            self._progress.update(self._task, completed=step)
            self._said.plain = said
        else:
            log.info("%s", said)

    def say(self, text: str) -> None:
        """A line that stays."""
        log.info("%s", text)
