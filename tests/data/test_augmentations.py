"""Every augmentation preset keeps the contract on any sample; the new ones do what they say."""

from __future__ import annotations

import copy
import itertools
import logging
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
from omegaconf import DictConfig
from torch import Tensor
from torchvision import tv_tensors
from torchvision.ops import box_iou
from torchvision.transforms import v2

from detlab.config import CONF, build
from detlab.data import transforms
from detlab.data.augmentations import CopyPaste, IoUCrop, ScaleJitter, make_ready
from detlab.data.loader import TrainingSamples, training_loader
from detlab.data.transforms import Flip, Tally, Transform, trainable_objects
from detlab.errors import UserError
from detlab.masks import enclosing_boxes
from detlab.structures import ClassMap, IouType, Keypoints, Sample, Target, check_sample

# What hypothesis remembers of the code would lie in the checkout.
hypothesis.configuration.set_hypothesis_home_dir(Path(tempfile.gettempdir(), "hypothesis"))

PRESETS = sorted(path.stem for path in (CONF / "augmentation").glob("*.yaml"))
EXACT = ("none", "flip", "crop")  # the presets that give every pixel as it was
POINTS = Keypoints(names=("middle", "left", "right"), flip_pairs=((1, 2),), sigmas=(0.1, 0.1, 0.1))
KINDS = ("plain", "plain", "frame", "pixel", "loose", "crowd", "ignored")
Object = tuple[int, int, int, int, str]  # the corners' columns and rows in any order, both included, and one of KINDS


class Small:
    """A data set in memory. Each object has a tag that no other has, and its label, colour and further fields by that tag."""

    class_map = ClassMap(("one", "two", "three"))

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples = list(samples)
        fields = self.samples[0][1]
        types: dict[IouType, bool] = {"bbox": True, "segm": "masks" in fields, "keypoints": "keypoints" in fields}
        self.iou_types = tuple(iou_type for iou_type, has in types.items() if has)
        self.keypoints = POINTS if "keypoints" in fields else None
        self.image_names = [f"image {i}" for i in range(len(self.samples))]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return copy.deepcopy(self.samples[index])

    def get_height_and_width(self, index: int) -> tuple[int, int]:
        return cast(tuple[int, int], tuple(self.samples[index][0].shape[1:]))

    def ground_truth(self) -> dict[str, Any]:
        raise AssertionError("training needs no ground truth")


def label_of(tag: Tensor) -> Tensor:
    return 1 + tag % 3


def colour_of(tag: int) -> Tensor:
    """No two tags below 1000 and neither with the black background have the same."""
    return torch.tensor([60 + tag // 32 * 6, 60 + tag % 32 * 6, 255 - tag % 7 * 30], dtype=torch.uint8)


def picture(
    number: int, height: int, width: int, objects: Sequence[Object], *, masks: bool = True, points: bool = True
) -> Sample:
    """An image on which each object has the colour of its tag wherever no later one covers it: there its mask is."""
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    shapes = torch.zeros(len(objects), height, width, dtype=torch.uint8)
    boxes, tags = torch.zeros(len(objects), 4), 100 * number + torch.arange(len(objects))
    keypoints = torch.zeros(len(objects), 3, 3)
    for i, (column, other_column, row, other_row, kind) in enumerate(objects):
        x0, y0, x1, y1 = (
            min(column, other_column),
            min(row, other_row),
            max(column, other_column) + 1,
            max(row, other_row) + 1,
        )
        if kind == "pixel":
            x1, y1 = x0 + 1, y0 + 1
        shapes[i, y0:y1, x0:x1] = 1
        if kind == "frame":
            shapes[i, y0 + 1 : y1 - 1, x0 + 1 : x1 - 1] = 0
        shapes[:i] *= 1 - shapes[i]
        image[:, shapes[i] == 1] = colour_of(int(tags[i]))[:, None]
        boxes[i] = torch.tensor([x0, y0, x1, y1])
        middle = (y0 + y1) / 2
        keypoints[i] = torch.tensor([[(x0 + x1) / 2, middle, 2], [x0, middle, 2], [x1, middle, 2]])
    seen = shapes.flatten(1).any(1).bool()
    if masks:
        boxes[seen] = torch.from_numpy(enclosing_boxes(shapes[seen].numpy())).float()
    for i, (*_, kind) in enumerate(objects):
        if kind == "loose":  # the box of the whole of an object, the mask of what is seen of it
            boxes[i] = torch.tensor([0, 0, width, height])
    if len(objects) > 1:
        keypoints[0, 0] = 0
    kinds = [kind for *_, kind in objects]
    target: Any = {
        "boxes": tv_tensors.BoundingBoxes(boxes.reshape(-1, 4), format="XYXY", canvas_size=(height, width)),  # type: ignore[call-overload]
        "labels": label_of(tags),
        "image_id": number,
        "area": shapes.flatten(1).sum(1).float() if masks else (boxes[:, 2:] - boxes[:, :2]).prod(1) / 2,
        "iscrowd": torch.tensor([kind == "crowd" for kind in kinds], dtype=torch.uint8),
        "ignored": torch.tensor([kind == "ignored" for kind in kinds], dtype=torch.bool),
        "tag": tags,
        "vector": tags[:, None] * torch.tensor([1.0, -1.0]),
        "place": "a word, and no row for each object",
    }
    if masks:
        target["masks"] = tv_tensors.Mask(shapes)
    if points:
        target["keypoints"] = keypoints
    return tv_tensors.Image(image), target


# Few pixels are hard for the contract, and many for what is cut and resized.
SIDES = st.one_of(st.integers(1, 10), st.integers(20, 40))


def objects_in(height: int, width: int) -> st.SearchStrategy[Object]:
    columns, rows = st.integers(0, width - 1), st.integers(0, height - 1)
    anywhere = st.tuples(columns, columns, rows, rows, st.sampled_from(KINDS))
    large = st.tuples(st.just(0), st.just(width * 3 // 4), st.just(0), st.just(height - 1), st.just("plain"))
    return st.one_of(anywhere, anywhere, large)


@st.composite
def data_sets(draw: st.DrawFn, *, masks: bool | None = None) -> Small:
    has_masks = draw(st.booleans()) if masks is None else masks
    has_points = draw(st.booleans())
    samples = []
    for number in range(draw(st.integers(1, 2))):
        height, width = draw(SIDES), draw(SIDES)
        objects = draw(st.lists(objects_in(height, width), max_size=6))
        samples.append(picture(number, height, width, objects, masks=has_masks, points=has_points))
    return Small(samples)


def row_of(dataset: Small, tag: int) -> tuple[Target, int]:
    return dataset.samples[tag // 100][1], tag % 100


def to_be_learnt(target: Target) -> Tensor:
    return (target["iscrowd"] == 0) & ~target["ignored"]


def check_fields(dataset: Small, image: Tensor, target: Target, tally: Tally) -> None:
    """The contract, and every row of every field the same object's."""
    check_sample(image, target, dataset.class_map, dataset.iou_types, "the result")
    tags = cast(Any, target)["tag"]
    assert target.keys() == dataset.samples[0][1].keys()
    assert torch.equal(target["labels"], label_of(tags))
    assert torch.equal(cast(Any, target)["vector"], tags[:, None] * torch.tensor([1.0, -1.0]))
    assert to_be_learnt(target).all()
    assert all(bool(to_be_learnt(truth)[i]) for truth, i in (row_of(dataset, tag) for tag in tags.tolist()))
    assert tally.objects - tally.dropped == len(tags)
    assert ((target["boxes"][:, 2:] - target["boxes"][:, :2]) > 0.99).all()


def is_tight(truth: Target, i: int) -> bool:
    mask = truth["masks"][i].as_subclass(Tensor)
    return bool(mask.any()) and truth["boxes"][i].tolist() == enclosing_boxes(mask[None].numpy())[0].tolist()


def check_masks(dataset: Small, target: Target) -> None:
    """A mask has pixels, its box is the one around it, its area their number."""
    for tag, box, mask, area in zip(
        cast(Any, target)["tag"].tolist(),
        target["boxes"],
        target["masks"].as_subclass(Tensor),
        target["area"],
        strict=True,
    ):
        assert mask.any()
        around = torch.from_numpy(enclosing_boxes(mask[None].numpy())[0]).float()
        assert (around[:2] > box[:2] - 1).all()
        assert (around[2:] < box[2:] + 1).all()
        if is_tight(*row_of(dataset, tag)):
            assert (around - box).abs().max() < 1
        assert float(area) == pytest.approx(int(mask.sum()), rel=1e-5)


def check_points(target: Target, size: Sequence[int], *, masks: bool) -> None:
    points = target["keypoints"]
    labelled = points[..., 2] > 0
    inside = ((points[..., :2] >= 0) & (points[..., :2] <= torch.tensor([size[1], size[0]]))).all(-1)
    assert inside.all()
    assert not points[~labelled].any()
    both = labelled[:, 1] & labelled[:, 2]
    assert (points[both, 1, 0] <= points[both, 2, 0]).all()
    if masks:
        return  # what later objects cover of one takes its box from its points
    boxes = target["boxes"][:, None]
    near = (points[..., :2] >= boxes[..., :2] - 1e-3) & (points[..., :2] <= boxes[..., 2:] + 1e-3)
    assert near.all(-1)[labelled].all()


def shares_of_pixels(dataset: Small, transform: Transform, seed: int, index: int, tags: Sequence[int]) -> Tensor:
    """How much of each pixel of a transformed image the objects show, one each, 0..255: uint8 `[len(tags), H, W]`.

    The same draws, on pictures that are white where the object is: three objects a picture, in red, green and blue.
    """
    shares = []
    for start in range(0, len(tags), 3):
        painted = Small(dataset.samples)
        for i, (image, target) in enumerate(dataset.samples):
            white = torch.zeros_like(image.as_subclass(Tensor))
            for channel, tag in enumerate(tags[start : start + 3]):
                if tag // 100 == i:
                    white[channel] = 255 * target["masks"][tag % 100]
            painted.samples[i] = (tv_tensors.Image(white), target)
        make_ready(transform, painted)
        shares.append(cast(Any, TrainingSamples(painted, transform, seed)[(0, index)])[0].as_subclass(Tensor))
    make_ready(transform, dataset)
    return torch.cat(shares)[: len(tags)]


def compare_with_image(dataset: Small, transform: Transform, seed: int, index: int, choice: str) -> int:
    """Hold masks and tags against what a transformed image shows; how many objects that were."""
    image, target, _ = cast(Any, TrainingSamples(dataset, transform, seed)[(0, index)])
    tags = sorted(set(target["tag"].tolist()))
    shares = shares_of_pixels(dataset, transform, seed, index, tags) if tags else []
    compared = 0
    for tag, share in zip(tags, shares, strict=True):
        mask = target["masks"].as_subclass(Tensor)[target["tag"] == tag].any(0).bool()
        wholly = share == 255
        assert (share[mask] > 0).all(), tag
        if choice != "copypaste" or tag // 100 != index:  # else it is there twice, and one of the two may have gone
            assert mask[wholly].all(), tag
        if choice in EXACT:
            assert torch.equal(wholly, mask), tag
        colours = image.as_subclass(Tensor)[:, wholly & mask].int()
        assert ((colours - colour_of(tag)[:, None].int()).abs() <= (0 if choice in EXACT else 1)).all(), tag
        compared += bool((wholly & mask).any())
    return compared


def same(left: tuple[Tensor, Target, Tally], right: tuple[Tensor, Target, Tally]) -> bool:
    return (
        torch.equal(left[0], right[0])
        and left[1].keys() == right[1].keys()
        and all(
            torch.equal(value, right[1][field]) if isinstance(value, Tensor) else value == right[1][field]
            for field, value in left[1].items()
        )
        and left[2] == right[2]
    )


@pytest.fixture
def preset(composed: Callable[..., DictConfig]) -> Callable[..., Transform]:
    def build_it(choice: str, *overrides: str) -> Transform:
        return build(composed(f"augmentation={choice}", *overrides).augmentation, group="augmentation")

    return build_it


def hold_preset_to_its_word(choice: str, transform: Transform, *, examples: int, derandomize: bool) -> int:
    """Run a preset on random samples; how many objects had their colours compared."""
    compared = 0

    @hypothesis.settings(max_examples=examples, derandomize=derandomize, deadline=None, database=None)
    @hypothesis.given(data_sets(masks=True if choice == "copypaste" else None), st.integers(0, 2**31))
    def holds(dataset: Small, seed: int) -> None:
        nonlocal compared
        make_ready(transform, dataset)
        samples = TrainingSamples(dataset, transform, seed)
        for index in range(len(dataset)):
            result = samples[(0, index)]
            assert not isinstance(result, UserError), result
            assert same(result, cast(Any, samples[(0, index)]))
            image, target, tally = result
            check_fields(dataset, image, target, tally)
            if choice != "copypaste":
                tags = cast(Any, target)["tag"].tolist()
                assert len(set(tags)) == len(tags)
                assert {tag // 100 for tag in tags} <= {index}
                assert tally.objects == int(to_be_learnt(dataset.samples[index][1]).sum())
            if "masks" in target:
                check_masks(dataset, target)
                if choice != "photometric":
                    compared += compare_with_image(dataset, transform, seed, index, choice)
            else:
                areas = (target["boxes"][:, 2:] - target["boxes"][:, :2]).prod(1) / 2
                torch.testing.assert_close(target["area"], areas, rtol=1e-4, atol=1e-5)
            if "keypoints" in target:
                check_points(target, image.shape[1:], masks="masks" in target)

    holds()
    return compared


@pytest.mark.parametrize("choice", PRESETS)
def test_every_preset_keeps_the_contract_on_any_sample(choice: str, preset: Callable[..., Transform]) -> None:
    compared = hold_preset_to_its_word(choice, preset(choice), examples=75, derandomize=True)
    assert compared > 20 or choice == "photometric"


@pytest.mark.slow
@pytest.mark.parametrize("choice", PRESETS)
def test_every_preset_keeps_the_contract_on_more_samples(choice: str, preset: Callable[..., Transform]) -> None:
    hold_preset_to_its_word(choice, preset(choice), examples=300, derandomize=True)


@pytest.mark.long
@pytest.mark.parametrize("choice", PRESETS)
def test_every_preset_keeps_the_contract_on_new_samples_each_time(
    choice: str, preset: Callable[..., Transform]
) -> None:
    """5,000 in all."""
    hold_preset_to_its_word(choice, preset(choice), examples=math.ceil(5000 / len(PRESETS)), derandomize=False)


@hypothesis.settings(max_examples=60, derandomize=True, deadline=None, database=None)
@hypothesis.given(data_sets())
def test_two_flips_are_the_identity(dataset: Small) -> None:
    image, target = dataset[0]
    flip = Flip(p=1)
    once = transforms.apply(flip, image, target, dataset.keypoints)[:2]
    twice = transforms.apply(flip, *once, dataset.keypoints)
    assert same(twice, (image, target, twice[2]))
    assert twice[2].dropped == 0


@hypothesis.settings(max_examples=60, derandomize=True, deadline=None, database=None)
@hypothesis.given(data_sets())
def test_without_a_transform_what_is_to_be_learnt_stays_as_it_is(dataset: Small) -> None:
    image, target = dataset[0]
    new_image, new_target, tally = cast(Any, TrainingSamples(dataset, v2.Identity(), 0)[(0, 0)])
    keep = to_be_learnt(target)
    if "masks" in target:
        keep &= target["masks"].as_subclass(Tensor).flatten(1).any(1).bool()
    assert same((new_image, new_target, tally), (image, transforms.keep_objects(cast(Any, target), keep), tally))  # type: ignore[arg-type]
    crowd, ignored = int(target["iscrowd"].sum()), int(target["ignored"].sum())
    emptied = int((to_be_learnt(target) & ~keep).sum())
    assert (tally.dropped, tally.without_pixels) == (emptied, emptied)
    assert tally.crowd <= crowd
    assert tally.ignored <= ignored


@hypothesis.settings(max_examples=60, derandomize=True, deadline=None, database=None)
@hypothesis.given(st.data(), st.integers(0, 2**31))
def test_what_is_pasted_without_resizing_agrees_with_the_image_to_the_pixel(data: st.DataObject, seed: int) -> None:
    height, width = data.draw(st.integers(1, 30)), data.draw(st.integers(1, 30))
    objects = st.lists(objects_in(height, width), max_size=6)
    dataset = Small([picture(number, height, width, data.draw(objects)) for number in range(2)])
    paste = CopyPaste(object_p=0.7, flip_p=0.5, scale_min=1, scale_max=1, min_visible=0.25)
    make_ready(paste, dataset)
    image, target, tally = cast(Any, TrainingSamples(dataset, paste, seed)[(0, 0)])
    check_fields(dataset, image, target, tally)
    check_masks(dataset, target)
    check_points(target, image.shape[1:], masks=True)
    for tag, mask in zip(target["tag"].tolist(), target["masks"].as_subclass(Tensor), strict=True):
        assert (image.as_subclass(Tensor)[:, mask == 1] == colour_of(tag)[:, None]).all()
    assert (target["masks"].as_subclass(Tensor).sum(0) <= 1).all()


def test_an_image_without_objects_stays_legal_in_every_preset(preset: Callable[..., Transform]) -> None:
    dataset = Small([picture(0, 9, 12, [])])
    for choice in PRESETS:
        transform = preset(choice)
        make_ready(transform, dataset)
        image, target, tally = cast(Any, TrainingSamples(dataset, transform, 0)[(0, 0)])
        check_sample(image, target, dataset.class_map, dataset.iou_types, choice)
        for field, value in dataset.samples[0][1].items():
            if isinstance(value, Tensor) and field != "masks":
                assert (target[field].shape, target[field].dtype) == (value.shape, value.dtype), (choice, field)
        assert tally == Tally()


# One object of 6 x 6 in the middle; its own half of a second image is covered by that one's.
MIDDLE: Object = (5, 10, 5, 10, "plain")
LEFT_HALF: Object = (0, 7, 0, 15, "plain")


def pasted_over(*others: Object, first: Sequence[Object] = (MIDDLE,), min_visible: float = 0.25) -> Any:
    """The first image with every object of the second pasted on it, without resizing, before the sanitising."""
    dataset = Small([picture(0, 16, 16, first), picture(1, 16, 16, others)])
    paste = CopyPaste(object_p=1, flip_p=0, scale_min=1, scale_max=1, min_visible=min_visible)
    paste.use(cast(Any, Small([dataset.samples[1]])))
    return transforms.apply(paste, *dataset[0], POINTS)


def test_a_covered_object_loses_pixels_and_its_box_and_area_follow() -> None:
    _, target, tally = pasted_over(LEFT_HALF)
    assert target["tag"].tolist() == [0, 100]
    assert target["boxes"].tolist() == [[8, 5, 11, 11], [0, 0, 8, 16]]
    assert target["area"].tolist() == target["masks"].sum((1, 2)).tolist() == [18, 128]
    assert tally == Tally(objects=2)


def test_points_that_a_pasted_object_covers_become_hidden_ones() -> None:
    _, target, _ = pasted_over(LEFT_HALF)
    # left at x = 5 is covered, the middle at x = 8 and right at x = 11 are not.
    assert target["keypoints"][0, :, 2].tolist() == [2, 1, 2]
    assert target["keypoints"][0, :, 0].tolist() == [8, 5, 11]
    assert target["keypoints"][1, :, 2].tolist() == [2, 2, 2]


def test_an_object_that_was_hidden_before_is_not_made_visible() -> None:
    dataset = Small([picture(0, 16, 16, [MIDDLE]), picture(1, 16, 16, [LEFT_HALF])])
    image, target = dataset[0]
    target["keypoints"][0, :, 2] = torch.tensor([0, 1, 1])
    target["keypoints"][0, 0] = 0
    paste = CopyPaste(object_p=1, flip_p=0, scale_min=1, scale_max=1, min_visible=0)
    paste.use(cast(Any, Small([dataset.samples[1]])))
    assert transforms.apply(paste, image, target, POINTS)[1]["keypoints"][0, :, 2].tolist() == [0, 1, 1]


@pytest.mark.parametrize(("min_visible", "left"), [(0.0, [0, 100]), (0.4, [0, 100]), (0.6, [100])])
def test_an_object_of_which_too_little_is_left_uncovered_goes_and_is_counted(
    min_visible: float, left: list[int]
) -> None:
    _, target, tally = pasted_over(LEFT_HALF, min_visible=min_visible)
    assert target["tag"].tolist() == left
    assert tally == Tally(objects=2, hidden=2 - len(left))


def test_an_object_that_is_covered_wholly_goes() -> None:
    _, target, tally = pasted_over((0, 15, 0, 15, "plain"), min_visible=0)
    assert target["tag"].tolist() == [100]
    assert tally.hidden == 1


def test_crowd_regions_ignored_objects_and_those_without_pixels_are_never_pasted() -> None:
    covered: Object = (1, 3, 1, 3, "plain")
    image, target, tally = pasted_over(covered, (0, 4, 0, 4, "crowd"), (5, 8, 0, 4, "ignored"), first=[])
    assert len(target["boxes"]) == 0
    assert not image.any()
    assert tally == Tally()


def test_pasted_objects_are_drawn_one_by_one_from_all_images() -> None:
    dataset = Small([picture(n, 16, 16, [(4 * i, 4 * i + 2, 3, 9, "plain") for i in range(4)]) for n in range(4)])
    paste = CopyPaste(object_p=0.5, flip_p=0, scale_min=1, scale_max=1, min_visible=0.25)
    make_ready(paste, dataset)
    image, target = dataset[0]
    torch.manual_seed(0)
    seen = [tuple(cast(Any, transforms.apply(paste, image, target, POINTS)[1])["tag"][-1:].tolist()) for _ in range(60)]
    counts = []
    for _ in range(100):
        counts.append(transforms.apply(paste, image, target, POINTS)[2].objects - 4)
    assert {tag // 100 for (tag,) in seen} == {0, 1, 2, 3}
    assert set(counts) == {0, 1, 2, 3, 4}
    assert sum(counts) / len(counts) == pytest.approx(2, abs=0.4)


def test_another_image_is_fitted_into_this_one_before_it_is_jittered() -> None:
    own = picture(0, 20, 30, [])
    other = picture(1, 80, 60, [(0, 59, 0, 79, "plain")])
    paste = CopyPaste(object_p=1, flip_p=0, scale_min=1, scale_max=1, min_visible=0.25)
    paste.use(cast(Any, Small([other])))
    torch.manual_seed(1)
    _, target, _ = transforms.apply(paste, *own, POINTS)
    x0, y0, x1, y1 = target["boxes"][0].tolist()
    assert (x1 - x0, y1 - y0) == (15, 20)
    assert 0 <= x0 <= 15
    assert y0 == 0


def test_objects_that_were_pasted_and_removed_again_are_both_counted() -> None:
    paste = CopyPaste(object_p=1, flip_p=0, scale_min=1, scale_max=1, min_visible=0)
    paste.use(cast(Any, Small([picture(1, 16, 16, [(0, 2, 0, 2, "plain"), LEFT_HALF])])))
    own = Small([picture(0, 16, 16, [MIDDLE])])
    chain = v2.Compose([paste, lambda image, target: (image, transforms.keep_objects(target, target["tag"] > 0))])
    _, target, tally = cast(Any, TrainingSamples(cast(Any, own), chain, 0)[(0, 0)])
    assert target["tag"].tolist() == [101]
    assert tally == Tally(objects=2, removed=1)


def test_images_with_other_fields_are_not_mixed() -> None:
    first, second = picture(0, 16, 16, [MIDDLE]), picture(1, 16, 16, [LEFT_HALF])
    cast(Any, second[1]).pop("vector")
    dataset = Small([first, second])
    paste = CopyPaste(object_p=1, flip_p=0, scale_min=1, scale_max=1, min_visible=0)
    paste.use(cast(Any, Small([second])))
    result = TrainingSamples(cast(Any, dataset), paste, 0)[(0, 0)]
    assert isinstance(result, UserError)
    assert "image_id 0 and 1 have not the same kind of vector" in str(result)


def test_a_bad_second_image_is_named() -> None:
    second = picture(1, 16, 16, [LEFT_HALF])
    second[1]["labels"] = torch.tensor([4])
    paste = CopyPaste(object_p=1, flip_p=0, scale_min=1, scale_max=1, min_visible=0)
    paste.use(cast(Any, Small([second])))
    result = TrainingSamples(cast(Any, Small([picture(0, 16, 16, [MIDDLE])])), paste, 0)[(0, 0)]
    assert isinstance(result, UserError)
    assert "label 4; allowed are 1..3" in str(result)


def batches_of(dataset: Small, transform: Transform, *, workers: int = 0, first_step: int = 0) -> list[Any]:
    loader = training_loader(
        cast(Any, dataset), transform, batch_size=2, accumulate=1, shuffle=True, seed=3, workers=workers, pin_memory=False
    )  # fmt: skip
    loader.start(1, first_step)
    return list(loader)


def test_copy_and_paste_needs_masks_and_says_so_before_training(preset: Callable[..., Transform]) -> None:
    dataset = Small([picture(n, 16, 16, [MIDDLE], masks=False) for n in range(2)])
    with pytest.raises(UserError, match=r"^augmentation: CopyPaste .* Small has none; .* augmentation=lsj\.$"):
        batches_of(dataset, preset("copypaste"))


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("mirror", [v2.RandomHorizontalFlip, v2.RandomVerticalFlip])
def test_a_flip_that_leaves_left_and_right_where_they_were_is_refused(mirror: Any, wrapped: bool) -> None:
    transform = v2.Compose([v2.Identity(), v2.RandomApply(torch.nn.ModuleList([mirror()]))]) if wrapped else mirror()
    dataset = Small([picture(n, 16, 16, [MIDDLE]) for n in range(2)])
    with pytest.raises(UserError, match=rf"{mirror.__name__} leaves left and right .* detlab\.data\.transforms\.Flip"):
        batches_of(dataset, transform)
    batches_of(Small([picture(n, 16, 16, [MIDDLE], points=False) for n in range(2)]), transform)


def crowded() -> Small:
    """Five images with objects small enough to be lost, and one crowd region."""
    places = [(x, x + 3, y, y + 2, "plain") for x, y in itertools.product((0, 9, 17), (0, 10))]
    return Small([picture(n, 16, 24, [*places[n % 3 :], (20, 22, 13, 14, "crowd")]) for n in range(5)])


@pytest.mark.parametrize("choice", ["crop", "copypaste"])
def test_samples_and_counts_are_the_same_for_any_number_of_workers(
    choice: str, preset: Callable[..., Transform], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    results = [batches_of(crowded(), preset(choice), workers=workers) for workers in (0, 2)]
    said = [record.getMessage() for record in caplog.records if record.getMessage().startswith("augmentation")]
    assert len(said) == 2
    assert said[0] == said[1]
    assert "dropped (" in said[0]
    assert said[0].endswith("crowd regions are not learnt") or said[0].endswith("crowd region is not learnt")
    for (images, targets), (same_images, same_targets) in zip(*results, strict=True):
        for image, target, *other in zip(images, targets, same_images, same_targets, strict=True):
            assert same((image, target, Tally()), (other[0], other[1], Tally()))


def test_a_resumed_epoch_gives_the_same_samples_and_counts_what_it_still_sees(
    preset: Callable[..., Transform], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    whole, rest = (batches_of(crowded(), preset("copypaste"), first_step=step) for step in (0, 1))
    assert len(rest) == len(whole) - 1
    for (images, targets), (same_images, same_targets) in zip(whole[1:], rest, strict=True):
        for image, target, *other in zip(images, targets, same_images, same_targets, strict=True):
            assert same((image, target, Tally()), (other[0], other[1], Tally()))
    said = [record.getMessage() for record in caplog.records if record.getMessage().startswith("augmentation")]
    assert said[0].startswith("augmentation: of ")
    assert said[1].startswith("augmentation, from step 2 of the epoch on: ")


def test_the_log_says_nothing_where_all_is_learnt(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    batches_of(Small([picture(n, 16, 16, [MIDDLE]) for n in range(4)]), Flip(p=0.5))
    assert not [record for record in caplog.records if "augmentation" in record.getMessage()]


@pytest.mark.parametrize("overlap", [0.3, 0.7])
@pytest.mark.parametrize("seed", range(5))
def test_a_crop_overlaps_an_object_as_much_as_it_must(seed: int, overlap: float) -> None:
    _, target = picture(0, 40, 36, [(2, 20, 3, 22, "plain"), (14, 33, 12, 37, "plain")], masks=False)
    crop = IoUCrop(overlaps=[overlap], scale_min=0.3, aspect_max=2, trials=40)
    torch.manual_seed(seed)
    part = next(
        part for _ in range(50) if (part := crop._part((40, 36), target["boxes"].as_subclass(Tensor))) is not None
    )
    ious = box_iou(part[None], target["boxes"].as_subclass(Tensor))[0]
    x0, y0, x1, y1 = part.tolist()
    centres = (target["boxes"][:, :2] + target["boxes"][:, 2:]) / 2
    inside = ((centres > part[:2]) & (centres < part[2:])).all(1)
    assert float(ious[inside].max()) >= overlap
    assert 0 <= x0 < x1 <= 36
    assert 0 <= y0 < y1 <= 40
    assert 0.5 <= (x1 - x0) / (y1 - y0) <= 2
    assert min((x1 - x0) / 36, (y1 - y0) / 40) >= 0.28  # rounded to pixels


def test_a_crop_keeps_the_objects_whose_centre_is_inside_and_cuts_them() -> None:
    image, target = picture(0, 40, 36, [(2, 20, 3, 22, "plain"), (14, 33, 12, 37, "frame"), (0, 3, 36, 39, "crowd")])
    crop = IoUCrop(overlaps=[0.0], scale_min=0.3, aspect_max=2, trials=40)
    torch.manual_seed(0)
    kept = set()
    for _ in range(30):
        cropped, left, tally = transforms.apply(crop, image, target, POINTS)
        left, sanitised = trainable_objects(cropped, left)
        tags = cast(Any, left)["tag"].tolist()
        assert tags  # a crop always has an object
        assert (tally + sanitised).cut_off == 2 - len(tags)
        kept.add(tuple(tags))
    assert kept == {(0,), (1,), (0, 1)}


def test_a_whole_image_is_one_of_the_choices_and_all_others_come_as_often() -> None:
    """SSD draws from six least overlaps and the whole image; an object that fills the image suits the lower ones at once."""
    _, target = picture(0, 30, 30, [(0, 29, 0, 29, "plain")], masks=False)
    crop = IoUCrop(overlaps=[0.0, 0.1, 0.3], scale_min=0.6, aspect_max=2, trials=40)
    torch.manual_seed(0)
    whole = sum(crop._part((30, 30), target["boxes"].as_subclass(Tensor)) is None for _ in range(600)) / 600
    assert whole == pytest.approx(1 / 4, abs=0.06)


@pytest.mark.parametrize("kind", ["crowd", "ignored"])
def test_an_image_with_nothing_to_learn_is_not_cropped(kind: str) -> None:
    image, target = picture(0, 20, 20, [(2, 9, 2, 9, kind)])
    for seed in range(10):
        torch.manual_seed(seed)
        assert transforms.apply(IoUCrop(overlaps=[0.0], scale_min=0.3, aspect_max=2, trials=5), image, target, POINTS)[
            0
        ].shape == (3, 20, 20)


@pytest.mark.parametrize(
    ("make", "change", "said"),
    [
        (IoUCrop, {"overlaps": [0.5, 1.5]}, "overlaps=1.5"),
        (IoUCrop, {"scale_min": 0}, "scale_min=0"),
        (IoUCrop, {"scale_min": 1.1}, "scale_min=1.1"),
        (IoUCrop, {"aspect_max": 0.5}, "aspect_max=0.5"),
        (IoUCrop, {"trials": 0}, "trials=0"),
        (CopyPaste, {"object_p": 1.5}, "object_p=1.5"),
        (CopyPaste, {"flip_p": -1}, "flip_p=-1"),
        (CopyPaste, {"min_visible": float("nan")}, "min_visible=nan"),
        (CopyPaste, {"scale_min": 3}, "scale_min=3, scale_max=2"),
    ],
)
def test_a_value_out_of_range_is_refused(make: Any, change: dict[str, Any], said: str) -> None:
    right = {
        IoUCrop: {"overlaps": [0.5], "scale_min": 0.3, "aspect_max": 2, "trials": 40},
        CopyPaste: {"object_p": 0.5, "flip_p": 0.5, "scale_min": 0.1, "scale_max": 2, "min_visible": 0.25},
    }[make]
    make(**right)
    with pytest.raises(UserError, match=f"^augmentation: {said}"):
        make(**{**right, **change})


@pytest.mark.parametrize("masks", [False, True])
def test_what_follows_a_crop_takes_the_size_that_the_crop_left(masks: bool) -> None:
    """A canvas that changes its size on the way is known to boxes and points."""
    image, target = picture(0, 40, 36, [(2, 20, 3, 22, "plain"), (14, 33, 12, 37, "plain")], masks=masks)
    crop = IoUCrop(overlaps=[0.0], scale_min=0.3, aspect_max=2, trials=40)
    jitter = ScaleJitter(scale_min=0.7, scale_max=1.4, min_visible=0.25, fill=[0, 0, 0])
    dataset = Small([(image, target)])
    for chain in ([crop, Flip(p=1), jitter], [jitter, crop, Flip(p=1)], [crop, v2.Resize(size=[50, 20])]):
        for seed in range(20):
            new_image, new_target, tally = cast(Any, TrainingSamples(dataset, v2.Compose(chain), seed)[(0, 0)])
            check_fields(dataset, new_image, new_target, tally)
            if masks:
                check_masks(dataset, new_target)
            check_points(new_target, new_image.shape[1:], masks=masks)


def test_tallies_add_up() -> None:
    some = Tally(objects=5, cut_off=1, crowd=2)
    assert some + replace(some, hidden=2) == Tally(objects=10, cut_off=2, hidden=2, crowd=4)


@pytest.mark.parametrize(
    ("tally", "said"),
    [
        (Tally(objects=9), ""),
        (Tally(objects=842, cut_off=9, too_small=3, crowd=4),
         "of 842 objects 12 were dropped (9 cut off, 3 too small); 4 crowd regions are not learnt"),
        (Tally(objects=2, without_pixels=1), "of 2 objects 1 was dropped (1 without pixels)"),
        (Tally(objects=2, crowd=1, ignored=1), "1 crowd region is not learnt; 1 ignored object is not learnt"),
        (Tally(objects=7, hidden=1, removed=2), "of 7 objects 3 were dropped (1 hidden, 2 removed)"),
    ],
)  # fmt: skip
def test_the_log_tells_what_is_not_learnt_and_why(tally: Tally, said: str) -> None:
    assert tally.said() == said
