"""What must travel with an exported model, so that its numbers mean something?"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from detlab import __version__
from detlab.models.anchors import resize_of, shorter_sides

if TYPE_CHECKING:
    from detlab.detector import Detector


def card_of(detector: Detector, operating: Mapping[str, Any] | None) -> dict[str, Any]:
    """Classes in the order of their labels, their thresholds, input size, what is predicted, and what keypoints are; plain values.

    Args:
        detector: of one of torchvision's models.
        operating: where its thresholds are from, as `detlab.checkpoint.operating_of` gives it; None where all are a half.
    """
    transform = resize_of(detector.model)
    assert transform is not None, "only torchvision's detectors are exported"
    points = detector.keypoints
    return {
        "detlab": __version__,
        "input": "uint8 [3, height, width], RGB",
        "classes": {str(label): name for label, name in enumerate(detector.class_map.names, 1)},
        "category_ids": list(detector.class_map.category_ids),
        "thresholds": {str(label): score for label, score in enumerate(detector.operating.tolist(), 1)},
        "thresholds_from": None if operating is None else dict(operating),
        "iou_types": list(detector.iou_types),
        "min_size": shorter_sides(transform)[-1],
        "max_size": transform.max_size,
        "fixed_size": None if transform.fixed_size is None else list(transform.fixed_size),
        "keypoints": None
        if points is None
        else {
            "names": list(points.names),
            "sigmas": list(points.sigmas),
            "skeleton": [list(pair) for pair in points.skeleton],
        },
    }


def with_card(content: bytes, card: dict[str, Any]) -> bytes:
    """An ONNX file with the card in its `metadata_props`, each value as JSON."""
    import onnx

    model = onnx.load_from_string(content)
    onnx.helper.set_model_props(model, {key: json.dumps(value) for key, value in card.items()})
    return model.SerializeToString()
