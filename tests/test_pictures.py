"""Pictures show what they should: boxes and masks in place, low scores left out."""

from __future__ import annotations

import torch

from detlab.pictures import COLOURS, comparison, draw
from detlab.structures import ClassMap

CLASSES = ClassMap(("person",))
GREY = torch.full((3, 40, 60), 100, dtype=torch.uint8)


def objects(score: float) -> dict[str, torch.Tensor]:
    mask = torch.zeros(1, 1, 40, 60)
    mask[0, 0, 15:35, 10:30] = 0.9
    return {
        "boxes": torch.tensor([[10.0, 15, 30, 35]]), "labels": torch.tensor([1]), "scores": torch.tensor([score]), "masks": mask
    }  # fmt: skip


def test_a_mask_and_its_box_are_drawn_where_they_lie() -> None:
    picture = draw(GREY, objects(0.9), CLASSES, threshold=0.5, shorter_side=40)
    assert picture.shape == GREY.shape
    assert picture.dtype == torch.uint8
    assert tuple(picture[:, 33, 10].tolist()) == COLOURS[0]
    inside = [round(0.55 * 100 + 0.45 * c) for c in COLOURS[0]]
    assert all(abs(a - b) <= 1 for a, b in zip(picture[:, 32, 20].tolist(), inside, strict=True))
    assert picture[:, 5, 50].tolist() == [100, 100, 100]


def test_objects_below_the_threshold_are_left_out_and_nothing_else_changes() -> None:
    assert torch.equal(draw(GREY, objects(0.4), CLASSES, threshold=0.5, shorter_side=40), GREY)


def test_small_pictures_are_enlarged_so_that_text_can_be_read() -> None:
    assert draw(GREY, objects(0.9), CLASSES, threshold=0.5, shorter_side=80).shape == (3, 80, 120)


def test_overlapping_masks_mix_their_colours_and_never_black() -> None:
    both = objects(0.9)
    both = {key: torch.cat([value, value]) for key, value in both.items()}
    picture = draw(GREY, both, CLASSES, threshold=0.5, shorter_side=40)
    assert min(picture[:, 32, 20].tolist()) > 40


def test_a_comparison_holds_a_prediction_and_its_truth_for_each_image() -> None:
    truth = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    wide = torch.full((3, 40, 80), 50, dtype=torch.uint8)
    boxes = {key: value for key, value in objects(0.9).items() if key != "masks"}
    grid = comparison([(GREY, truth), (wide, truth)], [objects(0.9), boxes], CLASSES, threshold=0.5)  # type: ignore
    assert grid.shape == (3, 288 + 8, 4 * (576 + 4) + 4)
