"""`detlab export`: files that see what detlab sees, and those that do not are not written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import runs
import torch
from torchvision.models.detection.transform import GeneralizedRCNNTransform

import detlab
from detlab import cli
from detlab.exporting.agreement import Agreement
from detlab.exporting.graph import _TracedTransform

WITHOUT = "needs the extra onnx: pip install 'detlab[onnx]'"


def test_without_its_packages_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert cli.main(["export", "run"]) == 2
    assert capsys.readouterr().err == (
        "detlab: --format onnx: needs onnx, onnxscript, onnxruntime, not installed here.\n"
        "Install it: pip install 'detlab[onnx]'\n"
    )


def test_a_model_of_ones_own_is_refused(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    pytest.importorskip("onnxruntime", reason=WITHOUT)
    pytest.importorskip("onnxscript", reason=WITHOUT)
    run = runs.bright(tmp_path_factory.getbasetemp())
    monkeypatch.syspath_prepend(run.parent)
    monkeypatch.setenv("DETLAB_ALLOW", "bright_model")
    images = str(run.parent / "PennFudanPed/PNGImages")
    assert cli.main(["export", str(run), "--out", str(tmp_path / "a.onnx"), "--images", images]) == 2
    assert "--format onnx: Bright is none of torchvision's detectors" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_images_are_resized_in_the_graph_to_the_pixel_as_in_python() -> None:
    transform = GeneralizedRCNNTransform(144, 192, [0.0] * 3, [1.0] * 3).eval()
    traced = GeneralizedRCNNTransform(144, 192, [0.0] * 3, [1.0] * 3).eval()
    traced.__class__ = _TracedTransform
    # 536: 144 / 536 x 536 is 144 in double, and 143 by way of a reciprocal.
    for height, width in ((536, 559), (598, 386), (319, 360), (88, 656), (120, 150)):
        image = torch.zeros(3, height, width)
        assert traced.resize(image)[0].shape == transform.resize(image)[0].shape


@pytest.fixture
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=WITHOUT)
    return runs.mask_rcnn(tmp_path_factory.getbasetemp())


@pytest.mark.slow
def test_a_mask_rcnn_is_written_verified_and_says_what_it_is(exported: Path, tmp_path: Path, capsys: Any) -> None:
    import onnx
    import onnxruntime

    out = tmp_path / "model.onnx"
    assert cli.main(["export", str(exported), "--out", str(out)]) == 0
    assert "verified in onnxruntime on 4 image(s), " in capsys.readouterr().out
    card = json.loads(out.with_suffix(".json").read_text())
    assert card["classes"] == {"1": "person"}
    assert (card["min_size"], card["max_size"], card["opset"]) == (72, 96, 17)
    model = onnx.load(str(out))
    assert {prop.key: json.loads(prop.value) for prop in model.metadata_props} == card
    # A size that nobody traced.
    image = np.random.default_rng(3).integers(0, 256, (3, 101, 77), dtype=np.uint8)
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    assert names == ["boxes", "labels", "scores", "masks"]
    theirs = dict(zip(names, session.run(None, {"image": image}), strict=True))
    assert theirs["masks"].shape[1:] == (1, 101, 77)
    ours: Any = detlab.load(exported, device="cpu")(torch.from_numpy(image))[0]
    assert len(ours["scores"])
    agreement = Agreement()
    agreement.add(ours, theirs, least=0.05, most=100)
    assert agreement.holds, str(agreement)
    assert cli.main(["export", str(exported), "--out", str(out)]) == 2
    assert "exists already; name another file, or add --overwrite." in capsys.readouterr().err


@pytest.mark.slow
def test_a_file_that_does_not_agree_is_not_written(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from detlab.exporting import graph

    # A factor in float32, as torchvision traces it, and more: images of half the size.
    monkeypatch.setattr(graph, "shorter_sides", lambda transform: (36,))
    assert cli.main(["export", str(exported), "--out", str(tmp_path / "a.onnx")]) == 1
    assert capsys.readouterr().err.startswith("detlab: not written, since it is not verified to see what detlab sees: ")
    assert not list(tmp_path.iterdir())
