"""What time is it, when a device has done what it was told to do?"""

from __future__ import annotations

import time

import torch


def clock(device: torch.device | None = None) -> float:
    """Seconds of a clock that only runs on, read when a GPU has nothing left to do.

    Args:
        device: which GPU is waited for, if it is one; None for the present one, if a GPU is used at all.
    """
    if torch.cuda.is_initialized() and (device is None or device.type == "cuda"):
        torch.cuda.synchronize(device)
    return time.perf_counter()
