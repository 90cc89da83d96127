"""Transforms keep every per-instance field in step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from omegaconf import DictConfig
from torchvision import tv_tensors
from torchvision.transforms import v2

from detlab.config import build
from detlab.data import transforms
from detlab.data.augmentations import ScaleJitter
from detlab.data.transforms import Flip, Tally, Transform
from detlab.errors import UserError
from detlab.structures import PERSON, ClassMap, Keypoints, Sample, Target, check_sample

FILL = (9, 8, 7)


def apply(transform: Transform, image: torch.Tensor, target: Target) -> Sample:
    return transforms.apply(transform, image, target, PERSON)[:2]


def trainable_objects(image: torch.Tensor, target: Target) -> Target:
    return transforms.trainable_objects(image, target)[0]


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
    left, right = PERSON.names.index("left_wrist"), PERSON.names.index("right_wrist")
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


def test_a_flip_swaps_the_points_that_the_data_set_pairs() -> None:
    image, target = sample(points=3)
    points = Keypoints(names=("bow", "port", "starboard"), flip_pairs=((1, 2),), sigmas=(0.1, 0.1, 0.1))
    flipped = transforms.apply(Flip(p=1.0), image, target, points)[1]
    assert flipped["keypoints"][0, :, 0].tolist() == [20 - 1, 20 - 3, 20 - 2]


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


def jitter(scale_min: float, scale_max: float | None = None, *, min_visible: float = 0.25) -> ScaleJitter:
    return ScaleJitter(scale_min=scale_min, scale_max=scale_max or scale_min, min_visible=min_visible, fill=FILL)


def offset_of(before: Target, after: Target, factor: float) -> torch.Tensor:
    """Where the corner of the resized image came to lie, as x, y: read from an object's visible points."""
    seen = after["keypoints"][0, :, 2] > 0
    offsets = after["keypoints"][0, seen, :2] - factor * before["keypoints"][0, seen, :2]
    assert len(offsets)
    torch.testing.assert_close(offsets, offsets.round()[:1].expand_as(offsets), atol=1e-5, rtol=0)
    return offsets.round()[0]


def large_object() -> tuple[torch.Tensor, Target]:
    """The sample with one object in the middle, too large to be cut off wholly; its points lie all over the image."""
    image, target = sample()
    one: Any = {key: value[:1] if isinstance(value, torch.Tensor) else value for key, value in target.items()}
    one["boxes"] = tv_tensors.BoundingBoxes([[4.0, 2, 16, 8]], format="XYXY", canvas_size=(10, 20))  # type: ignore[call-overload]
    one["masks"] = tv_tensors.Mask(torch.zeros(1, 10, 20, dtype=torch.uint8))
    one["masks"][0, 2:8, 4:16] = 1
    one["area"] = torch.tensor([72.0])
    one["keypoints"][0, :, 1] = torch.arange(17) % 9 + 0.5
    return image, one


@pytest.mark.parametrize("seed", range(12))
def test_an_enlarged_image_is_cut_with_its_boxes_masks_and_points(seed: int) -> None:
    image, target = large_object()
    torch.manual_seed(seed)
    moved_image, moved = apply(jitter(2, min_visible=0), image, target)
    left, top = offset_of(target, moved, 2).int().tolist()
    assert -20 <= left <= 0
    assert -10 <= top <= 0
    whole = torch.kron(target["masks"], torch.ones(1, 2, 2, dtype=torch.uint8))
    assert torch.equal(moved["masks"], whole[:, -top : 10 - top, -left : 20 - left])
    expected = (2 * target["boxes"] + torch.tensor([left, top, left, top])).clamp(
        min=torch.zeros(4), max=torch.tensor([20, 10] * 2)
    )
    assert moved["boxes"].tolist() == expected.tolist()
    assert moved["area"].item() == moved["masks"].sum()
    inside = 2 * target["keypoints"][..., :2] + torch.tensor([left, top])
    seen = ((inside >= 0) & (inside <= torch.tensor([20, 10]))).all(-1)
    assert torch.equal(moved["keypoints"][..., 2] > 0, seen)
    assert torch.equal(moved["keypoints"][..., :2], inside * seen[..., None])
    assert not moved["keypoints"][~seen].any()
    enlarged = v2.functional.resize(image, [20, 40], antialias=True)
    assert torch.equal(moved_image, enlarged[:, -top : 10 - top, -left : 20 - left])


@pytest.mark.parametrize("seed", range(4))
def test_a_shrunk_image_lies_on_the_fill(seed: int) -> None:
    image, target = sample()
    torch.manual_seed(seed)
    moved_image, moved = apply(jitter(0.5), image, target)
    left, top = offset_of(target, moved, 0.5).int().tolist()
    inside = torch.zeros(10, 20, dtype=torch.bool)
    inside[top : top + 5, left : left + 10] = True
    assert int(inside.sum()) == 50
    assert torch.equal(moved_image[:, ~inside], torch.tensor(FILL, dtype=torch.uint8)[:, None].expand(3, 150))
    assert torch.equal(moved_image[:, inside], v2.functional.resize(image, [5, 10], antialias=True).flatten(1))
    assert moved["boxes"].tolist() == (0.5 * target["boxes"] + torch.tensor([left, top, left, top])).tolist()
    assert moved["area"].tolist() == moved["masks"].sum((1, 2)).tolist()
    assert not moved["masks"][:, ~inside].any()


def test_the_places_of_the_image_are_drawn_evenly() -> None:
    image, target = sample()
    torch.manual_seed(0)
    corners = {tuple(offset_of(target, apply(jitter(0.8), image, target)[1], 0.8).int().tolist()) for _ in range(150)}
    assert corners == {(x, y) for x in range(5) for y in range(3)}


def test_the_factors_cover_their_range() -> None:
    image, target = sample()
    torch.manual_seed(0)
    transform = jitter(0.5, 0.9)
    widths = [float((box := apply(transform, image, target)[1]["boxes"][1])[2] - box[0]) for _ in range(60)]
    assert 5 <= min(widths) < 5.5
    assert 8.5 < max(widths) <= 9


@pytest.mark.parametrize("min_visible", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("fields", [("masks", "keypoints"), ("masks",), ("keypoints",), ()])
def test_an_object_of_which_too_little_is_left_leaves_every_field(fields: tuple[str, ...], min_visible: float) -> None:
    image, target = sample()
    kept = [key for key in target if key not in ("masks", "keypoints") or key in fields]
    target: Any = {key: target[key] for key in kept}
    torch.manual_seed(0)
    removed = 0
    for _ in range(40):
        state = torch.get_rng_state()
        moved = apply(jitter(3, min_visible=min_visible), image, target)[1]
        torch.set_rng_state(state)
        everything = dict(apply(jitter(3, min_visible=0), image, {**target, "masks": sample()[1]["masks"]})[1])
        parts = [
            float((box[2] - box[0]) * (box[3] - box[1])) / {1: 9 * 12, 2: 9 * 40}[label]
            for box, label in zip(everything["boxes"], everything["labels"].tolist(), strict=True)
        ]
        expected = [x for x, part in zip(everything["labels"].tolist(), parts, strict=True) if part >= min_visible]
        assert moved["labels"].tolist() == expected
        assert {len(moved[key]) for key in ("boxes", "area", "iscrowd", *fields)} == {len(expected)}
        removed += 2 - len(expected)
    assert removed


def test_without_masks_a_cut_box_and_its_area_shrink() -> None:
    image, target = sample()
    plain: Any = {key: target[key] for key in target if key not in ("masks", "keypoints")}
    plain["area"] = torch.tensor([6.0, 30.0])  # half and three quarters of the boxes
    torch.manual_seed(0)
    for _ in range(20):
        moved = apply(jitter(2, min_visible=0.01), image, plain)[1]
        width, height = (moved["boxes"][:, 2:] - moved["boxes"][:, :2]).unbind(1)
        share = torch.tensor([{1: 0.5, 2: 0.75}[label] for label in moved["labels"].tolist()])
        torch.testing.assert_close(moved["area"], width * height * share)


def test_the_box_of_a_cut_object_is_that_of_what_is_left_of_its_mask() -> None:
    image, target = sample()
    masks = torch.zeros(2, 10, 20, dtype=torch.uint8)
    masks[0, 1:4, 2:6] = 1
    masks[1, 5, 10:20] = 1  # a thin line on top of the box, a post below its left end
    masks[1, 5:9, 10:12] = 1
    torch.manual_seed(0)
    seen = 0
    for _ in range(40):
        moved = apply(jitter(2, min_visible=0.01), image, {**target, "masks": tv_tensors.Mask(masks)})[1]
        for box, mask in zip(moved["boxes"].tolist(), moved["masks"], strict=True):
            rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
            assert box == [columns[0].item(), rows[0].item(), columns[-1].item() + 1, rows[-1].item() + 1]
        seen += sum(box[3] - box[1] == 2 for box in moved["boxes"].tolist())
    assert seen  # the post was cut off: the box is as thin as the line


def centre(weights: torch.Tensor) -> torch.Tensor:
    """The mean place, as x, y, of a picture of weights `[H, W]`."""
    rows, columns = (torch.arange(side) + 0.5 for side in weights.shape)
    return torch.stack([(weights * columns).sum(), (weights * rows[:, None]).sum()]) / weights.sum()


@pytest.mark.parametrize("factor", [0.63, 1.37])
def test_masks_and_boxes_stay_on_what_the_image_shows(factor: float) -> None:
    """Each mask is off by half a pixel at most, and many together by next to nothing: v2 would shift masks to the lower right."""
    transform = ScaleJitter(scale_min=factor, scale_max=factor, min_visible=1, fill=(0, 0, 0))
    masks_off, boxes_off = [], []
    for seed in range(60):
        torch.manual_seed(seed)
        x, y, width, height = (int(v) for v in torch.randint(12, 25, (4,)))
        mask = torch.zeros(1, 60, 80, dtype=torch.uint8)
        mask[0, y : y + height, x : x + width] = 1
        target: Any = {
            "boxes": torch.tensor([[x, y, x + width, y + height]]).float(),
            "labels": torch.tensor([1]),
            "image_id": 0,
            "area": torch.tensor([float(width * height)]),
            "iscrowd": torch.tensor([0]),
            "masks": mask,
        }
        image, moved = apply(transform, mask.expand(3, -1, -1) * 255, target)
        if len(moved["masks"]):
            shown = centre(image[0].double())
            masks_off.append(centre(moved["masks"][0].double()) - shown)
            boxes_off.append(moved["boxes"].reshape(2, 2).mean(0) - shown)
    assert len(masks_off) > 20
    assert torch.stack(masks_off).abs().max() < 0.55
    assert torch.stack(masks_off).mean(0).abs().max() < 0.12
    assert torch.stack(boxes_off).abs().max() < 0.15


def test_an_image_without_objects_is_moved_too() -> None:
    image, target = sample()
    empty: Any = {key: value[:0] if isinstance(value, torch.Tensor) else value for key, value in target.items()}
    for factor in (0.6, 1.5):
        moved_image, moved = apply(jitter(factor), image, empty)
        assert moved_image.shape == image.shape
        for field in ("boxes", "labels", "area", "iscrowd", "masks", "keypoints"):
            assert (moved[field].shape, moved[field].dtype) == (empty[field].shape, empty[field].dtype)


def test_the_same_chance_gives_the_same_sample_and_leaves_the_given_one_alone() -> None:
    results = []
    image, target = sample()
    for _ in range(2):
        torch.manual_seed(3)
        results.append(apply(jitter(0.6, 1.5), image, target))
    assert torch.equal(results[0][0], results[1][0])
    for field, value in sample()[1].items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(results[0][1][field], results[1][1][field])
            assert torch.equal(target[field], value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"scale_min": 0}, "0 < scale_min <= scale_max"),
        ({"scale_min": 2.0}, "0 < scale_min <= scale_max"),
        ({"scale_max": float("inf")}, "0 < scale_min <= scale_max"),
        ({"scale_max": float("nan")}, "0 < scale_min <= scale_max"),
        ({"min_visible": 1.1}, r"min_visible=1.1 .* 0\.\.1"),
        ({"fill": [0, 0]}, "red, green and blue"),
        ({"fill": [0, 0, 256]}, "red, green and blue"),
    ],
)
def test_a_scale_jitter_out_of_range_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        ScaleJitter(**{"scale_min": 0.5, "scale_max": 1.5, "min_visible": 0.25, "fill": FILL} | change)


@pytest.mark.parametrize("choice", ["multiscale", "photometric"])
def test_an_augmentation_of_several_parts_keeps_the_contract(choice: str, composed: Callable[..., DictConfig]) -> None:
    cfg = composed(f"augmentation={choice}", "dataset.difficulty=hard", "dataset.train_size=4", "dataset.val_size=1")
    transform = build(cfg.augmentation, group="augmentation")
    dataset = build(cfg.dataset, group="dataset", part="train")
    torch.manual_seed(0)
    changed = 0
    for i in range(12):
        image, target = dataset[i % 4]
        new_image, new_target = apply(transform, image, target)
        new_target = trainable_objects(new_image, new_target)
        check_sample(new_image, new_target, dataset.class_map, dataset.iou_types, choice)
        changed += not torch.equal(image, new_image) and not torch.equal(image.flip(-1), new_image)
    assert changed > 6


def test_a_value_of_a_part_is_changed_by_its_place(composed: Callable[..., DictConfig]) -> None:
    cfg = composed("augmentation=multiscale", "augmentation.transforms.1.scale_max=2.5")
    assert build(cfg.augmentation, group="augmentation").transforms[1].jitter.scale_max == 2.5


@pytest.mark.parametrize("plain", [False, True])
def test_changes_of_colour_leave_the_target_as_it_is(plain: bool, composed: Callable[..., DictConfig]) -> None:
    cfg = composed("augmentation=photometric", "augmentation.transforms.0.p=0", "augmentation.transforms.1.p=1")
    transform = build(cfg.augmentation, group="augmentation")
    image, target = sample()
    image = image.as_subclass(torch.Tensor) if plain else image
    torch.manual_seed(0)
    new_image, new_target = apply(transform, image, target)
    assert (new_image.shape, new_image.dtype, type(new_image)) == (image.shape, image.dtype, type(image))
    assert not torch.equal(new_image, image)
    assert new_target.keys() == target.keys()
    for field, value in target.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(new_target[field], value), field
        else:
            assert new_target[field] == value


def tallied(transform: Transform, image: torch.Tensor, target: Target) -> tuple[Target, Tally]:
    """The whole way of a training sample."""
    image, target, met = transforms.apply(transform, image, target, PERSON)
    target, left = transforms.trainable_objects(image, target)
    return target, met + left


def test_what_is_not_learnt_is_counted_by_its_reason() -> None:
    image, target = sample()
    seven: Any = {
        key: torch.cat([value[:1]] * 7) if isinstance(value, torch.Tensor) else value for key, value in target.items()
    }
    seven["boxes"] = torch.tensor([[2.0, 1, 6, 4]] * 7)
    seven["boxes"][1] = torch.tensor([20.0, 1, 24, 4])  # beside the image
    seven["boxes"][2] = torch.tensor([2.0, 1, 2.9, 4])
    seven["masks"][3] = 0
    seven["iscrowd"][4:6] = 1
    seven["ignored"] = torch.tensor([False] * 5 + [True, True])
    left, tally = transforms.trainable_objects(image, seven)
    assert left["labels"].tolist() == [1]
    assert left.get("ignored") is not None
    # What is both is a crowd region.
    assert tally == Tally(cut_off=1, too_small=1, without_pixels=1, crowd=2, ignored=1)


def test_a_box_of_one_pixel_is_learnt_wherever_flips_leave_it() -> None:
    image, target = sample()
    for x in torch.linspace(0, 18.9, 40).tolist():
        one: Any = {
            key: value[:1] if isinstance(value, torch.Tensor) else value
            for key, value in target.items()
            if key != "masks"
        }
        one["boxes"] = torch.tensor([[x, 2.3, x + 1, 3.3]])
        assert len(tallied(Flip(p=1), image, one)[0]["boxes"]) == 1


def test_points_outside_the_image_become_points_not_labelled() -> None:
    image, target = sample()
    target["keypoints"][0, :4] = torch.tensor([[20.0, 10, 2], [20.1, 5, 2], [5, -0.1, 1], [0, 0, 1]])
    points = trainable_objects(image, target)["keypoints"]
    assert points[0, :4].tolist() == [[20, 10, 2], [0, 0, 0], [0, 0, 0], [0, 0, 1]]


def test_plain_tensors_are_transformed_too() -> None:
    image, target = sample()
    plain: Any = {k: v.as_subclass(torch.Tensor) if isinstance(v, torch.Tensor) else v for k, v in target.items()}
    flipped = apply(Flip(p=1.0), image, plain)[1]
    assert flipped["boxes"].tolist() == [[14, 1, 18, 4], [0, 5, 10, 9]]
    assert torch.equal(flipped["masks"].as_subclass(torch.Tensor), plain["masks"].flip(-1))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    "transform",
    [
        v2.RandomRotation(degrees=40),
        v2.RandomIoUCrop(),
        v2.RandomCrop(size=[6, 11]),
        v2.RandomZoomOut(p=1),
        v2.Resize(size=[23, 31]),
        v2.RandomAffine(degrees=10, translate=(0.3, 0.3)),
    ],
    ids=lambda transform: type(transform).__name__,
)
def test_box_area_and_mask_agree_after_the_users_own_transforms(transform: v2.Transform, seed: int) -> None:
    image, target = sample()
    target["masks"][1] = torch.triu(torch.ones(10, 20, dtype=torch.uint8), 9)  # less than its box
    target["masks"][1, 8:] = 0
    target["boxes"][1] = torch.tensor([9.0, 0, 20, 8])
    target["area"][1] = float(target["masks"][1].sum())
    torch.manual_seed(seed)
    moved, tally = tallied(v2.Compose([transform]), image, target)
    assert tally.objects - tally.dropped == len(moved["labels"])
    for box, mask, area in zip(moved["boxes"], moved["masks"], moved["area"].tolist(), strict=True):
        rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
        around = torch.tensor([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
        assert float((box - around).abs().max()) < 1
        assert area == pytest.approx(int(mask.sum()))


def test_the_box_of_a_whole_object_whose_mask_is_only_what_is_seen_of_it_stays_that() -> None:
    image, target = sample()
    target["boxes"][0] = torch.tensor([0.0, 0, 12, 8])
    moved = apply(v2.Resize(size=[20, 40]), image, target)[1]
    assert moved["boxes"].tolist() == [[0, 0, 24, 16], [20, 10, 40, 18]]


def test_area_follows_a_mask_in_the_measure_of_the_file() -> None:
    image, target = sample()
    target["area"] = torch.tensor([11.4, 40.0])  # a polygon's, not its pixels'
    assert apply(v2.Resize(size=[20, 40]), image, target)[1]["area"].tolist() == pytest.approx([45.6, 160])
    assert apply(Flip(p=1), image, target)[1]["area"].tolist() == target["area"].tolist()


def test_objects_that_a_transform_of_the_user_removes_are_counted() -> None:
    image, target = sample()
    _, tally = tallied(lambda i, t: (i, transforms.keep_objects(t, t["labels"] == 2)), image, target)
    assert tally == Tally(objects=2, removed=1)


def cut_image_only(image: torch.Tensor, target: dict[str, Any]) -> tuple[torch.Tensor, dict[str, Any]]:
    return image[:, :5], target


@pytest.mark.parametrize(
    ("transform", "said"),
    [
        (
            v2.SanitizeBoundingBoxes(min_size=4),
            r"leave 1 boxes, but area for 2 objects. Leave out what removes objects",
        ),
        (v2.ToDtype(torch.float32, scale=True), r"a torch.float32 \[3, 10, 20\]; expected uint8"),
        (v2.ToPILImage(), "make of the image a Image; expected uint8"),
        (v2.Grayscale(), r"a torch.uint8 \[1, 10, 20\]; expected uint8"),
        (lambda i, t: (i, {"boxes": t["boxes"], "labels": t["labels"]}), "lost area, .*every field"),
        (cut_image_only, r"masks of \[10, 20\] on an image of \[5, 20\]"),
    ],
)
def test_a_transform_that_gives_no_sample_is_refused_in_a_line(transform: Transform, said: str) -> None:
    with pytest.raises(UserError, match=f"^augmentation: the transforms .*{said}") as caught:
        apply(transform, *sample())
    assert "\n" not in str(caught.value)


def test_keypoints_of_which_the_data_set_says_nothing_are_refused() -> None:
    with pytest.raises(UserError, match="image_id 7 has keypoints, but the data set's `keypoints` is None"):
        transforms.apply(Flip(p=0), *sample(), None)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("ignored", torch.zeros(2, dtype=torch.uint8), r"ignored is torch.uint8 \[2\]; expected torch.bool \[2\]"),
        ("ignored", torch.zeros(3, dtype=torch.bool), r"ignored is torch.bool \[3\]; expected torch.bool \[2\]"),
        ("size", torch.tensor([10, 20, 3]), r"size is torch.int64 \[3\], the image has 2 objects"),
    ],
)
def test_a_field_of_another_length_is_refused(field: str, value: torch.Tensor, said: str) -> None:
    image, target = sample()
    cast(Any, target)[field] = value
    with pytest.raises(UserError, match=said):
        check_sample(image, target, ClassMap(("a", "b")), ("bbox",), "x")
