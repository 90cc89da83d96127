"""Writing a file whole or not at all, and reading back only what is whole and cannot run code."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch

from detlab.errors import UserError

# What a seal begins with, in the comment of the zip file that torch writes; the digest of all that stands before follows.
_SEAL = b"detlab blake2b "
_COMMENT = len(_SEAL) + 2 * 32
_END_RECORD = 22  # bytes of a zip file's last record, without its comment


class DamagedFileError(UserError):
    """A file that is not what was written: cut off, or with other bytes."""


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file to write in, which takes the place of `path` only once it is whole and on the disk.

    A reader, at any instant, sees the old file or the new one; after a failure the old one is still there.

    Raises:
        OSError: with the file's name: the disk is full, read-only, or the like.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with beside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
        sync_folder(path.parent)
    except (OSError, RuntimeError) as error:
        # torch's writer covers the system's error with one of its own, "unexpected pos 57596032 vs 57595968".
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        raise OSError(cause.errno, cause.strerror, str(path)) from error
    finally:
        beside.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Bring a folder's names to the disk: a file that was renamed is else lost with the machine's power."""
    # Not every system opens folders, and not every file system syncs them.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def keep_as(path: Path, older: Path) -> None:
    """Give a file a second name, in place of what had that name; the first name holds it at every instant."""
    beside = older.with_name(f".{older.name}.{os.getpid()}.tmp")
    beside.unlink(missing_ok=True)
    try:
        os.link(path, beside)
    except OSError:  # a file system without hard links: for an instant there is the older name only
        path.replace(older)
    else:
        beside.replace(older)
        beside.unlink(missing_ok=True)  # which stays where both were one file before


def clear_unfinished(folder: Path) -> None:
    """Delete what writes that were killed have left in a folder."""
    for left in folder.glob(".*.tmp"):
        left.unlink(missing_ok=True)


class _Sealing:
    """A file for `torch.save` that digests what passes through it, and closes the zip file with the digest as its comment."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._digest = hashlib.blake2b(digest_size=32)
        self._held = b""  # the last bytes so far: in the end the record that must tell the comment's length

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        if len(view) > _END_RECORD:
            self._pass_on(self._held)
            self._pass_on(view[:-_END_RECORD])
            self._held = bytes(view[-_END_RECORD:])
        else:
            joined = self._held + bytes(view)
            self._pass_on(joined[:-_END_RECORD])
            self._held = joined[-_END_RECORD:]
        return len(view)

    def _pass_on(self, data: bytes | memoryview) -> None:
        self._digest.update(data)
        self._file.write(data)

    def flush(self) -> None: ...

    def seal(self) -> None:
        assert self._held.startswith(b"PK\x05\x06"), "torch writes zip files"
        self._pass_on(self._held[:-2] + _COMMENT.to_bytes(2, "little"))
        self._file.write(_SEAL + self._digest.hexdigest().encode())


def save(content: dict[str, Any], path: Path) -> None:
    """`torch.save`, written whole or not at all, with a digest of the whole file in the zip's comment, for `load`."""
    with replacing(path) as file:
        sealing = _Sealing(file)
        torch.save(content, sealing)  # pyright: ignore[reportArgumentType]
        sealing.seal()


def write_text(path: Path, text: str) -> None:
    """A text file in UTF-8, written whole or not at all."""
    with replacing(path) as file:
        file.write(text.encode())


def load(path: Path, *, checked: bool = True) -> Any:
    """What `torch.save` wrote, after its checksums are verified, on the CPU.

    torch reads most single-byte damage without a word; the digest that `save` leaves finds all of it, and in a file that others
    wrote the zip's own CRCs find what touches its content. Only tensors and plain values are read (`weights_only`), so a file
    from a stranger cannot run code.

    Args:
        path: the file.
        checked: False takes torch's format of before 2020 too, which has no checksums.

    Raises:
        DamagedFileError: no torch file, cut off, or with other bytes than were written.
        UserError: no such file, or with objects in it that are neither tensors nor plain values.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file.")
    if checked or zipfile.is_zipfile(path):
        _verify(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = next((line.strip() for line in str(error).splitlines() if "GLOBAL" in line or "global" in line), "")
        raise UserError(
            f"{path}: holds objects other than tensors and plain values and was not loaded, since it could run code. {reason}"
        ) from None
    except Exception as error:  # a damaged file makes its reader stumble over anything
        raise DamagedFileError(
            f"{path}: not a file that torch.save wrote, or cut off ({type(error).__name__}). Take another copy."
        ) from None


def _verify(path: Path) -> None:
    """Hold a file against its seal, or where it has none against the checksums of its parts.

    Raises:
        DamagedFileError: they do not fit.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            comment = archive.comment
            damaged = None if comment else archive.testzip()
    except Exception as error:  # a damaged archive raises whatever its reader stumbles over
        raise DamagedFileError(
            f"{path}: not a file that torch.save wrote, or cut off ({error}). Take another copy."
        ) from None
    if comment:
        if comment != _SEAL + _digest(path, less=_COMMENT):
            raise DamagedFileError(f"{path}: damaged: its checksum does not fit. Take another copy.")
        return
    # What stands behind the last record would be a seal that is damaged itself, and one that it announces is cut off.
    with path.open("rb") as file:
        file.seek(-_END_RECORD, os.SEEK_END)
        record = file.read()
    ends = record.startswith(b"PK\x05\x06") and record.endswith(b"\x00\x00")
    if damaged is not None or not ends:
        what = f"the checksum of {damaged} does not fit" if damaged is not None else "its end is not that of a zip file"
        raise DamagedFileError(f"{path}: damaged: {what}. Take another copy.")


def _digest(path: Path, *, less: int) -> bytes:
    """The digest of a file, in hexadecimal, but for its last `less` bytes."""
    digest = hashlib.blake2b(digest_size=32)
    left = path.stat().st_size - less
    with path.open("rb") as file:
        while left > 0 and (block := file.read(min(left, 1 << 20))):
            digest.update(block)
            left -= len(block)
    return digest.hexdigest().encode()
