"""`detlab show`: pictures of samples as training draws them, statistics, and anchors that can be pasted."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import runs
import torch
from conftest import TINY, write_pennfudan
from PIL import Image

from detlab import cli, parts
from detlab.commands import show
from detlab.config import register
from detlab.engine import select_device
from detlab.preflight import compose_run

BOXES = ("model=fasterrcnn", *TINY)


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", sys.path[:])


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What `detlab show ARGUMENTS` prints."""
    capsys.readouterr()
    assert cli.main(["show", *arguments]) == 0
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    """The lines that `detlab show ARGUMENTS` is refused with."""
    capsys.readouterr()
    assert cli.main(["show", *arguments]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("detlab: ")
    return said.err.removeprefix("detlab: ").splitlines()


def picture(path: str | Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


def reach_of(said: str) -> dict[str, list[float]]:
    """The numbers of the last table by its first column, without the count."""
    lines = said[said.index("best possible recall") :].splitlines()
    rows = [line.split() for line in lines if re.match(r"  (all|small|medium|large) ", line)]
    return {name: [float(n.replace("-", "nan")) for n in numbers] for name, _, *numbers in rows}


def write_coco(root: Path, names: tuple[str, ...], *, objects: bool = True, broken: bool = False) -> tuple[str, ...]:
    """Four images of noise in COCO's format, in each an object of two of the classes and a crowd; the overrides to read them."""
    random = np.random.default_rng(0)
    root.mkdir()
    images, rows = [], []
    for i in range(4):
        name = f"<i>{i}.png"
        Image.fromarray(random.integers(0, 255, (90, 120, 3), dtype=np.uint8)).save(root / name)
        images.append({"id": i + 1, "file_name": name, "height": 90, "width": 120})
        for label, box, crowd in ((i % len(names), [10, 10, 30, 60], 0), ((i + 1) % len(names), [50, 20, 60, 30], 0),
                                  (0, [0, 0, 100, 80], 1)):  # fmt: skip
            rows.append({"image_id": i + 1, "category_id": label + 1, "bbox": box, "area": 1.0, "iscrowd": crowd})
    annotations = [{"id": i + 1, **row} for i, row in enumerate(rows)] if objects else []
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(names)]
    (root / "all.json").write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    if broken:
        (root / "<i>0.png").write_bytes((root / "<i>0.png").read_bytes()[:200])
    files = [f"dataset.{part}_{what}" for part in ("train", "val") for what in ("annotations=all.json", "images=.")]
    few = [text for text in TINY if not text.startswith("dataset.")]
    return ("dataset=coco", f"dataset.root={root}", *files, "model=fasterrcnn", *few)


def test_it_writes_a_picture_and_a_page_into_a_new_folder_and_prints_the_essentials(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("show/maskrcnn-synthetic").mkdir(parents=True)
    said = shown(capsys, *TINY, "--count=6")
    assert said.splitlines()[0] == "train of dataset=synthetic, as model=maskrcnn sees it"
    assert said.splitlines()[-1] == ("show/maskrcnn-synthetic-2/samples.png, show/maskrcnn-synthetic-2/statistics.html")
    grid = picture("show/maskrcnn-synthetic-2/samples.png")
    assert grid.shape[1] == 4 * (show.PICTURE + 4) + 4
    # Two rows of 72 x 96 images, each enlarged and with a line below it.
    assert grid.shape[0] == 2 * (show.PICTURE * 3 // 4 + show.CAPTION + 8)
    page = Path("show/maskrcnn-synthetic-2/statistics.html").read_text()
    assert '<img src="samples.png"' in page
    assert page.count("<svg ") == page.count("</svg>") == 5
    assert not re.search(r"<script|https?://|<link|@import", page)
    for line in ("images become 72 high and 96 wide", "images and objects by class", "shapes of boxes", "at 0.7"):
        assert line in page
        assert line in said
    # Nothing else: no run's folder, which training would make.
    assert [path.name for path in Path().iterdir()] == ["show"]


def samples_of(part: str, count: int, *overrides: str) -> tuple[Any, Any, list[tuple[str, Any]]]:
    """The configuration, the data set and what is shown of it."""
    register()
    cfg = compose_run([*BOXES, *overrides])
    dataset = parts.data_sets(cfg)[part]
    return cfg, dataset, list(show._samples(cfg, dataset, part, count))


def test_the_samples_of_training_are_those_that_its_first_epoch_begins_with() -> None:
    cfg, dataset, samples = samples_of("train", 4, "augmentation=multiscale", "seed=3", "batch_size=4")
    loader = parts.training_batches(cfg, dataset, select_device("cpu", "fp32"))
    loader.start(0, 0)
    images, targets, *_ = next(iter(loader))
    assert len({name for name, _ in samples}) == 4
    for (_, (image, target)), trained, learnt in zip(samples, images, targets, strict=True):
        assert torch.equal(image, trained)
        assert torch.equal(target["boxes"], learnt["boxes"])


def test_other_parts_are_shown_without_augmentation_some_from_all_over_them() -> None:
    flip = ("augmentation=flip", "augmentation.p=1", "dataset.val_size=9", "shuffle=false")
    _, dataset, samples = samples_of("val", 3, *flip)
    assert [name for name, _ in samples] == ["val-0000", "val-0004", "val-0008"]
    assert all(torch.equal(image, dataset[i][0]) for (_, (image, _)), i in zip(samples, (0, 4, 8), strict=True))
    _, dataset, samples = samples_of("train", 3, *flip)
    assert [name for name, _ in samples] == ["train-0000", "train-0001", "train-0002"]
    assert all(torch.equal(image, dataset[i][0].flip(-1)) for i, (_, (image, _)) in enumerate(samples))


def test_boxes_masks_and_keypoints_are_drawn_at_the_size_that_the_model_sees(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from detlab import pictures

    drawn: list[tuple[torch.Tensor, dict[str, Any], Any]] = []
    draw = pictures.draw

    def noted(image: torch.Tensor, objects: Any, class_map: Any, keypoints: Any, **settings: Any) -> torch.Tensor:
        drawn.append((image, objects, keypoints))
        return draw(image, objects, class_map, keypoints, **settings)

    monkeypatch.setattr(pictures, "draw", noted)
    data = ("dataset.difficulty=hard", "dataset.seed=5", "augmentation=none")
    shown(capsys, *BOXES, *data, "--count=8")
    _, dataset, samples = samples_of("train", 8, *data)
    factor = show.PICTURE / 256
    for (image, objects, keypoints), (_, (_, target)) in zip(drawn, samples, strict=True):
        assert image.shape == (3, 192 * factor, 256 * factor)
        assert objects["boxes"] == pytest.approx(target["boxes"] * factor, abs=1e-3)
        if len(target["labels"]):
            points = target["keypoints"].clone()
            points[..., :2] *= factor
            assert objects["keypoints"] == pytest.approx(points, abs=1e-2)
            assert objects["masks"].shape[1:] == image.shape[1:]
            part = objects["masks"].float().mean()
            assert part == pytest.approx(float(target["masks"].float().mean()), rel=0.15)
        assert keypoints == dataset.keypoints
    assert any(not len(objects["labels"]) for _, objects, _ in drawn)


@pytest.mark.parametrize(
    ("model", "key"),
    [(BOXES, "model.anchor_generator.sizes="), (("model=retinanet", *TINY[:4]), "+model.model.anchor_generator={")],
    ids=["rcnn", "retinanet"],
)
def test_the_proposed_overrides_are_accepted_as_pasted_and_reach_what_was_said(
    capsys: pytest.CaptureFixture[str], model: tuple[str, ...], key: str
) -> None:
    said = shown(capsys, *model, "--count=1", "--out", "first")
    (pasted,) = [line for line in said.splitlines() if "anchor_generator" in line]
    overrides = shlex.split(pasted)
    assert overrides[0].startswith(key)
    first, again = reach_of(said), reach_of(shown(capsys, *model, *overrides, "--count=1", "--out", "second"))
    for name, numbers in first.items():
        half = len(numbers) // 2
        assert again[name][:half] == pytest.approx(numbers[half:], nan_ok=True)
    assert again["all"][0] > first["all"][0]
    assert f"<pre>{pasted.strip()}".replace("'", "&#x27;") in Path("first/statistics.html").read_text()


def test_anchors_are_left_alone_where_others_would_gain_too_little(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(show, "WORTH_A_CHANGE", 1.0)  # all the gain that there could be
    said = shown(capsys, *BOXES, "--count=1")
    assert "The anchors fit: none of the same structure were found that reach clearly more." in said
    assert "proposed" not in said
    assert len(reach_of(said)["all"]) == 3


def test_classes_are_counted_in_every_part_and_names_are_no_markup(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = tuple(f"<b>{i}" for i in range(show.PRINTED_CLASSES + 3))
    overrides = write_coco(tmp_path / "data", names)
    said = shown(capsys, *overrides, "--out", "out")
    assert "and 3 more, in statistics.html" in said
    assert "  4 images, 0 of them without an object; 8 objects" in said
    assert "4 crowd regions or the like are not learnt" in said
    rows = [line.split() for line in said.splitlines() if line.startswith("  <b>")]
    assert [row[0] for row in rows] == list(names[: show.PRINTED_CLASSES])
    assert [row[1:] for row in rows[:5]] == [[n] * 4 for n in ("1", "2", "2", "2", "1")]
    assert {n for row in rows[5:] for n in row[1:]} == {"0"}
    page = Path("out/statistics.html").read_text()
    assert all(f"<td>&lt;b&gt;{i}</td>" in page for i in range(len(names)))
    assert "<b>" not in page


def test_a_part_without_objects_is_shown_and_said_to_have_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = shown(capsys, *write_coco(tmp_path / "data", ("a",), objects=False), "--out", "out")
    assert "4 images, 4 of them without an object; 0 objects" in said
    assert "no objects, so nothing for the model's anchors to reach" in said
    page = Path("out/statistics.html").read_text()
    assert "box widths, pixels: none" in page
    assert picture("out/samples.png").std() > 30


def test_a_model_without_resize_and_anchors_is_shown_its_images_as_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bright_model.py").write_text(runs.BRIGHT)
    (tmp_path / "conf" / "model").mkdir(parents=True)
    (tmp_path / "conf" / "model" / "bright.yaml").write_text("_target_: bright_model.Bright\nobjective: segm/AP\n")
    root = write_pennfudan(tmp_path / "data", 6)
    data = ("dataset=pennfudan", f"dataset.root={root}", "dataset.val_size=2")
    said = shown(capsys, "model=bright", *data, "allow=[bright_model]")
    assert "sizes are those of the images as loaded" in said
    assert "this model has no anchors that are matched by their overlap with objects" in said
    assert [line.split()[-1] for line in said.splitlines() if line.startswith("  height  ")] == ["35"]
    assert picture("show/bright-pennfudan/samples.png").shape[0] == show.PICTURE * 3 // 4 + show.CAPTION + 8


@pytest.mark.usefixtures("torchvision_offline")
def test_weights_are_not_fetched_for_a_picture(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from detlab.models import weights

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a download")

    monkeypatch.setattr(weights, "fetch", refuse)
    given = ("model.weights=imagenet", "model.norm=frozen", "model.trainable_backbone_layers=2")
    assert "best possible recall" in shown(capsys, *BOXES, *given, "--count=1")


def test_files_of_an_earlier_show_are_replaced_only_where_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "statistics.html").write_text("mine")
    assert refused(capsys, *BOXES, "--out", str(out)) == [
        f"--out: {out} holds statistics.html already; name another folder, or add --overwrite."
    ]
    assert (out / "statistics.html").read_text() == "mine"
    shown(capsys, *BOXES, "--out", str(out), "--overwrite", "--count=1")
    assert sorted(path.name for path in out.iterdir()) == ["samples.png", "statistics.html"]
    assert (out / "statistics.html").read_text() != "mine"
    assert refused(capsys, "--out", str(out / "samples.png")) == [
        f"--out: {out / 'samples.png'} is a file; name a folder."
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--part=tst",), "dataset: no part 'tst'; there are train, val, test."),
        (("--part=test",), "--part: the part 'test' of the data set has no images."),
        (("dataset.train_size=0",), "dataset.train_size=0: must be 1 or more."),
        (("optimizer.lr=1,2",), "optimizer.lr: several values need -m; a list is written optimizer.lr=[...]."),
    ],
)
def test_what_cannot_be_shown_is_refused_in_a_line_and_leaves_no_folder(
    arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refused(capsys, *BOXES, *arguments) == [said]
    assert list(Path().iterdir()) == []


def test_every_wrong_override_is_told_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert set(refused(capsys, "datset=pennfudan", "workers=-1", "model=mobilnet")) == {
        "datset: no such key. Did you mean dataset?",
        "workers: -1 is not allowed; allowed: 0 or more.",
        next(line for line in refused(capsys, "model=mobilnet") if line.startswith("model: no choice 'mobilnet'")),
    }


def test_an_image_that_cannot_be_decoded_is_named_and_no_folder_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = write_coco(tmp_path / "data", ("a",), broken=True)
    lines = refused(capsys, *overrides, "--out", "out")
    assert len(lines) <= 2
    assert "<i>0.png" in lines[0]
    assert not Path("out").exists()


@pytest.mark.parametrize("count", ["0", "-3", "many"])
def test_a_number_of_samples_below_1_is_refused(count: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(["show", f"--count={count}"])
    assert left.value.code == 2
    assert f"argument --count: invalid number_from_1 value: '{count}'" in capsys.readouterr().err


def test_fewer_images_than_asked_for_are_all_shown(capsys: pytest.CaptureFixture[str]) -> None:
    shown(capsys, *BOXES, "--part=val", "--count=50", "--out", "out")
    assert picture("out/samples.png").shape == (show.PICTURE * 3 // 4 + show.CAPTION + 8, 4 * (show.PICTURE + 4) + 4, 3)
