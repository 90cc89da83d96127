"""When a run ends before its last epoch: a limit is reached, or the user presses Ctrl-C."""

from __future__ import annotations

import logging
import signal
import threading
import time
from types import FrameType

from detlab import distributed

log = logging.getLogger(__name__)


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, after the state was saved. Not an `Exception`, so that it ends a sweep too."""


class RunStopping:
    """Asked after every step whether to go on; all processes of a run are given the same answer.

    As a context manager it takes Ctrl-C: the first one lets the step end, so that a whole state can be saved; the second one
    leaves at once. `told` says that it reached this process, `interrupted` that all of them know.

    Args:
        max_steps: optimizer steps in all; None for no limit.
        max_minutes: of this process, from the construction; None for no limit.
    """

    def __init__(self, *, max_steps: int | None, max_minutes: float | None) -> None:
        self.max_steps = max_steps
        self._deadline = None if max_minutes is None else time.monotonic() + 60 * max_minutes
        self.told = False
        self.interrupted = False
        self.reason: str | None = None

    def at(self, step: int) -> bool:
        """Whether to stop after optimizer step `step`; `reason` then says why."""
        late = self._deadline is not None and time.monotonic() >= self._deadline
        full = self.max_steps is not None and step >= self.max_steps
        agreed = distributed.largest(4 * self.told + 2 * full + late)
        if agreed:
            self.reason = "interrupted" if agreed >= 4 else "max_steps" if agreed >= 2 else "max_minutes"
        self.interrupted = agreed >= 4
        return self.reason is not None

    def agree(self) -> bool:
        """Whether any process has been told to stop by Ctrl-C."""
        self.interrupted = bool(distributed.largest(self.told))
        self.reason = "interrupted" if self.interrupted else self.reason
        return self.interrupted

    def _interrupt(self, _signal: int, _frame: FrameType | None) -> None:
        if self.told:
            raise KeyboardInterrupt
        self.told = True
        log.info("Ctrl-C: the state is saved after this step; press it again to leave at once")

    def __enter__(self) -> RunStopping:
        # Python lets only the main thread handle signals; a job in another thread is stopped by whoever started it.
        self._before = (
            signal.signal(signal.SIGINT, self._interrupt)
            if threading.current_thread() is threading.main_thread()
            else None
        )
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
