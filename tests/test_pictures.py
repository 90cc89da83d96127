"""Pictures show what they should: boxes and masks in place, low scores left out."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as rle

from detlab.pictures import COLOURS, comparison, draw, jpeg, of_rows, save
from detlab.structures import PERSON, ClassMap, Keypoints

CLASSES = ClassMap(("person",))
GREY = torch.full((3, 40, 60), 100, dtype=torch.uint8)


def objects(score: float) -> dict[str, torch.Tensor]:
    mask = torch.zeros(1, 1, 40, 60)
    mask[0, 0, 15:35, 10:30] = 0.9
    return {
        "boxes": torch.tensor([[10.0, 15, 30, 35]]), "labels": torch.tensor([1]), "scores": torch.tensor([score]), "masks": mask
    }  # fmt: skip


def test_a_mask_and_its_box_are_drawn_where_they_lie() -> None:
    picture = draw(GREY, objects(0.9), CLASSES, None, threshold=0.5, shorter_side=40)
    assert GREY.unique().tolist() == [100]  # what was given is not painted on
    assert picture.shape == GREY.shape
    assert picture.dtype == torch.uint8
    assert tuple(picture[:, 33, 10].tolist()) == COLOURS[0]
    inside = [round(0.55 * 100 + 0.45 * c) for c in COLOURS[0]]
    assert all(abs(a - b) <= 1 for a, b in zip(picture[:, 32, 20].tolist(), inside, strict=True))
    assert picture[:, 5, 50].tolist() == [100, 100, 100]


def test_objects_below_the_threshold_are_left_out_and_nothing_else_changes() -> None:
    assert torch.equal(draw(GREY, objects(0.4), CLASSES, None, threshold=0.5, shorter_side=40), GREY)


def test_small_pictures_are_enlarged_so_that_text_can_be_read() -> None:
    assert draw(GREY, objects(0.9), CLASSES, None, threshold=0.5, shorter_side=80).shape == (3, 80, 120)


def test_overlapping_masks_mix_their_colours_and_never_black() -> None:
    both = objects(0.9)
    both = {key: torch.cat([value, value]) for key, value in both.items()}
    picture = draw(GREY, both, CLASSES, None, threshold=0.5, shorter_side=40)
    assert min(picture[:, 32, 20].tolist()) > 40


def test_a_comparison_holds_a_prediction_and_its_truth_for_each_image() -> None:
    truth = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    wide = torch.full((3, 40, 80), 50, dtype=torch.uint8)
    boxes = {key: value for key, value in objects(0.9).items() if key != "masks"}
    grid = comparison([(GREY, truth), (wide, truth)], [objects(0.9), boxes], CLASSES, None, threshold=0.5)  # type: ignore
    assert grid.shape == (3, 288 + 8, 4 * (576 + 4) + 4)


def test_of_the_ground_truth_only_what_is_predicted_is_shown() -> None:
    truth = {**objects(0.9), "keypoints": torch.full((1, 17, 3), 20.0)}
    plain = {key: value for key, value in truth.items() if key not in ("masks", "keypoints")}
    shown, alone = (
        comparison([(GREY, target)], [plain], CLASSES, None, threshold=0.5)  # type: ignore[list-item,arg-type]
        for target in (truth, plain)
    )
    assert torch.equal(shown, alone)


def test_keypoints_are_drawn_where_they_lie_joined_by_a_persons_limbs_and_hidden_ones_are_not() -> None:
    points = torch.zeros(1, 17, 3)
    points[0, 5] = torch.tensor([100.0, 100, 2])  # left shoulder
    points[0, 6] = torch.tensor([200.0, 100, 2])  # right shoulder
    points[0, 0] = torch.tensor([150.0, 60, 2])  # nose, joined to no shoulder
    points[0, 11] = torch.tensor([100.0, 180, 0])  # left hip, unknown
    grey = torch.full((3, 300, 300), 100, dtype=torch.uint8)
    person = {"boxes": torch.tensor([[40.0, 20, 260, 280]]), "labels": torch.tensor([1]), "keypoints": points}
    picture = draw(grey, person, CLASSES, PERSON, threshold=0.5, shorter_side=300)
    for x, y in ((100, 99), (200, 99), (150, 60)):  # beside the limb
        assert tuple(picture[:, y, x].tolist()) == COLOURS[0]
    assert picture[:, 100, 150].tolist() == [255, 255, 255]
    assert picture[:, 180, 100].tolist() == picture[:, 80, 125].tolist() == [100, 100, 100]


@pytest.mark.parametrize(
    ("keypoints", "joined"),
    [
        (None, False),
        (Keypoints(("head", "tail"), (), (0.1, 0.1)), False),
        (Keypoints(("head", "tail"), (), (0.1, 0.1), ((0, 1),)), True),
    ],
)
def test_lines_join_the_points_that_the_skeleton_names_and_no_others(keypoints: Keypoints | None, joined: bool) -> None:
    thing = {
        "boxes": torch.tensor([[40.0, 20, 260, 280]]),
        "labels": torch.tensor([1]),
        "keypoints": torch.tensor([[[100.0, 100, 1], [200, 100, 1]]]),
    }
    grey = torch.full((3, 300, 300), 100, dtype=torch.uint8)
    picture = draw(grey, thing, CLASSES, keypoints, threshold=0.5, shorter_side=300)
    # Beside the middle of the dots, over which a line would lie.
    assert tuple(picture[:, 99, 100].tolist()) == tuple(picture[:, 99, 200].tolist()) == COLOURS[0]
    assert (picture[:, 100, 150].tolist() == [255, 255, 255]) is joined
    assert picture[:, 90, 150].tolist() == [100, 100, 100]


@pytest.mark.parametrize("side", [400, 1600])
def test_lines_and_letters_grow_with_the_picture(side: int) -> None:
    grey = torch.full((3, side, side), 100, dtype=torch.uint8)
    left = side // 4
    box = {"boxes": torch.tensor([[left, left, 3 * left, 3 * left]]).float(), "labels": torch.tensor([1])}
    picture = draw(grey, box, CLASSES, None, threshold=0.5, shorter_side=1)
    middle = picture[:, side // 2, : side // 2].T
    width = int((middle == torch.tensor(COLOURS[0])).all(1).sum())
    assert width == 2 * side // 400
    letters = (picture[:, left : 2 * left, left : 2 * left] < 50).all(0)
    height = int(letters.any(1).sum())
    assert height == pytest.approx(10 * side / 400, rel=0.35)


def test_a_name_is_not_cut_off_by_the_edge_of_the_picture() -> None:
    grey = torch.full((3, 60, 200), 100, dtype=torch.uint8)
    black = []
    for left in (20.0, 180.0):
        box = {"boxes": torch.tensor([[left, 10, left + 20, 50]]), "labels": torch.tensor([1])}
        black.append(int((draw(grey, box, CLASSES, None, threshold=0.5, shorter_side=1) < 60).all(0).sum()))
    assert black[0] > 40
    assert black[1] == pytest.approx(black[0], rel=0.2)


def test_a_picture_is_saved_in_the_format_of_its_name(tmp_path: Path) -> None:
    picture = draw(GREY, objects(0.9), CLASSES, None, threshold=0.5, shorter_side=40)
    for name, kind in (("a.png", "PNG"), ("a.JPG", "JPEG"), ("a.jpeg", "JPEG"), ("a", "PNG")):
        save(picture, tmp_path / name)
        with Image.open(tmp_path / name) as image:
            pixels = np.array(image)
            assert image.format == kind
        assert np.abs(pixels.astype(int) - picture.permute(1, 2, 0).numpy()).mean() < (0.1 if kind == "PNG" else 8)
    assert len(list(tmp_path.iterdir())) == 4


def test_rows_of_coco_files_are_drawn_as_objects_each_in_its_own_colour() -> None:
    mask = np.zeros((40, 60), np.uint8, order="F")
    mask[15:35, 10:30] = 1
    row = {"category_id": 7, "bbox": [10, 15, 20, 20], "segmentation": rle.encode(mask)}
    found = of_rows([row], {7: 1}, ("segm",))
    assert "scores" not in found
    assert found["boxes"].tolist() == [[10, 15, 30, 35]]
    assert found["masks"][0, 0].sum() == 400
    picture = draw(GREY, found, CLASSES, None, threshold=0.5, shorter_side=40, colours=[(1, 2, 3)])
    assert picture[:, 33, 10].tolist() == [1, 2, 3]
    # Polygons, and what is not asked for, are left out; nothing found is no fault.
    assert "masks" not in of_rows([{**row, "segmentation": [[1, 1, 9, 1, 9, 9]]}], {7: 1}, ("segm",))
    assert "masks" not in of_rows([row], {7: 1}, ("bbox",))
    assert of_rows([], {}, ("segm",))["boxes"].shape == (0, 4)


def test_colours_stay_with_their_objects_where_others_are_left_out() -> None:
    both = {key: torch.cat([value, value]) for key, value in objects(0.9).items()}
    both["scores"][0] = 0.1
    picture = draw(GREY, both, CLASSES, None, threshold=0.5, shorter_side=40, colours=[(9, 9, 9), (1, 2, 3)])
    assert picture[:, 33, 10].tolist() == [1, 2, 3]


def test_a_jpeg_for_a_page_has_no_side_that_is_too_long() -> None:
    with Image.open(io.BytesIO(jpeg(torch.zeros(3, 40, 80, dtype=torch.uint8), longer_side=20))) as opened:
        assert (opened.format, opened.size) == ("JPEG", (20, 10))
