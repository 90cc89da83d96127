"""Writing a file whole or not at all, and reading back only what is whole and cannot run code."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch

from detlab.errors import UserError


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
    except (OSError, RuntimeError) as error:
        # torch's writer covers the system's error with one of its own, "unexpected pos 57596032 vs 57595968".
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        raise OSError(cause.errno, cause.strerror, str(path)) from error
    finally:
        beside.unlink(missing_ok=True)


def save(content: dict[str, Any], path: Path) -> None:
    """`torch.save`, written whole or not at all."""
    with replacing(path) as file:
        torch.save(content, file)


def write_text(path: Path, text: str) -> None:
    """A text file in UTF-8, written whole or not at all."""
    with replacing(path) as file:
        file.write(text.encode())


def load(path: Path, *, checked: bool = True) -> Any:
    """What `torch.save` wrote, after its checksums are verified, on the CPU.

    torch reads most single-byte damage without a word; the zip's own CRCs find it. Only tensors and plain values are
    read (`weights_only`), so a file from a stranger cannot run code.

    Args:
        path: the file.
        checked: False takes torch's format of before 2020 too, which has no checksums.

    Raises:
        UserError: no such file, no torch file, damaged, or with objects in it that are neither tensors nor plain values.
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
        raise UserError(
            f"{path}: not a file that torch.save wrote, or cut off ({type(error).__name__}). Take another copy."
        ) from None


def _verify(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except Exception as error:  # a damaged archive raises whatever its reader stumbles over
        raise UserError(f"{path}: not a file that torch.save wrote, or cut off ({error}). Take another copy.") from None
    if damaged is not None:
        raise UserError(f"{path}: damaged: the checksum of {damaged} does not fit. Take another copy.")
