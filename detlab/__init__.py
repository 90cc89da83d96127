"""detlab: a lab for training, comparing and using object detectors on your own data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from detlab.detector import Detector, Threshold

__version__ = "0.1.0"


def load(run: str | Path, device: str = "auto", threshold: Threshold = "operating") -> Detector:
    """A run's trained detector, ready to be called on images; offline.

    Args:
        run: a run's folder, of which the best checkpoint is taken, or a checkpoint file.
        device: `auto` (a GPU where there is one), `cpu`, `cuda`, `cuda:1`, `mps`.
        threshold: detections with a lower score, 0..1, are left out; by default with a lower one than the operating threshold of
            their class, which the run found best on its validation part (0.5 in a checkpoint that holds none); None gives all
            that the model reports.

    Raises:
        UserError: no such run, no readable checkpoint, a class in it that is not allowed, a device that is not here.
    """
    # Only now: `import detlab` stays free of torch, whose import takes seconds.
    from detlab.detector import load as load_detector

    return load_detector(Path(run), device=device, threshold=threshold)
