"""COCO's size: the index is small, quick to make, and shared by the workers. `python tests/scale.py FOLDER` prints the numbers."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import scale

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads memory from /proc")


def hold(folder: Path, share: float, *, index_mb: float, resident_mb: float, json_times: float | None = None) -> None:
    """Make a share of COCO, measure, and hold the numbers against the bars; times mean something where nothing else runs."""
    try:
        path = scale.make(folder, share)
        plain, detlab, torchvision = (scale.measured(what, path) for what in ("json", "detlab", "torchvision"))
    finally:
        shutil.rmtree(folder)
    assert detlab["index_mb"] < index_mb
    assert detlab["resident_mb"] < resident_mb
    assert detlab["worker_mb"] < 60
    assert json_times is None or detlab["first_batch_s"] < json_times * plain["json_s"]
    assert detlab["resident_mb"] < torchvision["resident_mb"]
    assert detlab["worker_mb"] < torchvision["worker_mb"]


@pytest.mark.slow
def test_a_tenth_of_coco_keeps_the_bars(tmp_path: Path) -> None:
    # What a process keeps beside the index, decoded images and freed memory, does not shrink with the files.
    hold(tmp_path / "coco", 0.1, index_mb=100, resident_mb=250)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_coco_keeps_the_bars(tmp_path: Path) -> None:
    hold(tmp_path / "coco", 1.0, index_mb=1000, resident_mb=1000, json_times=2)
