"""A plain torch Dataset, the tutorial's kind, keeps the contract once it is adapted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from detlab.data.adapt import AdaptedDataset, adapt_image, adapt_target
from detlab.errors import UserError
from detlab.structures import check_sample


class Plain(torch.utils.data.Dataset):
    """Six samples in the tutorial's types; `changes` are made to each target."""

    def __init__(self, **changes: Any) -> None:
        self.changes = changes

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> tuple[Any, dict[str, Any]]:
        masks = torch.zeros(2, 20, 30, dtype=torch.uint8)
        masks[0, 2:6, 3:9] = 1
        masks[1, 10:20, 20:30] = 1
        target = {
            "boxes": torch.tensor([[3.0, 2, 9, 6], [20, 10, 30, 20]]),
            "labels": torch.ones(2, dtype=torch.int64),
            "image_id": torch.tensor([index]),
            "area": torch.tensor([24.0, 100.0]),
            "iscrowd": torch.zeros(2, dtype=torch.uint8),
            "masks": masks,
            **self.changes,
        }
        return Image.new("RGB", (30, 20)), {key: value for key, value in target.items() if value is not None}


def adapted(part: str = "val", *, points: dict[str, Any] | None = None, **changes: Any) -> AdaptedDataset:
    return AdaptedDataset(
        dataset=Plain(**changes),
        classes=["person"],
        keypoints=points,
        part=part,
        val_size=2,
        split_seed=0,
        test_size=0,
    )


def test_the_parts_share_no_image_and_keep_the_contract() -> None:
    train, val = adapted("train"), adapted("val")
    assert (len(train), len(val)) == (4, 2)
    assert not set(train.image_names) & set(val.image_names)
    assert train.iou_types == ("bbox", "segm")
    for data in (train, val):
        for i in range(len(data)):
            image, target = data[i]
            check_sample(image, target, data.class_map, data.iou_types, data.image_names[i])
            assert isinstance(target["image_id"], int)


def test_the_ground_truth_holds_what_the_samples_hold() -> None:
    val = adapted()
    truth = val.ground_truth()
    assert [a["id"] for a in truth["annotations"]] == [1, 2, 3, 4]
    assert {tuple(a["bbox"]) for a in truth["annotations"]} == {(3.0, 2.0, 6.0, 4.0), (20.0, 10.0, 10.0, 10.0)}
    assert {image["id"] for image in truth["images"]} == {val[i][1]["image_id"] for i in range(2)}
    assert val.get_height_and_width(0) == (20, 30)
    assert truth["annotations"][0]["segmentation"]["size"] == [20, 30]


def test_area_and_iscrowd_may_be_absent_and_iscrowd_of_either_integer_type() -> None:
    without = adapted(area=None, iscrowd=None)[0][1]
    assert without["area"].tolist() == [24, 100]
    assert without["iscrowd"].tolist() == [0, 0]
    assert adapted(iscrowd=torch.zeros(2, dtype=torch.int64))[0][1]["iscrowd"].tolist() == [0, 0]


def test_an_image_id_that_stands_twice_is_refused() -> None:
    with pytest.raises(UserError, match="image_id 7 stands twice"):
        adapted(image_id=7).ground_truth()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"labels": None}, "the target lacks labels"),
        ({"boxes": "none"}, "cannot be read"),
        ({"boxes": torch.zeros(3)}, "cannot be read"),
        ({"image_id": torch.tensor([1, 2])}, "cannot be read"),
    ],
)
def test_a_target_that_cannot_be_read_is_named(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        adapted(**changes)
    assert "Plain[" in str(caught.value)


THREE = {"names": ["top", "left_end", "right_end"], "sigmas": [0.1, 0.2, 0.2], "skeleton": [["left_end", "right_end"]]}


def test_keypoints_of_any_number_are_kept_with_their_settings() -> None:
    places = torch.arange(18).reshape(2, 3, 3)
    places[..., 2] = torch.tensor([[2, 1, 0], [0, 0, 0]])
    val = adapted(points=THREE, keypoints=places)
    assert val.iou_types == ("bbox", "segm", "keypoints")
    assert val.keypoints is not None
    assert val.keypoints.sigmas == (0.1, 0.2, 0.2)
    assert val.keypoints.flip_pairs == ((1, 2),)
    image, target = val[0]
    check_sample(image, target, val.class_map, val.iou_types, "x")
    assert torch.equal(target["keypoints"], places.float())
    truth = val.ground_truth()
    assert truth["categories"] == [{"id": 1, "name": "person", "keypoints": THREE["names"], "skeleton": [[2, 3]]}]
    assert [row["num_keypoints"] for row in truth["annotations"]] == [2, 0, 2, 0]
    assert truth["annotations"][0]["keypoints"] == [0, 1, 2, 3, 4, 1, 6, 7, 0]


@pytest.mark.parametrize("empty", [None, torch.zeros(0), torch.zeros(0, 17, 3)])
def test_an_image_without_objects_needs_no_keypoints(empty: torch.Tensor | None) -> None:
    nothing = {"boxes": torch.zeros(0, 4), "labels": [], "area": [], "iscrowd": [], "masks": torch.zeros(0, 20, 30)}
    data = adapted(points=THREE, keypoints=empty, **nothing)
    image, target = data[0]
    check_sample(image, target, data.class_map, data.iou_types, "x")
    assert target["keypoints"].shape == (0, 3, 3)
    assert data.iou_types == ("bbox", "segm", "keypoints")


def test_keypoints_that_nobody_described_or_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError) as error:
        adapted(keypoints=torch.zeros(2, 5, 3))
    assert "has keypoints, [2, 5, 3], and nothing says what they are; give dataset.keypoints={names: [...]" in str(
        error.value
    )
    with pytest.raises(
        UserError, match=r"keypoints are \[2, 5, 3\], but dataset\.keypoints\.names has 3; expected \[objects, 3"
    ):
        adapted(points=THREE, keypoints=torch.zeros(2, 5, 3))
    with pytest.raises(UserError, match=r"^dataset\.keypoints\.sigmas: null means"):
        adapted(points={"names": ["a"]}, keypoints=torch.zeros(2, 1, 3))
    with pytest.raises(UserError, match="the target lacks keypoints"):
        adapted(points=THREE).ground_truth()


def pixels(image: Any) -> list[list[int]]:
    return adapt_image(image, "x")[:, 0].T.tolist()


def test_pil_images_of_every_mode_become_what_files_of_it_become() -> None:
    deep = Image.fromarray(np.array([[0, 257, 65535, 700]], np.uint16))
    assert pixels(deep) == [[0] * 3, [1] * 3, [255] * 3, [2] * 3]
    assert pixels(Image.new("CMYK", (1, 1), (255, 0, 0, 0))) == [[0, 255, 255]]
    assert pixels(Image.new("RGBA", (1, 1), (10, 20, 30, 0))) == [[10, 20, 30]]
    palette = Image.new("P", (1, 1), 1)
    palette.putpalette([0, 0, 0, 40, 50, 60])
    palette.info["transparency"] = 0
    assert pixels(palette) == [[40, 50, 60]]
    with pytest.raises(UserError, match=r"x: not readable as an image \(its pixels are 32-bit floats"):
        adapt_image(Image.new("F", (4, 3)), "x")


def test_a_pil_image_is_not_turned_since_its_boxes_are_of_it_as_it_is(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20), (9, 9, 9)).save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as image:
        assert adapt_image(image, "x").shape == (3, 20, 30)


def test_a_pil_image_that_is_cut_off_is_named(tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)).save(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:-300])
    with Image.open(tmp_path / "a.jpg") as image, pytest.raises(UserError, match=r"^x: not readable as an image"):
        adapt_image(image, "x")


def test_images_of_every_kind_become_uint8_rgb() -> None:
    grey, floats = Image.new("L", (4, 3), 200), torch.full((3, 3, 4), 0.5)
    for image, value in ((grey, 200), (floats, 127), (np.full((1, 3, 4), 9, np.uint8), 9)):
        adapted_image = adapt_image(image, "x")
        assert adapted_image.shape == (3, 3, 4)
        assert adapted_image.dtype == torch.uint8
        assert set(adapted_image.flatten().tolist()) == {value}
    with pytest.raises(UserError, match=r"shape \[2, 3, 4\]"):
        adapt_image(torch.zeros(2, 3, 4), "x")


def test_a_target_without_objects_becomes_typed_empty_tensors() -> None:
    empty = adapt_target({"boxes": torch.zeros(0), "labels": [], "image_id": 3}, (5, 5), "x")
    assert empty["boxes"].shape == (0, 4)
    assert empty["labels"].dtype == torch.int64


def test_sizes_are_asked_of_a_class_that_knows_them() -> None:
    class Sized(torch.utils.data.Dataset[Any]):
        built = False

        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> Any:
            if self.built:
                raise AssertionError("decoded for its size")
            target = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0), "image_id": index}
            return torch.zeros(3, 4, 5), target

        def get_height_and_width(self, index: int) -> tuple[int, int]:
            return 10 + index, 20

    data = AdaptedDataset(
        dataset=Sized(), classes=["a"], part="train", val_size=0, split_seed=0, test_size=0, keypoints=None
    )  # fmt: skip
    Sized.built = True
    assert sorted(data.get_height_and_width(i) for i in range(3)) == [(10, 20), (11, 20), (12, 20)]
