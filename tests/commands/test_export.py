"""`detlab export`: files that see what detlab sees, and those that do not are not written."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import subprocess
import sys
import textwrap
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import runs
import torch
from PIL import Image
from torchvision.models.detection.transform import GeneralizedRCNNTransform

import detlab
from detlab import cli
from detlab.checkpoint import read
from detlab.exporting.agreement import Agreement
from detlab.exporting.graph import OPSET, _exact_sigmoid, _TracedTransform

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
with_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in PACKAGES),
    reason="needs the extra onnx: pip install 'detlab[onnx]'",
)
# Detectors of seconds: few regions, small images.
SIZE = ("image_size.min=72", "image_size.max=96")
FEW = (*SIZE, "model.rpn_pre_nms_top_n_test=50", "model.rpn_post_nms_top_n_test=20")
PYRAMID = (*FEW, "model.backbone.fpn_channels=32")
MASKS = ("model=maskrcnn", "model.backbone.name=resnet18", "model.mask_hidden_channels=32", *PYRAMID)
POINTS = ("model=keypointrcnn_mobilenet", "model.norm=group", "model.keypoint_layers=[32]", *PYRAMID)
SMALL = ("model.backbone.name=mobilenet_v3_small", "model.box_roi_pool.output_size=2")
ONE_MAP = ("model=mobilenet", "model.enlarge_to=null", "model.size_divisible=64", *SMALL, *FEW)
# A ResNet without a pyramid, with torchvision's own pool.
RESIDUAL = (
    *ONE_MAP,
    "model.backbone.name=resnet18",
    "model.norm=frozen",
    "model.box_roi_pool._target_=torchvision.ops.MultiScaleRoIAlign",
    "~model.box_roi_pool.method",
)


@pytest.fixture
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two images of sizes that nobody traces."""
    (tmp_path / "photos").mkdir()
    for seed, size in enumerate(((101, 77, 3), (60, 130, 3))):
        pixels = np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"photos/{seed}.png")
    return tmp_path / "photos"


def exported(run: Path, out: Path, photos: Path, *more: str) -> int:
    return cli.main(["export", str(run), "--out", str(out), "--images", str(photos), *more])


def test_without_its_packages_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert cli.main(["export", "run"]) == 2
    assert capsys.readouterr().err == (
        "detlab: --format onnx: needs onnx, onnxscript, onnxruntime, not installed here.\n"
        "Install it: pip install 'detlab[onnx]'\n"
    )


@pytest.mark.parametrize(
    ("form", "said"),
    [
        pytest.param("onnx", "Bright is none of torchvision's detectors", marks=with_onnx),
        ("state_dict", "model is bright_model.Bright, which torchvision has not"),
    ],
)
def test_a_model_of_ones_own_is_refused(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, form: str, said: str
) -> None:
    run = runs.bright(base)
    monkeypatch.syspath_prepend(run.parent)
    monkeypatch.setenv("DETLAB_ALLOW", "bright_model")
    out = tmp_path / {"onnx": "a.onnx", "state_dict": "a.pth"}[form]
    assert exported(run, out, run.parent / "PennFudanPed/PNGImages", "--format", form) == 2
    assert f"--format {form}: {said}" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_images_are_resized_in_the_graph_to_the_pixel_and_to_rounding_as_in_python() -> None:
    for fixed in (None, (150, 90)):
        transform, traced = (GeneralizedRCNNTransform(144, 192, [0.0] * 3, [1.0] * 3, fixed_size=fixed) for _ in "12")
        traced.__class__ = _TracedTransform
        # 536: 144 / 536 x 536 is 144 in double, and 143 by way of a reciprocal.
        for height, width in ((536, 559), (598, 386), (319, 360), (88, 656), (120, 150), (1, 1)):
            image = torch.rand(3, height, width, generator=torch.Generator().manual_seed(0))
            there, here = traced.eval().resize(image)[0], transform.eval().resize(image)[0]
            assert there.shape == here.shape
            # Read from places that are rounded once more, pixels are off by 1e-5 and more.
            torch.testing.assert_close(there, here, rtol=0, atol=1e-6)


@with_onnx
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # the exporter's
@pytest.mark.parametrize("exact", [True, False])
def test_unlikely_proposals_stay_apart_in_the_graph(exact: bool) -> None:
    import onnxruntime

    logits = torch.linspace(-85, 20, 500)
    file = io.BytesIO()
    with _exact_sigmoid() if exact else nullcontext():
        torch.onnx.export(torch.nn.Sigmoid(), (logits,), file, input_names=["x"], opset_version=OPSET, dynamo=False)  # pyright: ignore[reportArgumentType]
    (there,) = onnxruntime.InferenceSession(file.getvalue()).run(None, {"x": logits.numpy()})
    there = torch.from_numpy(np.asarray(there))
    assert (there.diff()[logits[1:] < -18] > 0).all() == exact
    assert torch.allclose(there, logits.sigmoid(), rtol=1e-5, atol=0) == exact


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("one-map", ONE_MAP),
        pytest.param("masks", MASKS, marks=pytest.mark.slow),
        pytest.param("points", POINTS, marks=pytest.mark.slow),
    ],
)
def test_a_state_dict_comes_with_a_script_that_gives_the_same_predictions(
    base: Path, tmp_path: Path, photos: Path, capsys: Any, name: str, overrides: tuple[str, ...]
) -> None:
    run = runs.untrained(base, name, *overrides)
    out = tmp_path / "weights.pth"
    assert exported(run, out, photos, "--format", "state_dict") == 0
    said = capsys.readouterr().out
    assert "verified in torchvision's modules alone on 2 image(s), " in said
    loader = textwrap.dedent(said.partition("weights.py:\n\n")[2])
    assert loader.endswith(f"model.load_state_dict(torch.load({str(out)!r}, weights_only=True))\nmodel.eval()\n")
    assert loader.partition("model.load_state_dict")[0] in out.with_suffix(".py").read_text()
    assert len(loader.splitlines()) < 30
    weights = torch.load(out, weights_only=True)
    theirs = read(run)["model"]
    assert weights.keys() == theirs.keys()
    assert all(torch.equal(weights[key], theirs[key]) for key in weights)
    script = out.with_suffix(".py").read_text()
    assert "detlab" not in "".join(line for line in script.splitlines() if "import" in line and '"""' not in line)
    card = json.loads(Path(f"{out}.json").read_text())
    assert card["classes"] == {"1": "dog", "2": "cat"}
    assert card["thresholds"] == {"1": pytest.approx(0.4), "2": 0.5}
    assert card["thresholds_from"] == read(run)["operating"]
    assert (card["keypoints"] is not None) == (overrides is POINTS)


@pytest.mark.slow
def test_the_script_needs_torch_and_torchvision_alone(base: Path, tmp_path: Path, photos: Path) -> None:
    run = runs.untrained(base, "masks", *MASKS)
    out = tmp_path / "weights.pth"
    assert exported(run, out, photos, "--format", "state_dict") == 0
    asked = (
        "import sys; sys.modules['detlab'] = sys.modules['hydra'] = None\n"  # importing them fails
        "import torch, weights\n"
        "from torchvision.io import decode_image\n"
        "torch.save(weights.detect(decode_image('photos/0.png')), 'found.pt')"
    )
    subprocess.run(
        [sys.executable, "-c", asked], cwd=tmp_path, check=True, env={**os.environ, "PYTHONPATH": str(tmp_path)}
    )
    theirs = torch.load(tmp_path / "found.pt", weights_only=True)
    detector = detlab.load(run, device="cpu", threshold=None)
    agreement = Agreement()
    agreement.add(detector(photos / "0.png")[0], theirs, least=0.05, most=100)
    assert agreement.holds, str(agreement)
    assert agreement.masks == agreement.objects > 5
    script = [sys.executable, "weights.py", "photos/0.png"]
    done = subprocess.run(script, cwd=tmp_path, check=True, capture_output=True, text=True)
    believed = detlab.load(run, device="cpu")(photos / "0.png")[0]
    said = [line.split(" ")[:2] for line in done.stdout.splitlines()]
    assert said == [[repr(each["name"]), str(round(each["score"], 4))] for each in detector.named(believed)]


def test_a_pool_that_torchvision_has_not_is_refused(base: Path, tmp_path: Path, photos: Path, capsys: Any) -> None:
    run = runs.untrained(base, "aligned", *ONE_MAP, "+model.box_roi_pool.aligned=true")
    assert exported(run, tmp_path / "a.pth", photos, "--format", "state_dict") == 2
    assert "--format state_dict: model.box_roi_pool is aligned, which torchvision has not" in capsys.readouterr().err
    assert not (tmp_path / "a.pth").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--out", "a.json"], "--out: a.json is not allowed for --format state_dict; its name must end in .pth."),
        (["--out", "nowhere/a.pth"], "--out: nowhere is no folder."),
        (["--out", "there.pth"], "--out: there.py exists already; name another file, or add --overwrite."),
        (["--out", "a.pth", "--images", "absent"], "absent: no such file or folder."),
    ],
)
def test_a_mistake_is_told_in_a_line_and_nothing_is_written(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, arguments: list[str], said: str
) -> None:
    run = runs.untrained(base, "one-map", *ONE_MAP)
    monkeypatch.chdir(tmp_path)
    Path("there.py").write_text("mine")
    assert cli.main(["export", str(run), "--format", "state_dict", *arguments]) == 2
    assert capsys.readouterr().err == f"detlab: {said}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["there.py"]


def test_torch_export_is_refused_with_the_reason(capsys: Any) -> None:
    assert cli.main(["export", "anything", "--format", "torch_export"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("detlab: --format torch_export: torch.export stops inside torchvision's detectors")
    assert len(said.splitlines()) == 2


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")  # torch.export's
def test_torch_export_still_stops_where_is_said(base: Path) -> None:
    detector = detlab.load(runs.untrained(base, "one-map", *ONE_MAP), device="cpu", threshold=None)
    with pytest.raises(Exception, match=r"batched_nms|data-dependent|GuardOnDataDependent"):
        torch.export.export(detector.model.eval(), ([torch.rand(3, 96, 96)],), strict=False)


def test_images_in_which_nothing_is_found_verify_nothing(base: Path, tmp_path: Path, photos: Path, capsys: Any) -> None:
    run = runs.untrained(base, "blind", *ONE_MAP, "model.box_score_thresh=0.999")
    assert exported(run, tmp_path / "a.pth", photos, "--format", "state_dict") == 1
    assert "no object was found in them; give others with --images" in capsys.readouterr().err
    assert not (tmp_path / "a.pth").exists()


@with_onnx
@pytest.mark.slow
def test_a_mask_rcnn_is_written_verified_and_says_what_it_is(
    base: Path, tmp_path: Path, photos: Path, capsys: Any
) -> None:
    import onnx
    import onnxruntime

    run = runs.untrained(base, "masks", *MASKS)
    out = tmp_path / "model.onnx"
    assert exported(run, out, photos) == 0
    assert "verified in onnxruntime on 2 image(s), " in capsys.readouterr().out
    card = json.loads(Path(f"{out}.json").read_text())
    assert (card["min_size"], card["max_size"], card["opset"]) == (72, 96, 17)
    model = onnx.load(str(out))
    assert {prop.key: json.loads(prop.value) for prop in model.metadata_props} == card
    # A size that nobody traced, nor verified.
    image = np.random.default_rng(3).integers(0, 256, (3, 93, 88), dtype=np.uint8)
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    assert names == ["boxes", "labels", "scores", "masks"]
    theirs = dict(zip(names, session.run(None, {"image": image}), strict=True))
    assert theirs["masks"].shape[1:] == (1, 93, 88)
    ours: Any = detlab.load(run, device="cpu", threshold=None)(torch.from_numpy(image))[0]
    agreement = Agreement()
    agreement.add(ours, theirs, least=0.05, most=100)
    assert agreement.holds, str(agreement)
    assert agreement.masks == agreement.objects > 5
    assert exported(run, out, photos) == 2
    assert "exists already; name another file, or add --overwrite." in capsys.readouterr().err


@with_onnx
@pytest.mark.slow
def test_a_file_that_does_not_agree_is_not_written(
    base: Path, tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from detlab.exporting import graph

    # As if the graph resized to half the size.
    monkeypatch.setattr(graph, "shorter_sides", lambda transform: (36,))
    run = runs.untrained(base, "one-map", *ONE_MAP)
    assert exported(run, tmp_path / "a.onnx", photos) == 1
    assert capsys.readouterr().err.startswith("detlab: not written, since it is not verified to see what detlab sees: ")
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


@with_onnx
@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("points", POINTS),
        ("mobilenet", ("model=mobilenet", *FEW)),
        ("residual", RESIDUAL),
        ("retinanet", ("model=retinanet", *SIZE)),
        ("fasterrcnn", ("model=fasterrcnn", *FEW)),
        ("mobilenet_fpn", ("model=mobilenet_fpn", *FEW)),
        ("keypointrcnn", ("model=keypointrcnn", *FEW)),
    ],
)
def test_other_detectors_of_the_config_go_to_onnx_and_to_torchvision(
    base: Path, tmp_path: Path, photos: Path, name: str, overrides: tuple[str, ...]
) -> None:
    run = runs.untrained(base, name, *overrides)
    assert exported(run, tmp_path / "a.onnx", photos) == 0
    assert exported(run, tmp_path / "a.pth", photos, "--format", "state_dict") == 0  # beside each other
