"""Where a command writes: into a new folder, or into one that holds nothing of the same names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from detlab.errors import UserError


def refuse_existing(out: Path, names: Sequence[str], *, overwrite: bool) -> None:
    """Refuse an `--out` in which files would be replaced, unless told to.

    Args:
        out: the folder; need not exist.
        names: relative names of what will be written.
        overwrite: whether `--overwrite` was given.

    Raises:
        UserError: it is a file, or holds one of the names.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"--out: {out} is a file; name a folder.")
    existing = [name for name in names if (out / name).exists()]
    if existing and not overwrite:
        more = f" and {len(existing) - 1} more" if len(existing) > 1 else ""
        raise UserError(f"--out: {out} holds {existing[0]}{more} already; name another folder, or add --overwrite.")


def new_folder(parent: Path, name: str) -> Path:
    """Create a folder that nobody else has: `parent/name`, else `parent/name-2` and so on."""
    parent.mkdir(parents=True, exist_ok=True)
    folder, number = parent / name, 1
    while True:
        try:
            folder.mkdir()
        except FileExistsError:
            number += 1
            folder = parent / f"{name}-{number}"
        else:
            return folder
