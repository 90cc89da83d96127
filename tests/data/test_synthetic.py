"""The embedded data set: the same everywhere, true to its levels, and in keeping with its own masks."""

from __future__ import annotations

import hashlib
import math
import multiprocessing
import pickle
from itertools import pairwise

import numpy as np
import pytest
import torch
from torchvision import tv_tensors

from detlab.data.drawing import Capsule, Dice, Ellipse, Part, draw, rectangle
from detlab.data.figures import View, person
from detlab.data.scenes import LEVELS, Scene
from detlab.data.synthetic import Synthetic
from detlab.errors import UserError
from detlab.masks import decode
from detlab.structures import PERSON, DetectionDataset, Sample, check_sample

# Of the first four training samples of both levels, seed 0. It changes only if the data set is made another one, and with
# it every score that was ever measured on it.
SAMPLES_SHA256 = "d480c91238c1153bbdbc1a4fce42f5d3651a3c6162eced304ce15ef4e174c96a"


def dataset(difficulty: str = "easy", part: str = "train", seed: int = 0, size: int = 50) -> Synthetic:
    return Synthetic(
        part=part,
        difficulty=difficulty,
        seed=seed,
        train_size=size,
        val_size=size,
        test_size=0,
        folds=None,
        fold=None,
        fraction=1.0,
    )


def fingerprint(sample: Sample) -> str:
    image, target = sample
    assert "masks" in target
    assert "keypoints" in target
    digest = hashlib.sha256()
    for field in (image, target["masks"], target["boxes"], target["keypoints"]):
        digest.update(str(list(field.shape)).encode())
        digest.update(field.numpy().tobytes())
    return digest.hexdigest()


def fingerprint_of(part_of: Synthetic, index: int) -> str:
    return fingerprint(part_of[index])


@pytest.fixture(scope="module", params=sorted(LEVELS))
def level(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def scenes() -> dict[str, list[Scene]]:
    """Two hundred pictures of each level."""
    return {name: [data.scene(i) for i in range(200)] for name in LEVELS for data in (dataset(name, size=200),)}


def test_eight_samples_are_the_same_on_every_machine() -> None:
    joined = "".join(fingerprint(dataset(name)[i]) for name in ("easy", "hard") for i in range(4))
    assert hashlib.sha256(joined.encode()).hexdigest() == SAMPLES_SHA256


def test_a_sample_depends_on_neither_the_order_of_access_nor_the_size_of_the_part(level: str) -> None:
    forwards, backwards = dataset(level, size=6), dataset(level, size=9)
    there = [fingerprint(forwards[i]) for i in range(6)]
    back = [fingerprint(backwards[i]) for i in reversed(range(6))][::-1]
    again = [fingerprint(forwards[i]) for i in range(6)]
    assert there == back == again
    assert len(set(there)) == 6


def test_a_sample_is_the_same_after_pickling_and_in_another_process() -> None:
    data = dataset(size=3)
    expected = [fingerprint(data[i]) for i in range(3)]
    small = pickle.dumps(data)
    assert len(small) < 2000  # no picture travels to a worker
    assert [fingerprint(pickle.loads(small)[i]) for i in range(3)] == expected
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.starmap(fingerprint_of, [(data, i) for i in range(3)]) == expected


def test_part_seed_and_level_each_make_other_pictures() -> None:
    others = [dataset(), dataset(part="val"), dataset(seed=1), dataset("hard")]
    assert len({fingerprint(data[0]) for data in others}) == 4


def test_changing_a_sample_leaves_the_data_set_as_it_was() -> None:
    data = dataset()
    before = fingerprint(data[0])
    image, target = data[0]
    image.zero_()
    target["boxes"].zero_()
    target.pop("masks")  # type: ignore[misc]
    assert fingerprint(data[0]) == before


def test_samples_keep_the_contract(level: str) -> None:
    data = dataset(level)
    assert isinstance(data, DetectionDataset)
    assert len(set(data.image_names)) == len(data) == 50
    ids = set()
    for i in range(len(data)):
        image, target = data[i]
        check_sample(image, target, data.class_map, data.iou_types, data.image_names[i])
        assert isinstance(image, tv_tensors.Image)
        assert isinstance(target["boxes"], tv_tensors.BoundingBoxes)
        assert target["boxes"].canvas_size == tuple(image.shape[1:]) == data.get_height_and_width(i)
        assert "masks" in target
        assert isinstance(target["masks"], tv_tensors.Mask)
        ids.add(target["image_id"])
    assert len(ids) == 50


def test_an_image_without_people_has_typed_empty_fields() -> None:
    data = dataset(size=200)
    empty = next(i for i in range(200) if len(data[i][1]["labels"]) == 0)
    _, target = data[empty]
    assert "masks" in target
    assert "keypoints" in target
    assert target["boxes"].shape == (0, 4)
    assert target["masks"].shape == (0, 144, 192)
    assert target["keypoints"].shape == (0, 17, 3)
    assert target["area"].dtype == torch.float32


def test_boxes_enclose_masks_and_masks_are_disjoint(level: str) -> None:
    data = dataset(level)
    for i in range(len(data)):
        _, target = data[i]
        assert "masks" in target
        assert int(target["masks"].sum(0).max()) <= 1
        for box, mask, area in zip(target["boxes"].tolist(), target["masks"], target["area"].tolist(), strict=True):
            rows, columns = mask.nonzero().unbind(1)
            assert box == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert area == int(mask.sum()) >= 15


def test_levels_hold_the_sizes_and_counts_that_they_promise(scenes: dict[str, list[Scene]]) -> None:
    for name, size, most in (("easy", (144, 192), 3), ("hard", (192, 256), 6)):
        counts = [len(scene.masks) for scene in scenes[name]]
        assert {scene.image.shape for scene in scenes[name]} == {(*size, 3)}
        assert set(counts) == set(range(most + 1))


def test_one_image_in_twenty_is_empty() -> None:
    data = dataset(size=400)
    empty = sum(len(data.scene(i).masks) == 0 for i in range(400))
    assert 8 <= empty <= 34  # 20 expected; beyond these, 1 in 1000 of a binomial distribution


def test_heights_are_log_uniform_over_the_range_of_the_level(scenes: dict[str, list[Scene]]) -> None:
    for name, low, high in (("easy", 36, 120), ("hard", 20, 170)):
        heights = [height for scene in scenes[name] for height in scene.heights]
        assert low <= min(heights) < low * 1.1
        assert high / 1.1 < max(heights) <= high
        shares = np.sort([math.log(height / low) / math.log(high / low) for height in heights])
        uniform = (np.arange(len(shares)) + 0.5) / len(shares)
        assert np.abs(shares - uniform).max() < 1.63 / math.sqrt(len(shares))  # Kolmogorov-Smirnov, 1 in 100


def test_a_whole_figure_is_as_tall_as_it_was_drawn_to_be() -> None:
    for seed, height in enumerate((20.0, 36.0, 63.5, 120.0, 170.0)):
        rows = np.flatnonzero(person(Dice(str(seed)), height).sprite.mask.any(axis=1))
        assert rows[-1] - rows[0] + 1 == pytest.approx(height, abs=1.5)


def test_in_hard_pictures_at_least_a_quarter_of_the_people_are_partly_covered(scenes: dict[str, list[Scene]]) -> None:
    covered = {name: np.mean([h > 0.05 for s in scenes[name] for h in s.hidden]) for name in LEVELS}
    assert covered["hard"] >= 0.25
    assert covered["easy"] <= 0.1
    assert all(0 <= hidden <= 0.75 for name in LEVELS for s in scenes[name] for hidden in s.hidden)


def test_keypoints_that_are_seen_lie_on_the_mask_or_beside_it(level: str, scenes: dict[str, list[Scene]]) -> None:
    seen = on = 0
    for scene in scenes[level][:60]:
        for mask, points in zip(scene.masks, scene.keypoints, strict=True):
            padded = np.pad(mask, 2)
            for x, y, visible in points:
                if visible == 2:
                    row, column = int(y), int(x)
                    assert padded[row : row + 5, column : column + 5].any()
                    seen, on = seen + 1, on + bool(mask[row, column])
    assert seen > 500
    assert on / seen > 0.97


def test_keypoints_are_zero_exactly_where_they_lie_outside(scenes: dict[str, list[Scene]]) -> None:
    points = np.concatenate([scene.keypoints.reshape(-1, 3) for scene in scenes["hard"]])
    outside = points[:, 2] == 0
    assert set(np.unique(points[:, 2])) == {0.0, 1.0, 2.0}
    assert not points[outside].any()
    assert (points[~outside, 0] < 256).all()
    assert (points[~outside, 1] < 192).all()
    assert (points[:, :2] >= 0).all()


def test_a_keypoint_behind_another_figure_is_hidden(scenes: dict[str, list[Scene]]) -> None:
    behind = 0
    for scene in scenes["hard"]:
        for back, points in enumerate(scene.keypoints):
            others = np.any(scene.masks[back + 1 :], axis=0)  # the farthest is first
            for x, y, visible in points:
                if visible > 0 and others[int(y), int(x)]:
                    assert visible == 1
                    behind += 1
    assert behind > 50


def test_a_persons_left_is_on_the_right_when_it_faces_the_camera() -> None:
    assert View(0).see(1, 0, 0)[0] == pytest.approx(1)
    assert View(180).see(1, 0, 0)[0] == pytest.approx(-1)
    assert View(90).see(0, 0, 1)[0] == pytest.approx(1)  # turned to the right edge of the picture
    assert View(90).see(1, 0, 0)[2] == pytest.approx(-1)  # and its left is far from the camera


def test_ground_truth_agrees_with_the_samples(level: str) -> None:
    data = dataset(level, part="val", size=12)
    truth = data.ground_truth()
    annotations = truth["annotations"]
    assert [a["id"] for a in annotations] == list(range(1, len(annotations) + 1))
    assert truth["categories"][0]["keypoints"] == list(PERSON.names)
    height, width = data.get_height_and_width(0)
    for i, image in enumerate(truth["images"]):
        assert image == {"id": i + 1, "file_name": f"val-{i:04d}", "height": height, "width": width}
        _, target = data[i]
        assert "masks" in target
        assert "keypoints" in target
        mine = [a for a in annotations if a["image_id"] == target["image_id"]]
        boxes = torch.tensor([a["bbox"] for a in mine]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        assert torch.equal(boxes, target["boxes"].as_subclass(torch.Tensor))
        assert [a["area"] for a in mine] == target["area"].tolist()
        masks = decode([a["segmentation"] for a in mine], height, width)
        assert torch.equal(masks, target["masks"].as_subclass(torch.Tensor))
        points = torch.tensor([a["keypoints"] for a in mine]).reshape(-1, 17, 3)
        assert torch.equal(points, target["keypoints"])
        assert [a["num_keypoints"] for a in mine] == (points[:, :, 2] > 0).sum(1).tolist()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"difficulty": "medium"}, "dataset.difficulty=medium: no such level; choose one of easy, hard."),
        ({"part": "all"}, "dataset: no part 'all'; there are train, val, test."),
        ({"test_size": -1}, "dataset.test_size=-1: must be 0 or more."),
        ({"train_size": 0}, "dataset.train_size=0: must be 1 or more."),
        ({"val_size": -3}, "dataset.val_size=-3: must be 1 or more."),
        ({"fold": 0}, "dataset.folds: None; give 2 to 2 (images), or leave dataset.fold out."),
        ({"folds": 2, "fold": 2}, "dataset.fold: 2; of 2 folds there are 0..1."),
        ({"fraction": 0}, "dataset.fraction: 0 is not allowed; allowed: above 0, up to 1."),
    ],
)
def test_a_wrong_setting_is_named_with_what_is_allowed(change: dict[str, object], said: str) -> None:
    settings: dict[str, object] = {
        "part": "train",
        "difficulty": "easy",
        "seed": 0,
        "train_size": 2,
        "val_size": 2,
        "test_size": 0,
        "folds": None,
        "fold": None,
        "fraction": 1.0,
    }
    with pytest.raises(UserError) as error:
        Synthetic(**(settings | change))  # type: ignore[arg-type]
    assert str(error.value) == said


def test_an_index_beyond_the_end_is_an_index_error() -> None:
    data = dataset(size=2)
    with pytest.raises(IndexError):
        data[2]
    assert [len(sample) for sample in data] == [2, 2]  # so that a for loop ends  # type: ignore[attr-defined]


def test_a_shape_covers_the_pixels_whose_centres_lie_within_it() -> None:
    ys, xs = np.mgrid[0:20, 0:20] + 0.5
    for shape, inside in (
        (Ellipse(9.3, 8.1, 6.2, 4.7), ((xs - 9.3) / 6.2) ** 2 + ((ys - 8.1) / 4.7) ** 2 <= 1),
        (rectangle(2.2, 3.4, 11.9, 17.6), (xs >= 2.2) & (xs <= 11.9) & (ys >= 3.4) & (ys <= 17.6)),
        (Capsule(4, 10, 3, 15, 10, 3), (np.hypot(xs - np.clip(xs, 4, 15), ys - 10) <= 3)),
    ):
        assert np.array_equal(draw([Part(shape, (255, 0, 0))], 20, 20).mask, inside)


def test_dice_are_uniform_and_of_their_name_alone() -> None:
    dice = Dice("name")
    numbers = [dice.uniform(2, 4) for _ in range(2000)]
    assert min(numbers) >= 2
    assert max(numbers) < 4
    assert np.mean(numbers) == pytest.approx(3, abs=0.05)
    assert Dice("name").uniform(2, 4) == numbers[0] != Dice("another").uniform(2, 4)
    whole = [dice.integer(1, 3) for _ in range(300)]
    assert set(whole) == {1, 2, 3}
    noise = dice.noise((7, 5, 3))
    assert noise.shape == (7, 5, 3)
    assert np.abs(noise).max() <= 1
    assert all(a != b for a, b in pairwise(noise[:, 0, 0]))


def folded(part: str, fold: int | None, fraction: float = 1.0) -> Synthetic:
    folds = None if fold is None else 3
    return Synthetic(
        part=part, difficulty="easy", seed=0, train_size=7, val_size=2, test_size=0, folds=folds, fold=fold, fraction=fraction
    )  # fmt: skip


def test_each_picture_is_validated_in_exactly_one_fold() -> None:
    held_out = [list(folded("val", fold).image_names) for fold in range(3)]
    assert sorted(sum(held_out, [])) == [f"train-{i:04d}" for i in range(7)]  # noqa: RUF017
    for fold in range(3):
        assert sorted(held_out[fold] + list(folded("train", fold).image_names)) == [f"train-{i:04d}" for i in range(7)]


def test_a_picture_of_a_fold_is_the_one_of_its_name() -> None:
    whole, fold = folded("train", None), folded("val", 1)
    truth = fold.ground_truth()
    for i, name in enumerate(fold.image_names):
        again = whole[list(whole.image_names).index(name)]
        assert torch.equal(fold[i][0], again[0])
        assert fold[i][1]["image_id"] == again[1]["image_id"] == truth["images"][i]["id"]


def test_a_fraction_of_the_pictures_is_contained_in_a_larger_one() -> None:
    few, more = (set(folded("train", None, fraction).image_names) for fraction in (0.3, 0.8))
    assert (len(few), len(more)) == (3, 6)
    assert few < more
    assert len(folded("val", None, 0.3)) == 2
