"""Is it the same data? A short name for what a data set's index says."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import numpy as np

from detlab.data.index import Index, Strings
from detlab.structures import DetectionDataset


def fingerprint(dataset: DetectionDataset) -> str:
    """32 hexadecimal digits that differ where images, their order, sizes or objects do; of other kinds than ours, the names alone.

    Pixels are not read. The order of the classes does not count, for classes are matched by name.
    """
    digest = hashlib.blake2b(digest_size=16)
    index = getattr(dataset, "index", None)
    if isinstance(index, Index):
        names = np.array([*sorted(index.class_map.names)])
        rank = np.searchsorted(names, np.array(index.class_map.names))
        _add(digest, dataclasses.replace(index, labels=rank[index.labels - 1]))
        _add(digest, sorted(index.class_map.names))
    else:
        _add(digest, sorted(dataset.class_map.names))
        for name in dataset.image_names:
            digest.update(f"{name}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _add(digest: Any, value: Any) -> None:
    """Take up arrays, and what is made of them, field by field; a class map counts elsewhere."""
    if isinstance(value, np.ndarray):
        digest.update(f"{value.dtype} {value.shape}".encode())
        digest.update(np.ascontiguousarray(value).data)
    elif isinstance(value, Strings):
        for array in (value._bytes, value._offsets):
            _add(digest, array)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            if field.name not in ("class_map", "annotation_ids"):
                _add(digest, getattr(value, field.name))
    else:
        digest.update(repr(value).encode())
