"""Which code ran? The commits of the repositories at hand, and what was changed in them since."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_MOST_UNTRACKED = 100


def repositories(folders: Sequence[Path]) -> list[tuple[dict[str, Any], str]]:
    """The git repositories in which some folders lie, each once; none where git is not there.

    Returns:
        Of each a record (`folder`, `commit`, `untracked`: names of files that git does not know, a hundred at most), and what
        differs from the commit as a patch for `git apply`, empty where nothing does.
    """
    found: dict[str, tuple[dict[str, Any], str]] = {}
    for folder in folders:
        top = _git(folder, "rev-parse", "--show-toplevel").strip()
        commit = _git(folder, "rev-parse", "--verify", "HEAD").strip() if top and top not in found else ""
        if commit:
            untracked = _git(Path(top), "ls-files", "--others", "--exclude-standard").splitlines()[:_MOST_UNTRACKED]
            patch = _git(Path(top), "diff", "--binary", "HEAD")
            found[top] = {"folder": top, "commit": commit, "untracked": untracked}, patch
    return list(found.values())


def _git(folder: Path, *arguments: str) -> str:
    """What git says; nothing where it fails, or takes longer than a run should wait for it."""
    command = ["git", "-C", str(folder), "-c", "core.quotepath=off", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode("utf-8", "surrogateescape") if done.returncode == 0 else ""
