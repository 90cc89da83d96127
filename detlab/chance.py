"""Where random numbers come from: seeds derived from what is drawn for, so that no order of events matters."""

from __future__ import annotations

import hashlib
import random

import numpy as np
import torch


def derived_seed(*parts: int) -> int:
    """A seed of 63 bits that depends on all parts, in their order, and on nothing else."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def seed_host(seed: int) -> None:
    """Let torch on the CPU, numpy and random draw from `seed`; a GPU's generator is not touched."""
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    random.seed(seed)


def seed_all(seed: int) -> None:
    """Let torch on every device, numpy and random draw from `seed`."""
    torch.manual_seed(seed)
    seed_host(seed)
