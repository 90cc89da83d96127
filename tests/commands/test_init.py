"""`detlab init`: the project that it writes works as it stands, for data that it draws and for a COCO file."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import lines_of
from PIL import Image

from detlab import cli

Paths = tuple[Path, Path]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", sys.path[:])


def write_coco(root: Path, *, named: str = "photos", count: int = 6, **changes: Any) -> Path:
    """Images of noise with a bright box each, of a cat or a dog, and their COCO file, with keys replaced."""
    folder = root / named
    folder.mkdir(parents=True)
    rows, objects = [], []
    for i in range(1, count + 1):
        pixels = np.random.default_rng(i).integers(0, 90, (48, 64, 3), dtype=np.uint8)
        pixels[8:40, 10:34] = 220
        Image.fromarray(pixels).save(folder / f"{i}.png")
        rows.append({"id": i, "file_name": f"{i}.png", "height": 48, "width": 64})
        objects.append(
            {"id": i, "image_id": i, "category_id": 3 + i % 2, "bbox": [10, 8, 24, 32], "area": 768, "iscrowd": 0}
        )
    content = {
        "images": rows,
        "annotations": objects,
        "categories": [{"id": 3, "name": "cat"}, {"id": 4, "name": "dog"}],
    }
    path = root / "labels.json"
    path.write_text(json.dumps({**content, **changes}))
    return path


def call(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_the_images_are_found_beside_the_file_and_the_next_commands_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_coco(tmp_path / "data")
    assert cli.main(["init", "my project", str(path)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"{path}: 6 images with 6 objects of 2 class(es): cat, dog; bbox"
    assert said[1] == f"{path.parent / 'photos'}: all its images are there"
    assert said[-3:] == [
        "  cd 'my project'",
        "  detlab validate dataset=mine",
        "  detlab train experiment=first debug=smoke",
    ]
    text = (tmp_path / "my project" / "conf" / "dataset" / "mine.yaml").read_text()
    assert f'root: "{tmp_path}/data"\n' in text
    assert 'train_images: "photos"\n' in text
    assert "  min: 48 " in text
    assert "override /model: mobilenet_fpn" in (tmp_path / "my project/experiments/experiment/first.yaml").read_text()


def test_images_of_cocos_own_layout_are_found(tmp_path: Path) -> None:
    path = write_coco(tmp_path / "coco", named="train2017")
    (tmp_path / "coco" / "annotations").mkdir()
    path = path.rename(tmp_path / "coco" / "annotations" / "instances.json")
    assert cli.main(["init", "p", str(path)]) == 0
    text = (tmp_path / "p" / "conf" / "dataset" / "mine.yaml").read_text()
    assert f'root: "{tmp_path}/coco"\n' in text  # the nearest folder above both
    assert 'train_annotations: "annotations/instances.json"\n' in text
    assert 'train_images: "train2017"' in text


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.main(["init", *arguments]) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) <= 2
    assert not Path("p").exists()
    return said


def test_a_folder_that_holds_something_is_refused_and_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note").write_text("mine")
    assert "full: is there already" in refused(["full"], capsys)
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["note"]
    (tmp_path / "empty").mkdir()
    assert cli.main(["init", "empty"]) == 0


def test_images_that_are_not_found_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_coco(tmp_path / "data")
    (tmp_path / "data" / "photos" / "2.png").unlink()
    assert "photos: lacks 1 of the 6 images in" in refused(["p", str(path)], capsys)
    assert "lacks 6 of the 6 images" in refused(["p", str(path), "--images", str(tmp_path)], capsys)
    assert "nowhere is no folder" in refused(["p", str(path), "--images", "nowhere"], capsys)
    lonely = tmp_path / "deep" / "er" / "labels.json"
    lonely.parent.mkdir(parents=True)
    path.rename(lonely)
    assert "Name their folder: --images DIR" in refused(["p", str(lonely)], capsys)
    assert "of which annotations" in refused(["p", "--images", str(tmp_path)], capsys)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"images": None}, "lacks the list images"),
        ({"images": []}, "lists 0 image(s)"),
        ({"images": [{"id": 1, "file_name": "../../x.png"}] * 2}, "images[0]: file_name '../../x.png' is no name"),
        ({"images": [{"id": 1}] * 2}, "images[0]: file_name None"),
        ({"categories": []}, "name at least one class"),
    ],
)
def test_a_file_that_is_no_coco_file_is_refused(
    changes: dict[str, Any], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in refused(["p", str(write_coco(tmp_path / "data", **changes))], capsys)


def test_names_of_a_stranger_do_not_break_the_yaml(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [{"id": 3, "name": "a: 'b' # c"}, {"id": 4, "name": "${oc.env:HOME}"}]
    path = write_coco(tmp_path / "${data}", categories=names)
    assert cli.main(["init", "p", str(path)]) == 0
    assert "a: 'b' # c, ${oc.env:HOME}" in capsys.readouterr().out
    read = yaml.safe_load((tmp_path / "p" / "conf" / "dataset" / "mine.yaml").read_text())
    assert read["root"] == f"{tmp_path}/\\${{data}}"
    done = call(tmp_path / "p", "detlab.cli", "validate", "dataset=mine")
    assert done.returncode == 0, done.stdout + done.stderr


def typed(folder: Path, said: str) -> None:
    """Type the commands that `detlab init` has said, as they stand, and look for the run that the last one leaves."""
    commands = [line.strip() for line in said.splitlines() if line.startswith("  detlab ")]
    assert len(commands) == 2
    for command in commands:
        done = call(folder, "detlab.cli", *shlex.split(command)[1:])
        assert done.returncode == 0, done.stdout + done.stderr
    (run,) = folder.glob("outputs/*/*")
    assert "val/bbox/AP" in lines_of(run)[-1]


@pytest.mark.slow
def test_the_commands_that_it_says_work_letter_by_letter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["init", "p", str(write_coco(tmp_path / "data"))]) == 0
    typed(tmp_path / "p", capsys.readouterr().out)


@pytest.mark.slow
def test_the_tour_of_the_readme_works_letter_by_letter(tmp_path: Path) -> None:
    write_coco(tmp_path, count=30)
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    block = readme.partition("### From your images to a model")[2].split("\n\n")[2]
    lines = [line.split("  #")[0].strip() for line in block.splitlines()]
    assert 8 <= len(lines) <= 9  # and cd: ten commands at most
    assert lines[0].endswith(" && cd animals")
    for line in lines:
        command = shlex.split(line.removesuffix(" && cd animals"))
        assert command[0] == "detlab"
        short = ["debug=smoke"] if command[1] == "train" else []
        folder = tmp_path if command[1] == "init" else tmp_path / "animals"
        done = call(folder, "detlab.cli", *command[1:], *short)
        # The objects of a model that has hardly learnt are as good as drawn, if there are any: a file need not be verified by them.
        refused = command[1] == "export" and "detlab: not written, since it is not verified" in done.stderr
        assert done.returncode == 0 or refused, done.stdout + done.stderr
    made = {path.name for path in (tmp_path / "animals").iterdir()}
    assert {"show", "outputs", "errors", "pictures"} <= made
    assert len(list((tmp_path / "animals" / "pictures").glob("*.png"))) == 30
    assert (tmp_path / "animals" / "outputs" / "report.html").is_file()


@pytest.mark.long
@pytest.mark.parametrize("own", [True, False], ids=["a COCO file", "drawn"])
def test_the_project_passes_its_own_test(own: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(write_coco(tmp_path / "data"))] if own else []
    assert cli.main(["init", "p", *arguments]) == 0
    typed(tmp_path / "p", capsys.readouterr().out)
    done = call(tmp_path / "p", "pytest", "-q", "-p", "no:cacheprovider")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 passed" in done.stdout


def test_a_name_that_would_command_the_terminal_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_coco(tmp_path / "data", categories=[{"id": 3, "name": "a\x1b[31m"}, {"id": 4, "name": "dog"}])
    assert "cannot be printed" in (said := refused(["p", str(path)], capsys))
    assert "\x1b" not in said
