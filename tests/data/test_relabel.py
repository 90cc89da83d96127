"""Classes are matched by name, whatever their order."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from detlab.data.relabel import with_classes
from detlab.errors import UserError
from detlab.structures import ClassMap


class Animals:
    """Two images; objects of labels 1 and 2, and 2."""

    class_map = ClassMap(("cat", "dog"), (17, 18))
    iou_types = ("bbox",)
    keypoints = None
    image_names = ("a", "b")

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Any:
        return torch.zeros(3, 4, 4), {"labels": torch.tensor([[1, 2], [2]][index])}

    def get_height_and_width(self, index: int) -> tuple[int, int]:
        return 4, 4

    def ground_truth(self) -> dict[str, Any]:
        rows = [{"id": 1, "category_id": 17}, {"id": 2, "category_id": 18}, {"id": 3, "category_id": 18}]
        return {"categories": self.class_map.categories(), "images": [], "annotations": rows}


def test_the_same_classes_leave_the_data_set_as_it_is() -> None:
    data: Any = Animals()
    assert with_classes(data, ("cat", "dog"), "best.pt", all_needed=True) is data


def test_labels_follow_the_names(caplog: pytest.LogCaptureFixture) -> None:
    data = with_classes(Animals(), ("cow", "dog", "cat"), "best.pt", all_needed=False)  # type: ignore[arg-type]
    assert [data[i][1]["labels"].tolist() for i in range(2)] == [[3, 2], [2]]
    assert data.class_map == ClassMap(("cow", "dog", "cat"), (19, 18, 17))
    truth = data.ground_truth()
    assert truth["categories"] == [{"id": 19, "name": "cow"}, {"id": 18, "name": "dog"}, {"id": 17, "name": "cat"}]
    assert [row["category_id"] for row in truth["annotations"]] == [17, 18, 18]
    assert "cat 1 -> 3, dog 2 -> 2; without objects: cow" in caplog.text


def test_a_class_that_the_model_does_not_know_is_named_with_both_lists() -> None:
    with pytest.raises(
        UserError, match=r"'dog' is unknown to the model\. The data set has cat, dog; best\.pt has cat, cow\."
    ):
        with_classes(Animals(), ("cat", "cow"), "best.pt", all_needed=False)  # type: ignore[arg-type]


def test_a_class_that_training_needs_is_named_with_both_lists() -> None:
    with pytest.raises(
        UserError, match=r"'cow' is not in the data set\. The data set has cat, dog; best\.pt has cat, cow, dog"
    ):
        with_classes(Animals(), ("cat", "cow", "dog"), "best.pt", all_needed=True)  # type: ignore[arg-type]
