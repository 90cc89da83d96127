"""What the event file holds beside scalars: the layout of a COCO dashboard and precision-recall curves, after resume too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.util import tensor_util

from detlab.evaluation.coco import CocoEvaluator
from detlab.structures import ClassMap
from detlab.writer import CURVE_SCORES, dashboard


def truth() -> dict[str, list[dict[str, object]]]:
    """Two images: three cats, one of them crowd; a dog that nothing finds."""
    boxes = [
        (1, 1, 0, [0, 0, 10, 10]),
        (1, 1, 0, [20, 0, 10, 10]),
        (1, 1, 1, [40, 0, 40, 40]),
        (2, 2, 0, [0, 0, 10, 10]),
    ]
    return {
        "images": [{"id": i, "height": 100, "width": 100, "file_name": f"{i}.png"} for i in (1, 2)],
        "annotations": [
            {"id": n, "image_id": image, "category_id": c, "iscrowd": crowd, "bbox": box, "area": box[2] * box[3]}
            for n, (image, c, crowd, box) in enumerate(boxes, 1)
        ],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}, {"id": 3, "name": "absent"}],
    }


def test_counts_at_a_score_are_those_counted_by_hand() -> None:
    import torch

    evaluator = CocoEvaluator(
        ground_truth=truth(), class_map=ClassMap(("cat", "dog", "absent"), (1, 2, 3)), iou_types=("bbox",)
    )
    boxes = [[0, 0, 10, 10], [0, 0, 10, 9], [20, 0, 30, 10], [45, 5, 55, 15], [90, 90, 99, 99]]
    found = {
        "boxes": torch.tensor(boxes, dtype=torch.float32),
        "labels": torch.ones(5, dtype=torch.int64),
        "scores": torch.tensor([0.875, 0.75, 0.5, 0.5, 0.25]),  # a hit, a duplicate, a hit, in the crowd, nothing
    }
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "scores": torch.zeros(0)}
    evaluator.update([1, 2], [found, nothing])  # type: ignore[list-item]
    evaluator.compute()
    counts = evaluator.counts("bbox", np.array([0.0, 0.25, 0.5, 0.75, 0.8, 0.875, 1.0]))
    assert counts.keys() == {"cat", "dog"}
    assert counts["cat"].right.tolist() == [2, 2, 2, 1, 1, 1, 0]
    assert counts["cat"].wrong.tolist() == [2, 2, 1, 1, 0, 0, 0]
    assert (counts["cat"].objects, counts["dog"].objects) == (2, 1)
    assert counts["dog"].right.sum() == counts["dog"].wrong.sum() == 0


def test_a_dashboard_has_the_charts_of_what_is_scored() -> None:
    assert list(dashboard(["bbox"])) == ["bbox", "losses", "rate"]
    assert dashboard(["keypoints"])["keypoints"]["AP by size"] == [
        "Multiline",
        ["^val/keypoints/APm$", "^val/keypoints/APl$"],
    ]


@pytest.mark.slow
def test_the_layout_and_the_curves_are_in_the_event_file_before_and_after_resume(
    detlab: Callable[..., int], tmp_path: Path
) -> None:
    assert detlab(*TINY, "max_steps=2", "eval_every=1", "histograms=true", "hydra.run.dir=a") == 0
    assert detlab("resume=a", "epochs=2", "max_steps=6", "resume_anyway=true") == 0
    events = EventAccumulator(str(tmp_path / "a"), size_guidance={"tensors": 0, "histograms": 0})
    events.Reload()
    layout = layout_pb2.Layout()
    layout.ParseFromString(events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    assert [category.title for category in layout.category] == ["bbox", "segm", "losses", "rate"]
    charted = [tag for c in layout.category for chart in c.chart for tag in chart.multiline.tag]
    assert {"^val/bbox/AP50$", "^val/segm/APs$"} <= set(charted)
    weight = "weights/roi_heads.box_predictor.cls_score.weight"
    assert {tag.partition("/")[0] for tag in events.Tags()["histograms"]} == {"weights"}
    assert [of.step for of in events.Histograms(weight)] == [e.step for e in events.Scalars("val/bbox/AP")]
    assert events.Histograms(weight)[-1].histogram_value.num == 2 * 1024
    for iou_type in ("bbox", "segm"):
        curves = events.Tensors(f"val/{iou_type}/PR50")
        assert [curve.step for curve in curves] == sorted(
            {e.step for e in events.Scalars(f"val/{iou_type}/AP")} | {c.step for c in curves}
        )
        right, wrong, _, missed, precision, recall = tensor_util.make_ndarray(curves[-1].tensor_proto)
        assert len(right) == len(CURVE_SCORES)
        assert np.all(np.diff(right) <= 0)
        assert np.all(right + missed == right[0] + missed[0])
        assert recall == pytest.approx(right / (right + missed), abs=1e-6)
        assert precision == pytest.approx(right / np.maximum(right + wrong, 1), abs=1e-6)
