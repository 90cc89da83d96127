"""How this process's memory is kept between the operations of a step."""

from __future__ import annotations

import ctypes
import sys

# glibc's malloc.h
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_DEFAULTS = {_M_MMAP_MAX: 65536, _M_TRIM_THRESHOLD: 128 * 1024, _M_TOP_PAD: 128 * 1024}


def keep_freed_memory(wanted: bool) -> bool:
    """Whether what is freed stays with the process, to be used again; glibc's allocator alone can be told.

    By default it gives every large block back to the system, which fills it with zeros, page by page, when it is next asked for: in
    a step of training on a CPU hundreds of times.

    Returns:
        Whether it was told.
    """
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return False
    settings = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: 2**31 - 1, _M_TOP_PAD: 64 * 2**20} if wanted else _DEFAULTS
    return all(libc.mallopt(name, value) == 1 for name, value in settings.items())
