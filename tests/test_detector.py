"""`detlab.load`: a run's model, called on images of any kind."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import runs
import torch
from conftest import lines_of
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor

import detlab
from detlab.checkpoint import read
from detlab.config import build
from detlab.detector import Detector
from detlab.engine import Device, predict
from detlab.errors import UserError
from detlab.evaluation.coco import CocoEvaluator

# What the model that sees finds in `PIXELS`, as x0, y0, x1, y1; of the others it reports at 0.2 what is not there.
BOXES = [[5.0, 10.0, 15.0, 30.0], [30.0, 20.0, 38.0, 40.0], [42.0, 52.0, 50.0, 60.0]]
PIXELS = np.full((60, 50, 3), 30, dtype=np.uint8)
PIXELS[10:30, 5:15] = PIXELS[20:40, 30:38] = 255


@pytest.fixture
def run(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of a user's own model, which makes no mistake."""
    run = runs.bright(tmp_path_factory.getbasetemp())
    monkeypatch.syspath_prepend(run.parent)
    monkeypatch.setenv("DETLAB_ALLOW", "bright_model")
    return run


@pytest.fixture
def detector(run: Path) -> Detector:
    return detlab.load(run, threshold=None)


def test_a_run_or_a_checkpoint_becomes_a_detector_that_says_what_it_is(run: Path) -> None:
    for place, path in (
        (run, run / "checkpoints/best.pt"),
        (str(run / "checkpoints/last.pt"), run / "checkpoints/last.pt"),
    ):
        detector = detlab.load(place, device="cpu")
        assert detector.path == path
        assert detector.class_map.names == ("pedestrian",)
        assert detector.iou_types == ("bbox", "segm")
        assert not detector.model.training


def file(path: Path) -> str:
    Image.fromarray(PIXELS).save(path / "a.png")
    return str(path / "a.png")


@pytest.mark.parametrize(
    "made",
    [
        file,
        lambda path: Path(file(path)),
        lambda _: Image.fromarray(PIXELS),
        lambda _: Image.fromarray(PIXELS).convert("L"),
        lambda _: Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 257),
        lambda _: PIXELS,
        lambda _: np.ascontiguousarray(PIXELS[:, ::-1])[:, ::-1],  # negative strides
        lambda _: torch.from_numpy(PIXELS).permute(2, 0, 1),
        lambda _: torch.from_numpy(PIXELS).permute(2, 0, 1) / 255,
        lambda _: torch.from_numpy(PIXELS).permute(2, 0, 1).double().requires_grad_() / 255,
        lambda _: torch.from_numpy(PIXELS).permute(2, 0, 1)[None],
        lambda _: PIXELS[None],
        lambda _: [PIXELS],
        lambda _: (PIXELS,),
    ],
)
def test_an_image_of_any_kind_gives_the_same_prediction(
    detector: Detector, tmp_path: Path, made: Callable[[Path], Any]
) -> None:
    (prediction,) = detector(made(tmp_path))
    assert prediction["boxes"].tolist() == BOXES
    assert prediction["scores"].tolist() == pytest.approx([0.9, 0.8, 0.2])
    assert prediction["labels"].tolist() == [1, 1, 1]
    assert "masks" in prediction
    assert prediction["masks"].shape == (3, 1, 60, 50)
    assert prediction["masks"][0, 0].nonzero().min(0).values.tolist() == [10, 5]


def test_several_images_of_any_kinds_and_sizes_give_a_prediction_each_in_their_order(
    detector: Detector, tmp_path: Path
) -> None:
    first, second, third = detector([PIXELS[:35], file(tmp_path), Image.fromarray(PIXELS[:, :20])])
    assert first["boxes"].tolist() == [BOXES[0], [30.0, 20.0, 38.0, 35.0], [42.0, 27.0, 50.0, 35.0]]
    assert second["boxes"].tolist() == BOXES
    assert third["boxes"].tolist() == [BOXES[0], [12.0, 52.0, 20.0, 60.0]]
    assert detector([]) == []


def test_a_picture_that_lies_turned_is_predicted_as_it_is_seen(detector: Detector, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(PIXELS)).save(tmp_path / "turned.png", exif=exif)
    assert detector(tmp_path / "turned.png")[0]["boxes"].tolist() == BOXES
    with Image.open(tmp_path / "turned.png") as image:
        assert detector(image)[0]["boxes"].tolist() == BOXES


def test_a_prediction_can_be_told_with_the_names_of_its_classes(detector: Detector) -> None:
    first, second, nothing = detector.named(detector(PIXELS)[0])
    assert (first["name"], first["box"]) == ("pedestrian", BOXES[0])
    assert [each["score"] for each in (first, second, nothing)] == pytest.approx([0.9, 0.8, 0.2])
    assert detector.named(detlab.load(detector.path, threshold=1)(PIXELS)[0]) == []


def test_the_threshold_leaves_out_lower_scores_in_all_fields(run: Path) -> None:
    for threshold, count in ((None, 3), (0, 3), (0.5, 2), (0.85, 1), (1, 0)):
        (prediction,) = detlab.load(run, threshold=threshold)(PIXELS)
        assert {len(value) for value in prediction.values()} == {count}  # type: ignore[arg-type]


def test_by_default_the_threshold_is_that_of_the_class_and_one_half_where_the_checkpoint_holds_none(
    run: Path, tmp_path: Path
) -> None:
    state = read(run / "checkpoints/best.pt")
    # Between the worst true score in the run's validation part, 0.8, and that of what is not there, 0.2.
    assert state["operating"]["thresholds"] == [pytest.approx(0.5)]
    assert state["operating"]["iou_type"] == "segm"
    assert (state["operating"]["precision"], state["operating"]["recall"], state["operating"]["f1"]) == (
        [1.0],
        [1.0],
        [1.0],
    )
    for thresholds, count in (([0.85], 1), ([0.1], 3), ([None], 2)):
        torch.save({**state, "operating": {**state["operating"], "thresholds": thresholds}}, tmp_path / "mine.pt")
        assert len(detlab.load(tmp_path / "mine.pt")(PIXELS)[0]["labels"]) == count
        assert len(detlab.load(tmp_path / "mine.pt", threshold=None)(PIXELS)[0]["labels"]) == 3
        assert len(detlab.load(tmp_path / "mine.pt", threshold=0.5)(PIXELS)[0]["labels"]) == 2
    torch.save({key: value for key, value in state.items() if key != "operating"}, tmp_path / "old.pt")
    for path in (tmp_path / "old.pt", run / "checkpoints/last.pt"):
        assert detlab.load(path).operating.tolist() == [0.5]


@pytest.mark.parametrize(
    ("field", "damaged"),
    [
        *(("thresholds", value) for value in ([0.5, 0.5], [2.0], [float("nan")], ["0.5"], 0.5)),
        *(("by", value) for value in (7, "precision", "\x1b[2J")),
    ],
)
def test_thresholds_that_are_none_are_refused(run: Path, tmp_path: Path, field: str, damaged: Any) -> None:
    state = read(run / "checkpoints/best.pt")
    torch.save({**state, "operating": {**state["operating"], field: damaged}}, tmp_path / "mine.pt")
    with pytest.raises(UserError, match=r"mine\.pt: damaged: its operating thresholds are none of its 1 class"):
        detlab.load(tmp_path / "mine.pt")


def test_a_prediction_can_be_changed_by_whoever_is_given_it(detector: Detector) -> None:
    boxes = detector(PIXELS)[0]["boxes"]
    boxes += 1
    assert boxes[0].tolist() == [6.0, 11.0, 16.0, 31.0]
    assert (boxes.requires_grad_() * 2).sum().requires_grad


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (PIXELS[..., 0], "image 1: uint8 [60, 50]; expected a path, a PIL image"),
        (PIXELS.transpose(2, 0, 1), "image 1: uint8 [3, 60, 50]; expected"),
        (PIXELS / 255, "image 1: float64 [60, 50, 3]; expected"),
        (torch.from_numpy(PIXELS), "image 1: torch.uint8 [60, 50, 3]; expected"),
        (torch.full((3, 4, 4), 255.0), "image 1: torch.float32 [3, 4, 4] from 255 to 255; expected"),
        (torch.full((3, 4, 4), float("nan")), "image 1: torch.float32 [3, 4, 4] from nan to nan; expected"),
        (torch.zeros(3, 0, 4), "image 1: torch.float32 [3, 0, 4]; expected"),
        (None, "image 1: a NoneType; expected"),
        (Image.new("F", (4, 4)), "image 1: not readable as an image (its pixels are 32-bit floats"),
        ("absent.png", "absent.png: not readable as an image ("),
    ],
)
def test_what_is_no_such_image_is_told_with_its_place(detector: Detector, image: Any, said: str) -> None:
    with pytest.raises(UserError) as error:
        detector([PIXELS, image])
    assert str(error.value).startswith(said)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"device": "gpu"}, "device: 'gpu' is not allowed; allowed: auto, cpu, cuda, cuda:N, mps."),
        ({"device": "cuda:99"}, "device: 'cuda:99' is not available here ("),
        ({"threshold": 50}, "threshold: 50 is not allowed; allowed: 0 to 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(run: Path, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as error:
        detlab.load(run, **settings)
    assert str(error.value).startswith(said)


def test_what_is_no_run_is_refused(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.pt").write_text("hello")
    for place, said in (
        (tmp_path / "absent", "neither a run's folder nor a checkpoint file."),
        (tmp_path, "holds no checkpoints/best.pt"),
        (tmp_path / "text.pt", "not a file that torch.save wrote"),
    ):
        with pytest.raises(UserError) as error:
            detlab.load(place)
        assert str(error.value).startswith(f"{place}: {said}")
    monkeypatch.delenv("DETLAB_ALLOW")
    with pytest.raises(UserError, match=r"'bright_model\.Bright' is not permitted"):
        detlab.load(run)


@pytest.mark.slow
def test_a_real_model_predicts_as_in_its_runs_evaluation(tmp_path_factory: pytest.TempPathFactory) -> None:
    run = runs.mask_rcnn(tmp_path_factory.getbasetemp())
    detector = detlab.load(run, device="cpu", threshold=None)
    config = OmegaConf.create(read(detector.path)["config"])
    dataset = build(config.dataset, group="dataset", part="val")
    images: list[Tensor] = [dataset[i][0] for i in range(len(dataset))]
    predictions = detector(images)
    direct = predict(detector.model, [images[0]], Device(torch.device("cpu"), "fp32"))[0]
    assert torch.equal(predictions[0]["boxes"], direct["boxes"])
    evaluator = CocoEvaluator(
        ground_truth=dataset.ground_truth(), class_map=detector.class_map, iou_types=detector.iou_types
    )
    evaluator.update([dataset[i][1]["image_id"] for i in range(len(dataset))], predictions)
    best = next(line for line in lines_of(run) if "val/bbox/AP" in line)
    assert evaluator.compute()["bbox/AP"] == best["val/bbox/AP"] > 0.01


def test_importing_detlab_imports_no_torch() -> None:
    code = "import sys, detlab; detlab.load; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_sides_that_contradict_each_other_are_refused(tmp_path_factory: pytest.TempPathFactory) -> None:
    size = ("image_size.min=72", "image_size.max=96", "model.enlarge_to=null")
    small = (*size, "model.backbone.name=mobilenet_v3_small", "model.box_roi_pool.output_size=2")
    detector = detlab.load(runs.untrained(tmp_path_factory.getbasetemp(), "small", "model=mobilenet", *small))
    with pytest.raises(
        UserError, match=r"size: 90,80 is not allowed; give the shorter side, 1 or more, then the longer one"
    ):
        detector.resize_to(90, 80)


def test_images_of_several_sizes_are_no_batch(detector: Detector) -> None:
    with pytest.raises(ValueError, match="images of several sizes in one batch"):
        detector.together([torch.zeros(3, 4, 4, dtype=torch.uint8), torch.zeros(3, 4, 5, dtype=torch.uint8)])
