"""What must travel with an exported model, so that its numbers mean something?"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from detlab import __version__
from detlab.exporting.graph import OPSET
from detlab.models.anchors import resize_of, shorter_sides

if TYPE_CHECKING:
    from detlab.detector import Detector


def card_of(detector: Detector) -> dict[str, Any]:
    """Classes in the order of their labels, input size, what is predicted, and what keypoints are; plain values."""
    transform = resize_of(detector.model)
    assert transform is not None, "only torchvision's detectors are exported"
    points = detector.keypoints
    return {
        "detlab": __version__,
        "opset": OPSET,
        "input": "uint8 [3, height, width], RGB",
        "classes": {str(label): name for label, name in enumerate(detector.class_map.names, 1)},
        "category_ids": list(detector.class_map.category_ids),
        "iou_types": list(detector.iou_types),
        "min_size": shorter_sides(transform)[-1],
        "max_size": transform.max_size,
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
