"""Transforms keep every per-instance field in step."""

from __future__ import annotations

import pytest
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from detlab.data.transforms import Flip, apply, trainable_objects
from detlab.errors import UserError
from detlab.structures import PERSON_KEYPOINTS, Target


def sample(points: int = 17) -> tuple[torch.Tensor, Target]:
    """Two objects in a 10 x 20 image; point k of object i lies at (k, i + 1)."""
    image = tv_tensors.Image(torch.arange(600, dtype=torch.int32).reshape(3, 10, 20).to(torch.uint8))
    keypoints = torch.zeros(2, points, 3)
    keypoints[..., 0] = torch.arange(points, dtype=torch.float32) + 1
    keypoints[..., 1] = torch.tensor([[1.0], [2.0]])
    keypoints[..., 2] = 2
    masks = torch.zeros(2, 10, 20, dtype=torch.uint8)
    masks[0, 1:4, 2:6] = 1
    masks[1, 5:9, 10:20] = 1
    return image, {
        "boxes": tv_tensors.BoundingBoxes([[2.0, 1, 6, 4], [10, 5, 20, 9]], format="XYXY", canvas_size=(10, 20)),  # type: ignore[call-overload]
        "labels": torch.tensor([1, 2]),
        "image_id": 7,
        "area": torch.tensor([12.0, 40.0]),
        "iscrowd": torch.tensor([0, 0], dtype=torch.uint8),
        "masks": tv_tensors.Mask(masks),
        "keypoints": keypoints,
    }


def test_a_flip_mirrors_image_boxes_and_masks_and_swaps_left_and_right() -> None:
    image, target = sample()
    flipped_image, flipped = apply(Flip(p=1.0), image, target)
    assert torch.equal(flipped_image, image.flip(-1))
    assert flipped["boxes"].tolist() == [[14, 1, 18, 4], [0, 5, 10, 9]]
    assert torch.equal(flipped["masks"], target["masks"].flip(-1))
    left, right = PERSON_KEYPOINTS.index("left_wrist"), PERSON_KEYPOINTS.index("right_wrist")
    assert flipped["keypoints"][0, left].tolist() == [20 - target["keypoints"][0, right, 0], 1, 2]
    assert flipped["keypoints"][..., 2].eq(2).all()


def test_two_flips_give_the_sample_back() -> None:
    image, target = sample()
    twice = apply(Flip(p=1.0), *apply(Flip(p=1.0), image, target))
    assert torch.equal(twice[0], image)
    for field in ("boxes", "labels", "masks", "keypoints", "area"):
        assert torch.equal(twice[1][field], target[field])


def test_a_point_that_is_not_labelled_stays_at_the_origin() -> None:
    image, target = sample()
    target["keypoints"][0, 0] = 0
    flipped = apply(Flip(p=1.0), image, target)[1]
    assert flipped["keypoints"][0, 0].tolist() == [0, 0, 0]


def test_points_without_known_pairs_are_refused_by_a_flip() -> None:
    with pytest.raises(UserError, match="5 keypoints"):
        apply(Flip(p=1.0), *sample(points=5))


def test_objects_outside_a_crop_leave_every_field() -> None:
    image, target = sample()

    def crop(image: torch.Tensor, target: dict) -> tuple[torch.Tensor, dict]:
        cropped = v2.functional.crop(image, 0, 0, 10, 8)
        return cropped, {
            key: v2.functional.crop(value, 0, 0, 10, 8) if isinstance(value, tv_tensors.TVTensor) else value
            for key, value in target.items()
        }

    kept = trainable_objects(*apply(crop, image, target))
    assert kept["boxes"].tolist() == [[2, 1, 6, 4]]
    assert {field: len(kept[field]) for field in ("labels", "area", "iscrowd", "masks", "keypoints")} == dict.fromkeys(
        ("labels", "area", "iscrowd", "masks", "keypoints"), 1
    )


def test_crowd_regions_leave_the_training_targets() -> None:
    image, target = sample()
    target["iscrowd"] = torch.tensor([0, 1], dtype=torch.uint8)
    assert trainable_objects(image, target)["labels"].tolist() == [1]
