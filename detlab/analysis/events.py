"""Which pictures did a run draw of its predictions?"""

from __future__ import annotations

import io
from pathlib import Path

from detlab.pages import jpeg_uri

TAG = "val/predictions"
WIDEST = 1400  # pixels; what is wider is made smaller for a page
LARGEST = 200_000_000  # bytes of event files that are read


def predictions_of(folder: Path, step: float | None) -> dict[str, str]:
    """The picture of predictions beside the ground truth that was drawn at a step, else the last one before.

    Only its pixels are taken over: it is decoded, and written again as JPEG.

    Returns:
        A data: URL by what it shows; empty where the run's event files have none that can be read.
    """
    from PIL import Image

    try:
        found = _pictures(folder)
        chosen = [pair for pair in found if step is None or pair[0] <= step]
        if not chosen:
            return {}
        at, content = max(chosen, key=lambda pair: pair[0])
        with Image.open(io.BytesIO(content), formats=["PNG"]) as opened:
            picture = opened.convert("RGB")
    except Exception:  # whatever a damaged event file makes its reader and its decoder raise, the page lacks a picture
        return {}
    picture.thumbnail((WIDEST, 4 * WIDEST))
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=85)
    said = f"Predictions (score 0.5 and more) and, beside each, the ground truth: first validation images, step {at}"
    return {said: jpeg_uri(out.getvalue())}


def _pictures(folder: Path) -> list[tuple[int, bytes]]:
    """Steps and PNG files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    files = list(folder.glob("events.out.tfevents.*"))
    if not files or sum(path.stat().st_size for path in files) > LARGEST:
        return []
    board = EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 1, "tensors": 1})
    board.Reload()
    if TAG not in board.Tags()["images"]:
        return []
    return [(event.step, event.encoded_image_string) for event in board.Images(TAG)]
