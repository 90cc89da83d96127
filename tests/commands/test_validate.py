"""`detlab validate`: its table, its JSON, its exit status."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SHARED, write_pennfudan
from PIL import Image

from detlab import cli


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [str(tmp_path), *__import__("sys").path])


def write_coco(root: Path) -> list[str]:
    """Two images for training and one for validation, of two objects each; gives the overrides."""
    (root / "images").mkdir(parents=True)
    for part, numbers in (("train", (1, 2)), ("val", (3,))):
        images, annotations = [], []
        for i in numbers:
            pixels = np.random.default_rng(i).integers(0, 255, (40, 60, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "images" / f"{i}.png")
            images.append({"id": i, "file_name": f"{i}.png", "height": 40, "width": 60})
            for j, name in enumerate((5, 9)):
                box = [5 + 25 * j, 5, 20, 30]
                annotations.append({"id": 10 * i + j, "image_id": i, "category_id": name, "bbox": box})
        content = {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": 9, "name": "dog"}, {"id": 5, "name": "cat"}],
        }
        (root / f"{part}.json").write_text(json.dumps(content))
    return [
        "dataset=coco",
        f"dataset.root={root}",
        *(f"dataset.{part}_annotations={part}.json" for part in ("train", "val")),
        *(f"dataset.{part}_images=images" for part in ("train", "val")),
    ]


def damage(root: Path) -> None:
    """An object outside its image, an object of no class, one under a pixel, and an image cut off."""
    content = json.loads((root / "train.json").read_text())
    content["annotations"][1]["bbox"] = [50, 5, 20, 30]
    content["annotations"][2]["category_id"] = 7
    content["annotations"][3]["bbox"] = [5, 5, 0.5, 30]
    (root / "train.json").write_text(json.dumps(content))
    image = root / "images" / "3.png"
    image.write_bytes(image.read_bytes()[:3000])


def test_the_table_names_the_worst_first_with_what_to_do_and_ends_in_a_verdict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = write_coco(tmp_path / "data")
    damage(tmp_path / "data")
    assert cli.main(["validate", *overrides]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert (
        lines[0]
        == "error         1  box outside: boxes are pixels of the upright image; dataset.invalid=clip cuts them"
    )
    assert lines[1] == (
        "                 train  1.png, annotation 11: box [50.0, 5.0, 20.0, 30.0] (x, y, width, height) reaches out of the image "
        "of 40 x 60 (height x width)"
    )
    heads = [line.split(":")[0].split(None, 2) for line in lines if line[:1] not in (" ", "")]
    assert heads[:5] == [
        ["error", "1", "box outside"],
        ["error", "1", "image unreadable"],
        ["error", "1", "unknown class"],
        ["warning", "1", "box under a pixel"],
        ["note", "2", "class of few objects"],
    ]
    assert "                 val    3.png: not readable as an image (" in "\n".join(lines)
    assert lines[-5:-1] == [
        "label  id in the files  class  train objects   images    val objects   images",
        "    1                5  cat                1        1              1        1",
        "    2                9  dog                2        2              1        1",
        "",
    ]
    assert lines[-1] == (
        "3 error(s), 1 warning(s), 2 note(s). train 2 images with 3 objects, val 1 images with 2 objects; images decoded."
    )


def test_json_has_every_fault_and_the_classes_by_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = write_coco(tmp_path / "data")
    damage(tmp_path / "data")
    assert cli.main(["validate", "--json", *overrides]) == 1
    verdict: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert (verdict["errors"], verdict["warnings"], verdict["notes"], verdict["decoded"]) == (3, 1, 2, True)
    assert verdict["parts"] == {"train": {"images": 2, "objects": 3}, "val": {"images": 1, "objects": 2}}
    assert verdict["classes"][0] == {
        "name": "cat",
        "label": 1,
        "category_id": 5,
        "objects": {"train": 1, "val": 1},
        "images": {"train": 1, "val": 1},
    }
    found = {(f["severity"], f["kind"], f["part"], f["image"], f["annotation"]) for f in verdict["faults"]}
    assert found >= {
        ("error", "unknown class", "train", "2.png", 20),
        ("error", "box outside", "train", "1.png", 11),
        ("warning", "box under a pixel", "train", "2.png", 21),
        ("error", "image unreadable", "val", "3.png", None),
        ("note", "class of few objects", "", None, None),
    }
    assert all(fault["said"] and fault["remedy"] for fault in verdict["faults"])


def test_three_examples_of_a_kind_are_shown_and_the_others_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = write_coco(tmp_path / "data")
    content = json.loads((tmp_path / "data" / "train.json").read_text())
    for row in content["annotations"]:
        row["area"] = -1
    (tmp_path / "data" / "train.json").write_text(json.dumps(content))
    assert cli.main(["validate", *overrides]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("error         4  area impossible: ")
    assert lines[4] == "                 and 1 more"


def test_without_errors_the_exit_status_is_0_and_what_invalid_says_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = write_coco(tmp_path / "data")
    assert cli.main(["validate", *overrides, "dataset.invalid=drop", "epochs=7"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("No errors, 0 warning(s), 2 note(s). ")
    damage(tmp_path / "data")
    assert cli.main(["validate", *overrides, "dataset.invalid=drop"]) == 1


def test_no_decode_reads_headers_alone_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = write_coco(tmp_path / "data")
    image = tmp_path / "data" / "images" / "3.png"
    image.write_bytes(image.read_bytes()[:3000])
    assert cli.main(["validate", *overrides, "--no-decode"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("; images not decoded.")
    assert cli.main(["validate", *overrides]) == 1


def test_objects_above_what_the_model_reports_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = write_coco(tmp_path / "data")
    assert cli.main(["validate", *overrides, "model.box_detections_per_img=1", "--json"]) == 0
    verdict = json.loads(capsys.readouterr().out)
    told = [(f["image"], f["said"]) for f in verdict["faults"] if f["kind"] == "too many objects"]
    assert told == [(f"{i}.png", "2 objects, but the model reports at most 1") for i in (1, 2, 3)]


def test_files_that_are_split_are_told_by_the_part_that_has_the_image(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = write_coco(tmp_path / "data")
    content = json.loads((tmp_path / "data" / "train.json").read_text())
    for row in content["annotations"][::2]:
        row["category_id"] = 7
    (tmp_path / "data" / "train.json").write_text(json.dumps(content))
    split = ("dataset.val_annotations=null", "dataset.val_size=1")
    assert cli.main(["validate", *overrides[:3], overrides[4], *split, "--json"]) == 1
    verdict = json.loads(capsys.readouterr().out)
    unknown = [(f["part"], f["image"]) for f in verdict["faults"] if f["kind"] == "unknown class"]
    assert {part for part, _ in unknown} == {"train", "val"}
    assert verdict["parts"] == {part: {"images": 1, "objects": 1} for part in ("train", "val")}


def test_a_data_set_without_an_index_is_gone_through(capsys: pytest.CaptureFixture[str]) -> None:
    small = ("dataset.train_size=4", "dataset.val_size=2", "dataset.test_size=3")
    assert cli.main(["validate", *small, "--no-decode", "--json"]) == 0
    verdict = json.loads(capsys.readouterr().out)
    assert {part: said["images"] for part, said in verdict["parts"].items()} == {"train": 4, "val": 2, "test": 3}
    assert verdict["decoded"]
    assert verdict["errors"] == verdict["warnings"] == 0


def test_masks_in_folders_are_looked_at_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_pennfudan(tmp_path / "PennFudanPed", 6)
    overrides = ("dataset=pennfudan", f"dataset.root={root}", "dataset.val_size=2")
    assert cli.main(["validate", *overrides]) == 0
    (root / "PedMasks" / "Ped00002_mask.png").unlink()
    capsys.readouterr()
    assert cli.main(["validate", *overrides]) == 1
    assert "Ped00002.png: an image without its mask" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["datset=coco"], "datset: no such key. Did you mean dataset?"),
        (["dataset=coco"], "dataset.root: missing; give dataset.root=..."),
        (["dataset=coco", "dataset.root=nowhere"], "instances_train2017.json: No such file or directory"),
        (["dataset.seed=1,2"], "dataset.seed: several values"),
        (["dataset=coco", "dataset.root=a", "dataset.invalid=keep"], "dataset.invalid: 'keep' is not allowed"),
    ],
)
def test_a_mistake_is_said_in_a_line_with_exit_status_2(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["validate", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("detlab: ")
    assert said in line


@pytest.mark.slow
def test_in_the_real_penn_fudan_nothing_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    if not (SHARED / "data" / "PennFudanPed").is_dir():
        pytest.skip(f"{SHARED / 'data'} has no PennFudanPed")
    assert (
        cli.main(["validate", "dataset=pennfudan", f"dataset.root={SHARED / 'data' / 'PennFudanPed'}", "--json"]) == 0
    )
    verdict = json.loads(capsys.readouterr().out)
    assert verdict["faults"] == []
    assert sum(part["objects"] for part in verdict["parts"].values()) == 423
