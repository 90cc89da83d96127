"""When a run ends before its last epoch: a limit is reached, the user presses Ctrl-C, or a scheduler wants the machine."""

from __future__ import annotations

import logging
import signal
import time
from signal import Signals
from types import FrameType

from detlab import distributed
from detlab.signals import SIGNALS, handling, name_of

log = logging.getLogger(__name__)


class RunStopping:
    """Asked after every step whether to go on; all processes of a run are given the same answer.

    As a context manager it takes Ctrl-C, SIGTERM and SIGUSR1: the first one lets the step end, so that a whole state can be
    saved; a second Ctrl-C leaves at once. `told` says that one reached this process, `interrupted` that all of them know.

    Args:
        max_steps: optimizer steps in all; None for no limit.
        max_minutes: of this process, from the construction; None for no limit.
    """

    def __init__(self, *, max_steps: int | None, max_minutes: float | None) -> None:
        self.max_steps = max_steps
        self._deadline = None if max_minutes is None else time.monotonic() + 60 * max_minutes
        self._signal = 0
        self.ended_by: Signals | None = None
        self.reason: str | None = None

    @property
    def told(self) -> bool:
        return self._signal > 0

    @property
    def interrupted(self) -> bool:
        return self.ended_by is not None

    def at(self, step: int) -> bool:
        """Whether to stop after optimizer step `step`; `reason` then says why."""
        late = self._deadline is not None and time.monotonic() >= self._deadline
        full = self.max_steps is not None and step >= self.max_steps
        self._take(distributed.largest(4 * self._signal + 2 * full + late))
        return self.reason is not None

    def agree(self) -> bool:
        """Whether any process has been told to stop by a signal."""
        self._take(distributed.largest(4 * self._signal))
        return self.interrupted

    def _take(self, agreed: int) -> None:
        if agreed >= 4:
            self.ended_by = Signals(agreed // 4)
            self.reason = name_of(self.ended_by)
        elif agreed:
            self.reason = "max_steps" if agreed >= 2 else "max_minutes"

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._signal:
            raise KeyboardInterrupt
        if not self._signal:
            again = "; press it again to leave at once" if number == signal.SIGINT else ""
            log.info("%s: the state is saved after this step%s", name_of(number), again)
        self._signal = self._signal or number

    def __enter__(self) -> RunStopping:
        self._handling = handling(SIGNALS, self._on_signal)
        self._handling.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._handling.__exit__(None, None, None)
