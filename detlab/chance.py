"""Where random numbers come from: seeds derived from what is drawn for, so that no order of events matters."""

import hashlib


def derived_seed(*parts: int) -> int:
    """A seed of 63 bits that depends on all parts, in their order, and on nothing else."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
