"""Two contestants in turns: each in a process of its own, one of them at work at any time."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import statistics
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from detlab.errors import BrokenDownError, UserError


class BenchmarkFailedError(RuntimeError):
    """A contestant ended by an error; its own trace is the message."""


class Contestant(Protocol):
    """Does the same work as its rival, as often as it is told to."""

    def warm_up(self) -> None:
        """Do the work, or some of it, once without counting."""
        ...

    def round(self) -> float:
        """Do the work once; seconds of one unit of it."""
        ...

    def profile(self) -> str:
        """Do the work once more, watched; a table of where the time went."""
        ...

    def result(self) -> dict[str, Any]:
        """What the last round found that its rival must find too."""
        ...

    def close(self) -> None:
        """End the processes that load images."""
        ...


class Side(Protocol):
    """A contestant as it is asked from here, wherever it works."""

    def ask(self, what: str) -> Any:
        """What it answers to `warm_up`, `round`, `profile`, `result` or `peak_memory`."""
        ...


@dataclass(frozen=True)
class Times:
    """What two contestants took, in seconds of a unit of work, round by round."""

    ours: Sequence[float]
    theirs: Sequence[float]

    @property
    def ratio(self) -> float:
        """How many times faster ours is, by the medians."""
        return statistics.median(self.theirs) / statistics.median(self.ours)

    @property
    def ratios(self) -> list[float]:
        """The same of each round, where both stood under the same load of the machine."""
        return [theirs / ours for ours, theirs in zip(self.ours, self.theirs, strict=True)]


def peak_memory() -> int:
    """The most memory that this process has held, in bytes: a GPU's, where it used one; 0 where the system does not tell."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    return host_memory("VmHWM")


def host_memory(key: str) -> int:
    """Bytes of this process by Linux: `VmRSS` for what it holds, `VmHWM` for the most that it has held; 0 elsewhere."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:")), 0)


@contextmanager
def heedless_of_ctrl_c() -> Iterator[None]:
    """Processes that begin within take no notice of Ctrl-C, which goes to all of a terminal: this one says so, and ends them."""
    heeded = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, heeded)


class Rival:
    """A contestant in a process of its own.

    Args:
        make: builds it there; a function of a module.
        arguments: for it.

    Raises:
        BenchmarkFailedError: it failed; from any method.
        BrokenDownError: its process was killed; from any method.
    """

    def __init__(self, make: Callable[..., Contestant], *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, sys.path[:], make, arguments))
        with heedless_of_ctrl_c():
            self._process.start()
        theirs.close()
        try:
            self._answer()
        except BaseException:
            self._end(at_once=True)
            raise

    def ask(self, what: str) -> Any:
        """What it answers to `warm_up`, `round`, `profile`, `result` or `peak_memory`."""
        # Where it has died while the other one had its turn, the answer says so.
        with contextlib.suppress(BrokenPipeError):
            self._pipe.send(what)
        return self._answer()

    def _answer(self) -> Any:
        try:
            answer = self._pipe.recv()
        except (EOFError, ConnectionResetError):
            self._process.join()
            if self._process.exitcode == -signal.SIGKILL:
                raise BrokenDownError(
                    "a process of the benchmark was killed, perhaps for want of memory. "
                    "Smaller images or a smaller batch_size need less."
                ) from None
            raise BenchmarkFailedError(
                f"a process of the benchmark ended with {self._process.exitcode}; what it printed stands above."
            ) from None
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._end(at_once=error is not None)

    def _end(self, *, at_once: bool) -> None:
        self._pipe.close()
        self._process.join(0 if at_once else 30)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _serve(pipe: Connection, path: list[str], make: Callable[..., Contestant], arguments: Sequence[Any]) -> None:
    """A contestant's process: answers until nobody asks any more."""
    sys.path[:] = path
    try:
        with closing(make(*arguments)) as contestant, contextlib.suppress(EOFError):
            pipe.send(None)
            while True:
                asked = pipe.recv()
                pipe.send(peak_memory() if asked == "peak_memory" else getattr(contestant, asked)())
    except (UserError, BrokenDownError) as error:
        pipe.send(error)
    except SystemExit:  # of the plain loop, at a loss that is not finite
        pipe.send(BrokenDownError("the plain loop ended by itself; what it printed stands above."))
    except Exception:
        pipe.send(BenchmarkFailedError(traceback.format_exc()))


def in_turns(ours: Side, theirs: Side, rounds: int, said: Callable[[int, float, float], None]) -> Times:
    """Rounds of both, one after the other, each beginning every second time, after a warm-up.

    Args:
        ours: a contestant.
        theirs: its rival.
        rounds: that count.
        said: is told of each round: its number from 1, and both times.
    """
    ours.ask("warm_up")
    theirs.ask("warm_up")
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds):
        order = (0, 1) if number % 2 == 0 else (1, 0)
        for side in order:
            times[side].append((ours, theirs)[side].ask("round"))
        said(number + 1, times[0][-1], times[1][-1])
    return Times(*times)
