"""Which images a command line names: files, folders, patterns; their names, and their ids in a ground truth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from detlab.commands.sources import as_in_ground_truth, find_images
from detlab.errors import UserError


@pytest.fixture(autouse=True)
def _photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """a.png, b.JPG, a text, a hidden file and a hidden folder, and below them two folders with an a.png each; none is an image."""
    monkeypatch.chdir(tmp_path)
    for name in ("b.JPG", "a.png", "notes.txt", ".a.png", ".trash/a.png", "one/a.png", "two/deep/a.png"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def names(*given: str) -> list[str]:
    return [source.name for source in find_images(given)]


def refused(*given: str) -> list[str]:
    with pytest.raises(UserError) as error:
        find_images(given)
    return str(error.value).splitlines()


def test_a_folder_stands_for_the_images_in_it_and_below_by_their_names_in_it() -> None:
    sources = find_images(["photos"])
    assert [source.name for source in sources] == ["a.png", "b.JPG", "one/a.png", "two/deep/a.png"]
    assert [source.image_id for source in sources] == [1, 2, 3, 4]
    assert sources[3].path == Path.cwd() / "photos/two/deep/a.png"
    assert names("photos/two") == ["deep/a.png"]


def test_images_of_one_name_from_two_folders_keep_their_folders() -> None:
    assert names("photos/two/deep/a.png", "photos/one/a.png") == ["one/a.png", "two/deep/a.png"]
    assert names("photos/one", "photos/two") == ["one/a.png", "two/deep/a.png"]


def test_a_file_is_taken_whatever_it_is_called_and_only_once() -> None:
    assert names("photos/notes.txt", "photos/.a.png") == [".a.png", "notes.txt"]
    assert names("photos/one/a.png", "photos/one/../one/a.png", "photos/one") == ["a.png"]


def test_patterns_are_expanded_for_shells_that_do_not() -> None:
    assert names("photos/*.png") == ["a.png"]
    assert names("photos/**/a.png") == ["a.png", "one/a.png", "two/deep/a.png"]
    Path("photos/c[1].png").touch()
    assert names("photos/c[1].png") == ["c[1].png"]


def test_what_predict_wrote_itself_is_passed_over_in_folders() -> None:
    for name in ("predictions.json", "images.json"):
        Path("photos/two", name).touch()
    assert names("photos") == ["a.png", "b.JPG", "one/a.png"]
    assert names("photos/two") == ["deep/a.png"]


def test_all_that_is_not_there_is_told_at_once() -> None:
    Path("empty").mkdir()
    lines = refused("absent.png", "photos/*.gif", "photos", "empty")
    assert lines[:2] == ["absent.png: no such file or folder.", "photos/*.gif: matches no file."]
    assert lines[2].startswith("empty: a folder without images; they end in .bmp, .gif, .jpeg")
    assert len(lines) == 3


def test_two_images_whose_pictures_would_have_one_name_are_refused() -> None:
    Path("photos/scan.tif").touch()
    Path("photos/scan.tif.png").touch()
    assert [source.picture for source in find_images(["photos/scan.tif", "photos/b.JPG"])] == ["b.JPG", "scan.tif.png"]
    assert "scan.tif.png: its picture would be called scan.tif.png, and so would that of" in refused("photos")[0]


GROUND_TRUTH: dict[str, Any] = {
    "images": [
        {"id": 70, "file_name": "a.png", "height": 4, "width": 6},
        {"id": 80, "file_name": "one/a.png"},
        {"id": 90, "file_name": "b.JPG"},
    ],
    "categories": [{"id": 5, "name": "cat"}],
}


def truth(content: Any) -> Path:
    Path("gt.json").write_text(json.dumps(content))
    return Path("gt.json")


def test_an_image_has_the_id_of_the_longest_file_name_that_its_path_ends_in() -> None:
    sources, categories = as_in_ground_truth(
        find_images(["photos/a.png", "photos/one", "photos/b.JPG"]), truth(GROUND_TRUTH)
    )
    assert [(s.name, s.image_id, s.size) for s in sources] == [
        ("a.png", 70, (4, 6)),
        ("b.JPG", 90, None),
        ("one/a.png", 80, None),
    ]
    assert categories == [{"id": 5, "name": "cat"}]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"images": GROUND_TRUTH["images"][2:]},
            "photos/a.png and 2 more: not in gt.json, whose images are listed by file_name.",
        ),
        ({"images": GROUND_TRUTH["images"][::2]}, "/one/a.png: is 'a.png' in gt.json, and so is "),
        ({"images": GROUND_TRUTH["images"] * 2}, "gt.json: a file_name stands twice"),
        ({"images": [{"id": 1}]}, "gt.json: KeyError 'file_name'; a COCO ground truth is an object with images"),
        ({"categories": None}, "gt.json: TypeError"),
    ],
)
def test_a_ground_truth_that_does_not_fit_is_told(change: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as error:
        as_in_ground_truth(find_images(["photos"]), truth(GROUND_TRUTH | change))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_list_is_no_ground_truth() -> None:
    with pytest.raises(UserError, match=r"gt\.json: holds a list; a COCO ground truth is an object with images"):
        as_in_ground_truth(find_images(["photos"]), truth([]))
