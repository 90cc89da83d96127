"""A keypoint detector from its training to its pictures: the settings of its points go with it everywhere."""

from __future__ import annotations

import functools
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import runs
import torch
from conftest import TINY, lines_of, write_pennfudan

import detlab as package
from detlab import cli, pictures
from detlab.checkpoint import check_keypoints, keypoints_of, load_model, read
from detlab.errors import UserError
from detlab.evaluation.metrics import KEYPOINT_METRICS
from detlab.run import main
from detlab.structures import PERSON, Keypoints

Detlab = Callable[..., int]
MODEL = ("model=keypointrcnn", "model.keypoint_layers=[16]")
FACE = Keypoints(("nose", "left_eye", "right_eye"), ((1, 2),), (0.1, 0.2, 0.2), ((0, 1),))


@functools.cache
def keypoint_rcnn(base: Path) -> Path:
    """The folder of a small run of Keypoint R-CNN on the embedded data set."""
    folder = base / "keypoint_rcnn"
    folder.mkdir()
    with runs._at_work(folder, *MODEL, *TINY, "model.box_score_thresh=0", "optimizer.lr=0.002", "hydra.run.dir=run"):
        assert main() == 0
    return folder / "run"


@pytest.fixture
def trained(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", sys.path[:])
    return keypoint_rcnn(tmp_path_factory.getbasetemp())


def changed(checkpoint: Path, name: str, **keypoints: Any) -> Path:
    """A copy of a checkpoint that says something else of its keypoints."""
    state = read(checkpoint)
    state["keypoints"] |= keypoints
    torch.save(state, name)
    return Path(name)


def copied(run: Path) -> Path:
    """A run's folder in the working folder."""
    return Path(shutil.copytree(run, "run"))


def test_a_run_is_scored_by_cocos_ten_numbers_beside_those_of_its_boxes(trained: Path) -> None:
    lines = lines_of(trained)
    (scored,) = [line for line in lines if "val/keypoints/AP" in line]
    names = {name.removeprefix("val/keypoints/") for name in scored if name.startswith("val/keypoints/")}
    assert names == {metric.name for metric in KEYPOINT_METRICS}
    assert "val/bbox/AP" in scored
    assert "val/segm/AP" not in scored
    assert all(line["train/loss_keypoint"] > 0 for line in lines if "train/loss" in line)
    assert json.loads((trained / "run.json").read_text())["position"]["best"] == scored["val/keypoints/AP"]


def test_the_settings_stand_in_the_checkpoint_and_rebuild_the_model(trained: Path) -> None:
    for name in ("best.pt", "last.pt"):
        assert keypoints_of(read(trained / "checkpoints" / name)) == PERSON
    model, _, keypoints = load_model(trained / "checkpoints" / "best.pt")
    assert keypoints == PERSON
    (prediction,) = model([torch.rand(3, 72, 96)])
    assert prediction["keypoints"].shape[1:] == (17, 3)
    detector = package.load(trained, device="cpu")
    assert detector.keypoints == PERSON
    assert detector.iou_types == ("bbox", "keypoints")


def test_evaluate_gives_the_numbers_that_the_run_logged(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logged = next(line for line in lines_of(trained) if "val/keypoints/AP" in line)
    assert cli.main(["evaluate", str(trained), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == {key.removeprefix("val/"): value for key, value in logged.items() if key.startswith("val/")}


def test_evaluate_takes_other_sigmas_and_refuses_other_names(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    best = trained / "checkpoints" / "best.pt"
    assert cli.main(["evaluate", str(changed(best, "stricter.pt", sigmas=[0.01] * 17))]) == 0
    capsys.readouterr()
    assert cli.main(["evaluate", str(changed(best, "dog.pt", names=["snout", *PERSON.names[1:]]))]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("detlab: dog.pt: trained with keypoints.names=['snout', 'left_eye', ")
    assert ", but the data set has ['nose', " in line


def test_predict_draws_the_checkpoints_skeleton_and_explains_its_points(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Keypoints | None] = []
    draw = pictures.draw

    def watched(image: Any, objects: Any, class_map: Any, keypoints: Any, **settings: Any) -> Any:
        drawn.append(keypoints)
        return draw(image, objects, class_map, keypoints, **settings)

    monkeypatch.setattr(pictures, "draw", watched)
    write_pennfudan(Path("data"), 1)
    lines = [[0, 1]]
    other = changed(trained / "checkpoints" / "best.pt", "other.pt", skeleton=lines)
    assert cli.main(["predict", str(other), "data/PNGImages", "--out", "out", "--threshold", "0"]) == 0
    assert [keypoints.skeleton for keypoints in drawn if keypoints is not None] == [((0, 1),)]
    (category,) = json.loads(Path("out/images.json").read_text())["categories"]
    assert category == {"id": 1, "name": "person", "keypoints": list(PERSON.names), "skeleton": [[1, 2]]}
    rows = json.loads(Path("out/predictions.json").read_text())
    assert rows
    assert {len(row["keypoints"]) for row in rows} == {51}


@pytest.mark.parametrize(
    ("key", "value"), [("names", ["a", *PERSON.names[1:]]), ("sigmas", [0.1] * 17), ("flip_pairs", [])]
)
def test_a_run_does_not_go_on_with_other_keypoints(
    trained: Path, detlab: Detlab, capsys: pytest.CaptureFixture[str], key: str, value: list[Any]
) -> None:
    last = copied(trained) / "checkpoints" / "last.pt"
    changed(last, str(last), **{key: value})
    assert detlab("resume=run", "epochs=2", "resume_anyway=true") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"detlab: run/checkpoints/last.pt: trained with keypoints.{key}=[")


@pytest.mark.slow
def test_a_run_goes_on_with_another_skeleton_and_with_a_state_that_says_nothing_of_keypoints(
    trained: Path, detlab: Detlab
) -> None:
    last = copied(trained) / "checkpoints" / "last.pt"
    changed(last, str(last), skeleton=[])
    assert detlab("resume=run", "epochs=2", "resume_anyway=true") == 0
    assert keypoints_of(read(last)) == PERSON
    state = read(last)
    del state["keypoints"]
    torch.save(state, last)
    assert detlab("resume=run", "epochs=3", "max_steps=9", "resume_anyway=true") == 0
    assert lines_of(Path("run"))[-1]["step"] == 9


def test_what_a_checkpoint_does_not_say_is_not_compared() -> None:
    path = Path("old.pt")
    assert keypoints_of({"format": 1}) is keypoints_of({"keypoints": None}) is None
    check_keypoints(None, FACE, path, keys=("names", "sigmas"))
    check_keypoints(FACE, Keypoints(FACE.names, FACE.flip_pairs, (1.0, 1.0, 1.0)), path, keys=("names", "flip_pairs"))
    with pytest.raises(UserError, match=r"^old\.pt: trained on keypoints, but the data set has none\.$"):
        check_keypoints(FACE, None, path, keys=("names",))
    with pytest.raises(
        UserError, match=r"keypoints\.sigmas=\[0\.1, 0\.2, 0\.2\], but the data set has \[1\.0, 1\.0, 1\.0\]"
    ):
        check_keypoints(FACE, Keypoints(FACE.names, (), (1.0, 1.0, 1.0)), path, keys=("names", "sigmas"))


def test_a_model_without_keypoints_has_none_whatever_its_data_set_has(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    run = runs.mask_rcnn(tmp_path_factory.getbasetemp())
    assert package.load(run, device="cpu").keypoints is None
    state = read(run / "checkpoints" / "best.pt")
    del state["keypoints"]  # as before they were written down
    torch.save(state, tmp_path / "old.pt")
    detector = package.load(tmp_path / "old.pt", device="cpu")
    assert detector.keypoints is None
    assert detector.iou_types == ("bbox", "segm")


def test_a_data_set_without_keypoints_is_told_in_a_line(
    detlab: Detlab, pennfudan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ("dataset=pennfudan", f"dataset.root={pennfudan}", "dataset.val_size=2", "batch_size=2", "workers=0")
    assert detlab(*MODEL, *settings, "hydra.run.dir=run") == 2
    (line,) = capsys.readouterr().err.splitlines()
    said = "detlab: model: it learns keypoints, but the data set has none; take another model or add the missing annotations."
    assert line == said


# A plus sign on noise, with a dot of its own colour at each of its five points; the two at the sides change places in a mirror.
PLUS = """
import numpy as np
import torch
from PIL import Image

COLOURS = ((255, 255, 255), (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0))


class Plus(torch.utils.data.Dataset):
    def __len__(self):
        return 150

    def __getitem__(self, index):
        random = np.random.default_rng(index)
        pixels = random.integers(0, 60, (64, 64, 3), dtype=np.uint8)
        arm = int(random.integers(12, 20))
        x, y = random.integers(arm + 3, 61 - arm, 2).tolist()
        places = [(x, y), (x, y - arm), (x, y + arm), (x - arm, y), (x + arm, y)]
        pixels[y - arm : y + arm + 1, x - 2 : x + 3] = 120
        pixels[y - 2 : y + 3, x - arm : x + arm + 1] = 120
        for (px, py), colour in zip(places, COLOURS):
            pixels[py - 2 : py + 3, px - 2 : px + 3] = colour
        target = {
            "boxes": torch.tensor([[x - arm - 2, y - arm - 2, x + arm + 3, y + arm + 3]]).float(),
            "labels": torch.tensor([1]),
            "image_id": index + 1,
            "keypoints": torch.tensor([[[px + 0.5, py + 0.5, 2] for px, py in places]]),
        }
        return Image.fromarray(pixels), target
"""


@pytest.mark.slow
def test_five_points_with_sigmas_of_their_own_are_learnt(
    detlab: Detlab, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "plus.py").write_text(PLUS)
    names, sigmas = "[middle, top, bottom, left_end, right_end]", "[0.05, 0.05, 0.05, 0.05, 0.05]"
    points = f"{{names: {names}, sigmas: {sigmas}, skeleton: [[top, bottom]]}}"
    settings = ("dataset=custom", "dataset.dataset._target_=plus.Plus", "dataset.classes=[plus]", "dataset.val_size=30")
    model = ("model=keypointrcnn", "model.backbone.name=resnet18", "model.keypoint_layers=[64,64]")
    sizes = (
        "image_size.min=96",
        "image_size.max=96",
        "epochs=3",
        "eval_every=3",
        "workers=0",
        "model.box_batch_size_per_image=16",
    )
    run = (*model, *settings, f"dataset.keypoints={points}", *sizes, "allow=[plus]", "hydra.run.dir=run")
    assert detlab(*run) == 0
    (scored,) = [line for line in lines_of(tmp_path / "run") if "val/keypoints/AP" in line]
    assert scored["val/keypoints/AP50"] > 0.5
    detector = package.load(tmp_path / "run", device="cpu")
    assert detector.keypoints is not None
    assert detector.keypoints.names == ("middle", "top", "bottom", "left_end", "right_end")
    assert detector.keypoints.flip_pairs == ((3, 4),)
    stricter = ("allow=[plus]", "dataset.keypoints.sigmas=[0.002,0.002,0.002,0.002,0.002]")
    assert cli.main(["evaluate", "run", "--json", "--out", "scores", *stricter]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["keypoints/AP"] < scored["val/keypoints/AP"]
    files = ["scores/ground_truth.json", "scores/predictions.json"]
    for sigmas, expected in (("0.002", found["keypoints/AP"]), ("0.05", scored["val/keypoints/AP"])):
        assert cli.main(["score", *files, "--sigmas", ",".join([sigmas] * 5), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["keypoints/AP"] == pytest.approx(expected, abs=1e-9)
