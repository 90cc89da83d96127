"""Which numbers COCO gives, by name; imports nothing heavy, so that a config can be checked against them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from detlab.structures import IouType

# Who computes the numbers: pycocotools, or detlab.evaluation.scoring; auto is the faster one, since tests hold the two equal.
Backend = Literal["auto", "pycocotools", "faster"]
BACKENDS: tuple[Backend, ...] = ("auto", "pycocotools", "faster")


class Metric(NamedTuple):
    """One of COCO's numbers: its name here, and what it is measured over."""

    name: str  # AP... is a precision, AR... a recall
    iou: str  # threshold, or range of thresholds to average over
    area: str  # all, small (below 32^2 pixels), medium, large (above 96^2)
    max_detections: int  # best-scored ones per image and class that count


# In the order in which COCOeval.summarize gives them (https://cocodataset.org/#detection-eval).
DETECTION_METRICS: tuple[Metric, ...] = (
    Metric("AP", "0.50:0.95", "all", 100),
    Metric("AP50", "0.50", "all", 100),
    Metric("AP75", "0.75", "all", 100),
    Metric("APs", "0.50:0.95", "small", 100),
    Metric("APm", "0.50:0.95", "medium", 100),
    Metric("APl", "0.50:0.95", "large", 100),
    Metric("AR1", "0.50:0.95", "all", 1),
    Metric("AR10", "0.50:0.95", "all", 10),
    Metric("AR100", "0.50:0.95", "all", 100),
    Metric("ARs", "0.50:0.95", "small", 100),
    Metric("ARm", "0.50:0.95", "medium", 100),
    Metric("ARl", "0.50:0.95", "large", 100),
)
KEYPOINT_METRICS: tuple[Metric, ...] = (
    Metric("AP", "0.50:0.95", "all", 20),
    Metric("AP50", "0.50", "all", 20),
    Metric("AP75", "0.75", "all", 20),
    Metric("APm", "0.50:0.95", "medium", 20),
    Metric("APl", "0.50:0.95", "large", 20),
    Metric("AR", "0.50:0.95", "all", 20),
    Metric("AR50", "0.50", "all", 20),
    Metric("AR75", "0.75", "all", 20),
    Metric("ARm", "0.50:0.95", "medium", 20),
    Metric("ARl", "0.50:0.95", "large", 20),
)
METRICS: dict[IouType, tuple[Metric, ...]] = {
    "bbox": DETECTION_METRICS,
    "segm": DETECTION_METRICS,
    "keypoints": KEYPOINT_METRICS,
}
