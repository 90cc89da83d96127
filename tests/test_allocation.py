"""Freed memory that stays with the process."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

# A block of 64 MiB, touched, freed and taken again: how many pages the system had to give.
FAULTS = """
import resource, sys, torch
from detlab.allocation import keep_freed_memory
told = keep_freed_memory(sys.argv[1] == "keep")
for _ in range(20):
    torch.empty(2**24).fill_(1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.empty(2**24).fill_(1)
print(told, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _faults(choice: str) -> tuple[bool, int]:
    ended = subprocess.run([sys.executable, "-c", FAULTS, choice], capture_output=True, text=True, check=True)
    told, faults = ended.stdout.split()
    return told == "True", int(faults)


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's allocator can be told")
def test_a_large_block_is_taken_again_without_new_pages() -> None:
    told, kept = _faults("keep")
    _, given_back = _faults("give back")
    assert told
    assert kept < given_back / 20
