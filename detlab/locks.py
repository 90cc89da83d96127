"""One run folder, one run: who is training there now?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from detlab.config import processes_announced
from detlab.errors import UserError

_NAME = ".lock"


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other runs out of a run's folder; the lock ends with the process, however that ends.

    Under torchrun the processes share the folder, and nobody is kept out.

    Raises:
        UserError: another process is training there.
    """
    if processes_announced() > 1:
        yield
        return
    lock = FileLock(folder / _NAME)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(
            f"{folder}: another process is training there now; wait for its end, or choose another folder."
        ) from None
    try:
        yield
    finally:
        lock.release()


def is_taken(folder: Path) -> bool:
    """Whether a process is training in a folder now."""
    if not (folder / _NAME).exists():
        return False
    lock = FileLock(folder / _NAME)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False


def was_left(folder: Path) -> bool:
    """Whether a process trained in a folder, and trains there no more; a run under torchrun does not say."""
    return (folder / _NAME).exists() and not is_taken(folder)
