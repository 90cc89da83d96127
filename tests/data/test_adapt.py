"""A plain torch Dataset, the tutorial's kind, keeps the contract once it is adapted."""

from __future__ import annotations

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


def adapted(part: str = "val", **changes: Any) -> AdaptedDataset:
    return AdaptedDataset(
        dataset=Plain(**changes), classes=["person"], part=part, val_size=2, split_seed=0, test_size=0
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
