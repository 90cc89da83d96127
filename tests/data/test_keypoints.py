"""Keypoints as a config describes them: by name, with the usual where nothing is said, and every fault in a line."""

from __future__ import annotations

from typing import Any

import pytest

from detlab.data.keypoints import coco_categories, keypoints_from_config
from detlab.errors import UserError
from detlab.structures import PERSON, ClassMap

FACE = {
    "names": ["nose", "left_eye", "right_eye"],
    "flip_pairs": [["left_eye", "right_eye"]],
    "sigmas": [0.02, 0.03, 0.04],
    "skeleton": [["nose", "left_eye"], ["right_eye", "nose"]],
}


def test_names_become_places() -> None:
    face = keypoints_from_config(FACE, "dataset.keypoints")
    assert face is not None
    assert face.names == ("nose", "left_eye", "right_eye")
    assert face.flip_pairs == ((1, 2),)
    assert face.sigmas == (0.02, 0.03, 0.04)
    assert face.skeleton == ((0, 1), (2, 0))
    assert face.mirrored == (0, 2, 1)


def test_null_is_no_keypoints() -> None:
    assert keypoints_from_config(None, "dataset.keypoints") is None


@pytest.mark.parametrize("said", [{}, {"flip_pairs": None, "sigmas": None, "skeleton": None}])
def test_a_persons_names_are_enough(said: dict[str, Any]) -> None:
    assert keypoints_from_config({"names": list(PERSON.names), **said}, "dataset.keypoints") == PERSON


def test_of_other_names_those_called_left_and_right_are_pairs_and_no_line_joins_them() -> None:
    face = keypoints_from_config({"names": FACE["names"], "sigmas": [1, 2, 3]}, "dataset.keypoints")
    assert face is not None
    assert face.flip_pairs == ((1, 2),)
    assert face.skeleton == ()
    assert face.sigmas == (1.0, 2.0, 3.0)


def test_what_is_said_of_a_person_wins() -> None:
    node = {"names": list(PERSON.names), "flip_pairs": [], "sigmas": [0.1] * 17, "skeleton": []}
    person = keypoints_from_config(node, "dataset.keypoints")
    assert person is not None
    assert (person.flip_pairs, person.sigmas, person.skeleton) == ((), (0.1,) * 17, ())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"names": []}, "keypoints.names: [] is not allowed; give a list of at least one name."),
        ({"names": "nose"}, "keypoints.names: 'nose' is not allowed"),
        ({"names": [1, 2, 3]}, "keypoints.names: [1, 2, 3] is not allowed"),
        ({"names": ["nose", "nose", "left_eye"]}, "keypoints.names: 'nose' stands twice; name each point once."),
        ({"names": list(PERSON.names)}, "keypoints.sigmas: [0.02, 0.03, 0.04] is not allowed; give 17 numbers above 0"),
        ({"sigmas": None}, "keypoints.sigmas: null means COCO's of a person, whose 17 names these are not; give 3 numbers"),
        ({"sigmas": [0.1, 0.1]}, "keypoints.sigmas: [0.1, 0.1] is not allowed; give 3 numbers above 0, one for each name."),
        ({"sigmas": [0.1, 0.1, 0]}, "keypoints.sigmas: [0.1, 0.1, 0] is not allowed"),
        ({"sigmas": [0.1, 0.1, float("nan")]}, "keypoints.sigmas: [0.1, 0.1, nan] is not allowed"),
        ({"sigmas": ["a", "b", "c"]}, "keypoints.sigmas: ['a', 'b', 'c'] is not allowed"),
        ({"sigmas": 0.1}, "keypoints.sigmas: 0.1 is not allowed"),
        ({"flip_pairs": [["left_eye", "left_ear"]]}, "keypoints.flip_pairs: no point 'left_ear'; there are nose, left_eye, right"),
        ({"flip_pairs": [["nose"]]}, "keypoints.flip_pairs: [['nose']] is not allowed; give a list of pairs of names, [] for"),
        ({"flip_pairs": [[1, 2]]}, "keypoints.flip_pairs: no point 1; there are"),
        ({"flip_pairs": ["left_eye", "right_eye"]}, "keypoints.flip_pairs: ['left_eye', 'right_eye'] is not allowed"),
        ({"flip_pairs": [["nose", "nose"]]}, "keypoints.flip_pairs: ['nose', 'nose'] pairs a point with itself."),
        (
            {"flip_pairs": [["left_eye", "right_eye"], ["nose", "left_eye"]]},
            "keypoints.flip_pairs: 'left_eye' stands in two pairs; it can change places with one point only.",
        ),
        ({"skeleton": [["nose", "mouth"]]}, "keypoints.skeleton: no point 'mouth'; there are"),
        ({"skeleton": "nose"}, "keypoints.skeleton: 'nose' is not allowed"),
        ({"sigma": [0.1]}, "keypoints.sigma: no such key; there are names, flip_pairs, sigmas, skeleton."),
    ],
)  # fmt: skip
def test_a_fault_is_told_in_a_line_with_its_key(change: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as error:
        keypoints_from_config({**FACE, **change}, "dataset.keypoints")
    assert str(error.value).startswith(f"dataset.{said}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("node", [{}, {"sigmas": [0.1]}, ["nose"], "person"])
def test_a_node_that_names_no_points_is_told_what_to_give(node: Any) -> None:
    with pytest.raises(UserError, match=r"^where: .* is not allowed; give names"):
        keypoints_from_config(node, "where")


def test_the_categories_of_a_ground_truth_have_cocos_fields() -> None:
    classes = ClassMap(("face", "mask"), (7, 3))
    assert coco_categories(classes, None) == [{"id": 7, "name": "face"}, {"id": 3, "name": "mask"}]
    names = ["nose", "left_eye", "right_eye"]
    assert coco_categories(classes, keypoints_from_config(FACE, "x")) == [
        {"id": 7, "name": "face", "keypoints": names, "skeleton": [[1, 2], [3, 1]]},
        {"id": 3, "name": "mask", "keypoints": names, "skeleton": [[1, 2], [3, 1]]},
    ]
