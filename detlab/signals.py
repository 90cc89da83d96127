"""The signals that end a process: Ctrl-C, and those of a scheduler that wants its machine back."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from signal import Signals
from types import FrameType

# Ctrl-C, what a scheduler ends a job with, and what it warns of that with.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
REQUEUE = 75  # EX_TEMPFAIL of sysexits.h: run it again


class Interrupted(KeyboardInterrupt):
    """Left on a signal. Not an `Exception`, so that it ends a sweep too.

    Attributes:
        status: the exit status: 130 on Ctrl-C, else 75.
    """

    def __init__(self, message: str, status: int = 130) -> None:
        super().__init__(message, status)
        self.status = status

    def __str__(self) -> str:
        return str(self.args[0])


def name_of(number: int) -> str:
    """What a user calls a signal: Ctrl-C, or its own name."""
    return "Ctrl-C" if number == signal.SIGINT else Signals(number).name


def exit_status(number: int) -> int:
    """The exit status of a process that left on a signal."""
    return 130 if number == signal.SIGINT else REQUEUE


@contextmanager
def handling(signals: tuple[Signals, ...], handle: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Signals handled so within, and as before behind it; outside the main thread, where Python lets nobody, not at all."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handle) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def leaving_at_once() -> Iterator[None]:
    """Outside of training, a scheduler's signal ends a process at once, with `Interrupted`; Ctrl-C is as Python has it."""

    def leave(number: int, _frame: FrameType | None) -> None:
        raise Interrupted(f"{name_of(number)}: left outside of training; run it again.", REQUEUE)

    with handling((signal.SIGTERM, signal.SIGUSR1), leave):
        yield
