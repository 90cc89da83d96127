"""When two models' predictions count as the same, and when they do not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torchvision.models.detection.roi_heads import paste_masks_in_image

from detlab.exporting.agreement import Agreement

BOXES = [[10.0, 20.0, 110.0, 220.0], [300.0, 20.0, 400.0, 90.0]]


def seen(boxes: Any = BOXES, scores: Any = (0.9, 0.7), labels: Any = (1, 2)) -> dict[str, np.ndarray]:
    return {"boxes": np.array(boxes).reshape(-1, 4), "scores": np.array(scores), "labels": np.array(labels)}


def compared(theirs: dict[str, np.ndarray], *, most: int = 100) -> Agreement:
    agreement = Agreement()
    agreement.add(seen(), theirs, least=0.05, most=most)
    return agreement


def test_the_same_objects_in_another_order_agree() -> None:
    agreement = compared(seen(BOXES[::-1], (0.7, 0.9), (2, 1)))
    assert agreement.holds
    assert (agreement.images, agreement.objects, agreement.pixels, agreement.score) == (1, 2, 0, 0)


def test_the_largest_differences_are_told() -> None:
    moved = [BOXES[0], [300.25, 20.0, 400.0, 90.0]]
    agreement = compared(seen(moved, (0.9, 0.7 - 5e-5)))
    assert (agreement.pixels, agreement.score) == pytest.approx((0.25, 5e-5))
    assert agreement.relative == pytest.approx(0.25 / 300)
    assert agreement.holds
    assert not compared(seen([BOXES[0], [300.5, 20.0, 400.0, 90.0]])).holds
    assert not compared(seen(scores=(0.9, 0.7 - 2e-4))).holds


@pytest.mark.parametrize(
    "theirs",
    [
        seen(BOXES[:1], (0.9,), (1,)),
        seen([*BOXES, [0, 0, 9, 9]], (0.9, 0.7, 0.6), (1, 2, 1)),
        seen(labels=(1, 1)),
        seen([BOXES[0], [305, 20, 400, 90]]),
    ],
)
def test_an_object_that_only_one_of_both_reports_is_a_disagreement(theirs: dict[str, np.ndarray]) -> None:
    agreement = compared(theirs)
    assert agreement.unmatched
    assert not agreement.holds


def test_an_object_at_the_score_where_reporting_ends_may_be_lacking() -> None:
    assert compared(seen([*BOXES, [0, 0, 9, 9]], (0.9, 0.7, 0.05003), (1, 2, 1))).holds
    assert not compared(seen([*BOXES, [0, 0, 9, 9]], (0.9, 0.7, 0.06), (1, 2, 1))).holds
    # Of two objects at most, another one of the last one's score may take its place.
    assert compared(seen([BOXES[0], [0, 0, 9, 9]], (0.9, 0.70004), (1, 2)), most=2).holds


def test_nothing_seen_verifies_nothing() -> None:
    agreement = Agreement()
    agreement.add(seen([], [], []), seen([], [], []), least=0.05, most=100)
    assert (agreement.images, agreement.objects) == (1, 0)
    assert not agreement.holds


def shaped(shift: float = 0.0, score: float = 8.0, probability: float = 0.7) -> dict[str, np.ndarray]:
    """Two objects with a mask of one pixel, and 100 points each, of which the last of the second is moved."""
    points = np.full((2, 100, 3), 50.0)
    points[1, -1, 0] += shift
    scores = np.full((2, 100), 8.0)
    scores[1, -1] = score
    return seen() | {"masks": np.full((2, 1, 1, 1), probability), "keypoints": points, "keypoints_scores": scores}


@pytest.mark.parametrize(
    ("theirs", "holds"),
    [
        (shaped(), True),
        (shaped(probability=0.7005), True),
        (shaped(probability=0.702), False),
        (shaped(shift=0.04), True),
        (shaped(shift=0.06, score=8.01), False),
        (shaped(score=8.01), False),
        (shaped(shift=3), True),  # 1 of 200: rounding chose between two places that are equally high
    ],
)
def test_masks_and_points_must_agree_too(theirs: dict[str, np.ndarray], holds: bool) -> None:
    agreement = Agreement()
    agreement.add(shaped(), theirs, least=0.05, most=100)
    assert agreement.holds == holds
    assert (agreement.masks, agreement.points) == (2, 200)


def test_points_that_often_lie_elsewhere_are_no_ties_and_all_are_told() -> None:
    theirs = shaped()
    theirs["keypoints"][0, :3] += 3
    agreement = Agreement()
    agreement.add(shaped(), theirs, least=0.05, most=100)
    assert not agreement.holds
    assert "3 of 200 points lie elsewhere with the same score" in str(agreement)


def pasted(right: float, *, harm: float = 0.0) -> dict[str, np.ndarray]:
    """Two objects with masks as torchvision pastes them; the right side of the first one's box, and what is added to its mask."""
    small = torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    small[0] += harm
    boxes = torch.tensor([[10.0, 20.0, right, 150.0], [300.0, 20.0, 390.0, 90.0]])
    return seen(boxes.numpy()) | {"masks": paste_masks_in_image(small, boxes, (200, 600)).numpy()}


CUT = 108.482759  # made larger by 30 / 28, a box from 10 to there ends at 112


def test_a_mask_that_rounding_cuts_to_other_pixels_is_no_disagreement_and_is_told() -> None:
    agreement = Agreement()
    ours, theirs = pasted(CUT - 1e-4), pasted(CUT + 1e-4)
    assert np.abs(ours["masks"] - theirs["masks"]).max() > 0.1
    agreement.add(ours, theirs, least=0.05, most=100, cells=28)
    assert agreement.holds
    assert "1 of 2 masks are put a pixel further" in str(agreement)
    agreement.add(ours, theirs, least=0.05, most=100, cells=28)
    assert not agreement.holds  # half of all is no chance
    pasted_by_nobody = Agreement()
    pasted_by_nobody.add(ours, theirs, least=0.05, most=100)
    assert not pasted_by_nobody.holds


@pytest.mark.parametrize(("ours", "theirs"), [(100.0, 100.0), (100.0, 100.05)])
def test_a_mask_that_is_another_in_the_same_pixels_is_a_disagreement(ours: float, theirs: float) -> None:
    agreement = Agreement()
    agreement.add(pasted(ours), pasted(theirs, harm=0.01), least=0.05, most=100, cells=28)
    assert (agreement.cut, agreement.holds) == (0, False)
    assert agreement.mask > 0.009


def test_an_object_that_may_be_lacking_is_told() -> None:
    agreement = compared(seen([*BOXES, [0, 0, 9, 9]], (0.9, 0.7, 0.05003), (1, 2, 1)))
    assert "1 object(s) at the least score reported by only one of both" in str(agreement)
