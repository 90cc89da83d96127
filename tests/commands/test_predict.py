"""`detlab predict`: pictures with boxes where the objects are, results that can be scored, and files that cannot be read."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import runs
import torch
from conftest import write_pennfudan
from PIL import Image

from detlab import cli
from detlab.pictures import COLOURS


@pytest.fixture
def seeing(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of a user's own model, which makes no mistake; the working folder is an empty one."""
    run = runs.bright(tmp_path_factory.getbasetemp())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [str(run.parent), *sys.path])
    monkeypatch.setenv("DETLAB_ALLOW", "bright_model")
    return run


# Of the objects that `photograph` draws: x0, y0, x1, y1 in pixels, x1 and y1 outside.
FIRST, SECOND = (10, 60, 40, 110), (70, 50, 105, 115)
NOTHING = (112, 132, 120, 140)  # what the model reports at 0.2 in an image of that size


def photograph(path: Path) -> np.ndarray:
    """Write an image of 140 x 120 pixels (height x width) with two bright objects on grey; its pixels."""
    pixels = np.full((140, 120, 3), 40, dtype=np.uint8)
    for x0, y0, x1, y1 in (FIRST, SECOND):
        pixels[y0:y1, x0:x1] = 220
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels


def pixels_of(path: Path) -> np.ndarray:
    return np.array(Image.open(path).convert("RGB"))


def predicted(*arguments: str, status: int = 0) -> None:
    assert cli.main(["predict", *arguments]) == status


def read(path: str) -> Any:
    return json.loads(Path(path).read_text())


def test_boxes_masks_names_and_scores_are_drawn_where_the_objects_are(seeing: Path) -> None:
    before = photograph(Path("photos/a.png"))
    predicted(str(seeing), "photos", "--out", "out")
    after = pixels_of(Path("out/a.png"))
    assert after.shape == before.shape
    for (x0, y0, x1, y1), colour in ((FIRST, COLOURS[0]), (SECOND, COLOURS[1])):
        for x, y in ((x0, y1 - 5), (x1, y1 - 5), (x0 + 9, y1), (x1 - 1, y0)):
            assert tuple(after[y, x]) == colour
        inside = [0.55 * 220 + 0.45 * c for c in colour]
        assert np.abs(after[y1 - 8, x1 - 8] - inside).max() <= 1
        # The name: a strip in the object's colour below its upper left corner, with black letters in it.
        strip = after[y0 + 3 : y0 + 12, x0 + 3 : x0 + 30].reshape(-1, 3)
        assert (strip == colour).all(1).sum() > 50
        assert (strip < 60).all(1).sum() > 10
    x0, y0, x1, y1 = NOTHING
    assert np.array_equal(after[y0:y1, x0:x1], before[y0:y1, x0:x1])
    assert np.array_equal(after[:45], before[:45])


def test_the_threshold_decides_what_is_drawn_and_not_what_is_in_the_results(
    seeing: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = photograph(Path("a.png"))
    results = []
    for threshold, drawn in (("0.85", [True, False, False]), ("0.8", [True, True, False]), ("0", [True, True, True])):
        predicted(str(seeing), "a.png", "--out", threshold, "--threshold", threshold)
        after = pixels_of(Path(threshold, "a.png"))
        changed = [
            bool((after[y0:y1, x0:x1] != before[y0:y1, x0:x1]).any()) for x0, y0, x1, y1 in (FIRST, SECOND, NOTHING)
        ]
        # The first object's name reaches into the second, but not to its last rows.
        changed[1] = bool((after[100:110, 80:100] != before[100:110, 80:100]).any())
        assert changed == drawn
        results.append(read(f"{threshold}/predictions.json"))
        said = f"1 image(s), {sum(drawn)} object(s) of score {float(threshold):g} or more; all 3 in {threshold}/predictions.json"
        assert capsys.readouterr().out.splitlines()[-1] == said
    assert results[0] == results[1] == results[2]
    assert [row["score"] for row in results[0]] == pytest.approx([0.9, 0.8, 0.2])


def test_the_results_are_cocos_and_their_ids_are_explained(seeing: Path) -> None:
    for name in ("photos/b.png", "photos/below/a.png", "photos/a.png"):
        photograph(Path(name))
    predicted(str(seeing), "photos", "--out", "out")
    rows, index = read("out/predictions.json"), read("out/images.json")
    assert [row["image_id"] for row in rows] == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert rows[0]["bbox"] == [10.0, 60.0, 30.0, 50.0]
    assert rows[0]["category_id"] == 1
    assert rows[0]["segmentation"]["size"] == [140, 120]
    from detlab.masks import decode

    (mask,) = decode([rows[0]["segmentation"]], 140, 120).numpy()
    x0, y0, x1, y1 = FIRST
    assert mask.sum() == mask[y0:y1, x0:x1].sum() == 30 * 50
    assert index["images"] == [
        {"id": i, "file_name": name, "height": 140, "width": 120}
        for i, name in ((1, "a.png"), (2, "b.png"), (3, "below/a.png"))
    ]
    assert index["categories"] == [{"id": 1, "name": "pedestrian"}]
    assert sorted(path.as_posix() for path in Path("out").rglob("*.png")) == [
        "out/a.png",
        "out/b.png",
        "out/below/a.png",
    ]


def test_with_the_ids_of_a_ground_truth_the_results_can_be_scored(
    seeing: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_pennfudan(Path("PennFudanPed"), 6)
    predicted_by = [str(seeing), "dataset.root=PennFudanPed", "--out", "scores", "--json"]
    assert cli.main(["evaluate", *predicted_by]) == 0
    truth = read("scores/ground_truth.json")
    truth["categories"][0]["id"] = 7
    for row in truth["annotations"]:
        row["category_id"] = 7
    Path("gt.json").write_text(json.dumps(truth))
    images = [f"PennFudanPed/PNGImages/{image['file_name']}" for image in truth["images"]]
    predicted(str(seeing), *images, "--ground-truth", "gt.json", "--out", "out")
    assert {row["image_id"] for row in read("out/predictions.json")} == {image["id"] for image in truth["images"]}
    capsys.readouterr()
    for iou_type in ("bbox", "segm"):
        assert cli.main(["score", "gt.json", "out/predictions.json", "--iou-type", iou_type, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)[f"{iou_type}/AP"] == 1.0


@pytest.mark.parametrize(
    ("truth", "said"),
    [
        ({"images": [], "categories": []}, "not in gt.json, whose images are listed by file_name."),
        (
            {"images": [{"id": 1, "file_name": "a.png"}], "categories": [{"id": 1, "name": "dog"}]},
            "gt.json: has no category 'pedestrian', which the model reports; it has dog.",
        ),
    ],
)
def test_a_ground_truth_of_other_images_or_classes_is_refused(
    seeing: Path, truth: Any, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    photograph(Path("a.png"))
    Path("gt.json").write_text(json.dumps(truth))
    predicted(str(seeing), "a.png", "--ground-truth", "gt.json", status=2)
    assert capsys.readouterr().err.strip().endswith(said)
    assert not Path("predictions").exists()


def test_one_unreadable_image_does_not_lose_the_others(seeing: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photograph(Path("photos/a.png"))
    photograph(Path("photos/c.png"))
    Path("photos/b.png").write_bytes(Path("photos/a.png").read_bytes()[:200])
    Path("photos/d.jpg").write_text("no image")
    predicted(str(seeing), "photos", "--out", "out", status=1)
    said = capsys.readouterr()
    assert said.out.splitlines() == [
        "a.png: 2 object(s)",
        "c.png: 2 object(s)",
        "2 image(s), 4 object(s) of score 0.5 or more; all 6 in out/predictions.json",
    ]
    first, *faults = said.err.splitlines()
    assert first == "detlab: 2 of 4 images could not be predicted:"
    assert [fault.split(": ")[0].strip() for fault in faults] == [
        str(Path.cwd() / name) for name in ("photos/b.png", "photos/d.jpg")
    ]
    assert [image["id"] for image in read("out/images.json")["images"]] == [1, 3]
    assert {row["image_id"] for row in read("out/predictions.json")} == {1, 3}
    assert not Path("out/b.png").exists()


def test_an_image_of_another_size_than_the_ground_truth_says_is_told_like_an_unreadable_one(
    seeing: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photograph(Path("a.png"))
    image = {"id": 4, "file_name": "a.png", "height": 120, "width": 140}
    Path("gt.json").write_text(json.dumps({"images": [image], "categories": [{"id": 1, "name": "pedestrian"}]}))
    predicted(str(seeing), "a.png", "--ground-truth", "gt.json", status=1)
    assert "a.png: 140 x 120 pixels (height x width), but the ground truth says 120 x 140." in capsys.readouterr().err


def test_without_out_each_call_has_a_new_folder_called_as_the_run(seeing: Path) -> None:
    photograph(Path("a.png"))
    predicted(str(seeing), "a.png")
    predicted(str(seeing / "checkpoints/last.pt"), "a.png")
    Path("alone.pt").write_bytes((seeing / "checkpoints/best.pt").read_bytes())
    predicted("alone.pt", "a.png")
    assert sorted(path.name for path in Path("predictions").iterdir()) == ["alone", "run", "run-2"]
    assert all((folder / "a.png").is_file() for folder in Path("predictions").iterdir())


def test_files_are_replaced_only_where_that_is_said(seeing: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photograph(Path("photos/a.png"))
    Path("out").mkdir()
    Path("out/a.png").write_text("mine")
    predicted(str(seeing), "photos", "--out", "out", status=2)
    assert (
        capsys.readouterr().err == "detlab: --out: out holds a.png already; name another folder, or add --overwrite.\n"
    )
    assert [path.name for path in Path("out").iterdir()] == ["a.png"]
    assert Path("out/a.png").read_text() == "mine"
    predicted(str(seeing), "photos", "--out", "out", "--overwrite")
    assert pixels_of(Path("out/a.png")).shape == (140, 120, 3)


def test_an_image_is_never_painted_over(seeing: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = photograph(Path("photos/a.png"))
    predicted(str(seeing), "photos", "--out", "photos", "--overwrite", status=2)
    assert "photos/a.png is one of the images and would be painted over" in capsys.readouterr().err
    assert np.array_equal(pixels_of(Path("photos/a.png")), before)


def test_a_picture_is_a_jpeg_where_the_image_was_one_and_a_png_elsewhere(seeing: Path) -> None:
    photograph(Path("photos/a.jpg"))
    photograph(Path("photos/b.bmp"))
    predicted(str(seeing), "photos", "--out", "out")
    assert Path("out/a.jpg").read_bytes().startswith(b"\xff\xd8\xff")
    assert Path("out/b.bmp.png").read_bytes().startswith(b"\x89PNG")
    assert np.abs(pixels_of(Path("out/a.jpg"))[105, 10].astype(int) - COLOURS[0]).max() < 40


def test_an_image_that_lies_turned_is_predicted_as_it_is_seen(seeing: Path) -> None:
    upright = photograph(Path("a.png"))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    Image.fromarray(np.rot90(upright)).save("turned.png", exif=exif)
    predicted(str(seeing), "a.png", "turned.png", "--out", "out")
    assert np.array_equal(pixels_of(Path("out/a.png")), pixels_of(Path("out/turned.png")))
    first, second = (image for image in read("out/images.json")["images"])
    assert (first["height"], first["width"]) == (second["height"], second["width"]) == (140, 120)


def test_an_image_without_objects_is_in_the_index_and_its_picture_is_the_image(seeing: Path) -> None:
    Path("photos").mkdir()
    dark = np.full((30, 40, 3), 7, dtype=np.uint8)
    Image.fromarray(dark).save("photos/a.png")
    predicted(str(seeing), "photos", "--out", "out")
    assert np.array_equal(pixels_of(Path("out/a.png")), dark)
    assert [image["file_name"] for image in read("out/images.json")["images"]] == ["a.png"]


def test_what_was_done_before_ctrl_c_is_kept(
    seeing: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from detlab.data import images

    for name in ("a", "b", "c"):
        photograph(Path(f"photos/{name}.png"))

    def interrupted(path: Path) -> Any:
        if path.name == "c.png":
            raise KeyboardInterrupt
        return read_image(path)

    read_image = images.read_image
    monkeypatch.setattr(images, "read_image", interrupted)
    predicted(str(seeing), "photos", "--out", "out", status=130)
    assert capsys.readouterr().err == "detlab: interrupted\n"
    assert [image["file_name"] for image in read("out/images.json")["images"]] == ["a.png", "b.png"]
    assert len(read("out/predictions.json")) == 6


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere", "a.png"], "detlab: nowhere: neither a run's folder nor a checkpoint file."),
        (["RUN", "absent.png"], "detlab: absent.png: no such file or folder."),
        (
            ["RUN", "a.png", "--device", "gpu"],
            "detlab: device: 'gpu' is not allowed; allowed: auto, cpu, cuda, cuda:N, mps.",
        ),
        (["RUN", "a.png", "--device", "cuda:99"], "detlab: device: 'cuda:99' is not available here ("),
        (["RUN", "a.png", "--out", "a.png"], "detlab: --out: a.png is a file; name a folder."),
    ],
)
def test_a_mistake_is_told_in_a_line_and_nothing_is_written(
    seeing: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    photograph(Path("a.png"))
    predicted(*[str(seeing) if word == "RUN" else word for word in arguments], status=2)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(said)
    assert [path.name for path in Path.cwd().iterdir()] == ["a.png"]


@pytest.mark.parametrize("threshold", ["2", "-0.1", "high", "nan"])
def test_a_threshold_that_is_no_score_is_refused(threshold: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(["predict", "run", "a.png", f"--threshold={threshold}"])
    assert left.value.code == 2
    assert "invalid score_from_0_to_1 value" in capsys.readouterr().err


def test_the_command_line_is_one_process_with_the_working_folders_own_classes(seeing: Path) -> None:
    photograph(seeing.parent / "photos/a.png")
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "error",
            "-m",
            "detlab.cli",
            "predict",
            "run",
            "photos",
            "--out",
            "drawn",
            "--device=cpu",
        ],
        cwd=seeing.parent,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0] == "a.png: 2 object(s)"


def test_what_is_drawn_is_a_table_too(seeing: Path) -> None:
    photograph(Path("photos/=b.png"))
    photograph(Path("photos/a, b.png"))
    predicted(str(seeing), "photos", "--out", "out", "--csv")
    lines = Path("out/predictions.csv").read_text().splitlines()
    assert lines == [
        "image,name,score,x0,y0,x1,y1",
        "'=b.png,pedestrian,0.9,10.0,60.0,40.0,110.0",  # no formula
        "'=b.png,pedestrian,0.8,70.0,50.0,105.0,115.0",
        '"a, b.png",pedestrian,0.9,10.0,60.0,40.0,110.0',
        '"a, b.png",pedestrian,0.8,70.0,50.0,105.0,115.0',
    ]
    predicted(str(seeing), "photos", "--out", "without")
    assert not Path("without/predictions.csv").exists()


def test_several_images_at_a_time_give_the_same_in_the_same_order(
    seeing: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from detlab.detector import Detector

    batches = []
    together = Detector.together
    monkeypatch.setattr(
        Detector, "together", lambda self, images: batches.append(len(images)) or together(self, images)
    )
    for name in ("a", "c", "d", "e"):
        photograph(Path(f"photos/{name}.png"))
    Image.fromarray(np.full((30, 40, 3), 7, dtype=np.uint8)).save("photos/b.png")
    Path("photos/f.png").write_text("no image")
    said = []
    for size in ("1", "4"):
        predicted(str(seeing), "photos", "--out", size, "--batch-size", size, "--csv", status=1)
        said.append(capsys.readouterr().out.replace(f"{size}/predictions.json", ""))
    assert said[0] == said[1]
    for name in ("predictions.json", "predictions.csv", "images.json", "d.png"):
        assert Path("1", name).read_bytes() == Path("4", name).read_bytes()
    # One by one; then of the first four those of a size together, and of the last two the one that can be read.
    assert batches == [1, 1, 1, 1, 1, 1, 3, 1]


def test_at_another_size_the_model_sees_other_images(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.models.detection.transform import GeneralizedRCNNTransform

    monkeypatch.chdir(tmp_path)
    photograph(Path("a.png"))  # 140 x 120
    size = ("image_size.min=72", "image_size.max=96", "model.enlarge_to=null")
    small = (*size, "model.backbone.name=mobilenet_v3_small", "model.box_roi_pool.output_size=2")
    run = runs.untrained(tmp_path_factory.getbasetemp(), "small", "model=mobilenet", *small)
    seen = []
    resize = GeneralizedRCNNTransform.resize

    def watched(self: Any, image: Any, target: Any = None) -> Any:
        found = resize(self, image, target)
        seen.append(tuple(found[0].shape[1:]))
        return found

    monkeypatch.setattr(GeneralizedRCNNTransform, "resize", watched)
    for out, size in enumerate(([], ["--size", "120"], ["--size", "120,130"])):
        predicted(str(run), "a.png", "--out", str(out), *size)
    # The longer side may be 96 / 72 times the shorter one where nothing is said of it.
    assert seen == [(84, 72), (140, 120), (130, 111)]
    assert read("1/images.json")["images"][0]["height"] == 140


@pytest.mark.parametrize(
    ("size", "said"),
    [
        ("72", "its model resizes images in a way of its own; leave it out."),
        ("0", "invalid min_or_min_max value: '0'"),
        ("90,", "invalid min_or_min_max value: '90,'"),
        ("90x120", "invalid min_or_min_max value: '90x120'"),
    ],
)
def test_a_size_that_cannot_be_is_refused(
    seeing: Path, size: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    photograph(Path("a.png"))
    try:
        status = cli.main(["predict", str(seeing), "a.png", "--size", size])
    except SystemExit as left:
        status = left.code
    assert status == 2
    assert said in capsys.readouterr().err
    assert [path.name for path in Path.cwd().iterdir()] == ["a.png"]


def film(path: Path, count: int) -> None:
    """Write a video of `photograph`'s two objects, at 10 images a second; in the last one there is nothing."""
    av = pytest.importorskip("av")
    pixels = photograph(path.with_suffix(".png"))
    path.with_suffix(".png").unlink()
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.height, stream.width, stream.pix_fmt, stream.bit_rate = 140, 120, "yuv420p", 4_000_000
        for i in range(count):
            seen = pixels if i < count - 1 else np.full_like(pixels, 40)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(seen, format="rgb24")))
        container.mux(stream.encode())


def frames_of(path: str) -> list[np.ndarray]:
    av = pytest.importorskip("av")
    with av.open(path) as container:
        assert float(container.streams.video[0].average_rate) == pytest.approx(5)
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def test_a_video_is_filmed_with_what_is_seen_in_it(seeing: Path, capsys: pytest.CaptureFixture[str]) -> None:
    film(Path("clips/walk.mp4"), 7)
    photograph(Path("clips/a.png"))
    predicted(
        str(seeing), "clips/a.png", "clips/walk.mp4", "--every", "2", "--batch-size", "3", "--out", "out", "--csv"
    )
    index = read("out/images.json")["images"]
    assert [(image["id"], image["file_name"]) for image in index] == [
        (1, "a.png"), (2, "walk.mp4#0"), (3, "walk.mp4#2"), (4, "walk.mp4#4"), (5, "walk.mp4#6"),
    ]  # fmt: skip
    assert [image["seconds"] for image in index[1:]] == pytest.approx([0.0, 0.2, 0.4, 0.6])
    boxes = [[round(side) for side in row["bbox"]] for row in read("out/predictions.json") if row["score"] > 0.5]
    assert boxes == [[10, 60, 30, 50], [70, 50, 35, 65]] * 4  # of the picture and three of four images
    assert "walk.mp4#4" in Path("out/predictions.csv").read_text()
    before, *_, last = frames_of("out/walk.mp4")
    assert before.shape == (140, 120, 3)
    assert int(np.ptp(before, axis=2).max()) > 60  # boxes have colours; what is filmed is grey
    assert int(np.ptp(last[:60], axis=2).max()) < 30
    assert "walk.mp4: 4 image(s), 6 object(s)" in capsys.readouterr().err


def test_a_video_that_cannot_be_decoded_does_not_lose_the_others(
    seeing: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    film(Path("good.mp4"), 2)
    Path("bad.mp4").write_bytes(b"no video at all" * 100)
    predicted(str(seeing), "bad.mp4", "good.mp4", "--out", "out", status=1)
    said = capsys.readouterr().err
    assert "1 of 2 files could not be predicted:\n  bad.mp4: cannot be opened as a video" in said
    assert len(read("out/images.json")["images"]) == 2
    assert sorted(path.name for path in Path("out").iterdir()) == ["good.mp4", "images.json", "predictions.json"]


def test_a_video_that_breaks_off_is_filmed_so_far(seeing: Path, capsys: pytest.CaptureFixture[str]) -> None:
    film(Path("whole.avi"), 40)
    whole = Path("whole.avi").read_bytes()
    Path("cut.avi").write_bytes(whole[: len(whole) // 2])
    Path("head.avi").write_bytes(whole[:5700])  # the first image begins, and breaks off
    predicted(str(seeing), "cut.avi", "--out", "out", "--every", "2")
    assert 0 < len(frames_of("out/cut.mp4")) == len(read("out/images.json")["images"]) < 20
    capsys.readouterr()
    predicted(str(seeing), "head.avi", "--out", "none", status=1)
    assert "head.avi: image 1 cannot be decoded" in capsys.readouterr().err
    assert list(Path("none").iterdir()) == []


def test_without_pyav_a_video_is_told_what_brings_it(
    seeing: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("clip.mp4").touch()
    monkeypatch.setitem(sys.modules, "av", None)
    predicted(str(seeing), "clip.mp4", "--out", "out", status=1)
    said = capsys.readouterr()
    assert "clip.mp4: a video needs PyAV, which is not installed: pip install 'detlab[video]'" in said.err
    assert "image(s)" not in said.out
    assert list(Path("out").iterdir()) == []


def test_a_film_takes_no_videos_place(seeing: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("out").mkdir()
    Path("out/clip.mp4").touch()
    predicted(str(seeing), "out/clip.mp4", "--out", "out", "--overwrite", status=2)
    assert "out/clip.mp4 would be replaced by its film" in capsys.readouterr().err
    Path("clip.avi").touch()
    predicted(str(seeing), "out/clip.mp4", "clip.avi", "--out", "new", status=2)
    assert "clip.avi: its film would be called clip.mp4, and so would that of out/clip.mp4" in capsys.readouterr().err


def test_a_pattern_may_match_videos_beside_images(seeing: Path) -> None:
    film(Path("clips/walk.mp4"), 2)
    photograph(Path("clips/a.png"))
    predicted(str(seeing), "clips/*", "--out", "out")
    names = [image["file_name"] for image in read("out/images.json")["images"]]
    assert names == ["a.png", "walk.mp4#0", "walk.mp4#1"]


def test_a_video_is_turned_as_it_was_held(seeing: Path) -> None:
    """A telephone that is held upright records lying images, and notes in the track's matrix a quarter turn clockwise."""
    from detlab.commands.video import Video

    film(Path("lying.mp4"), 2)
    content = bytearray(Path("lying.mp4").read_bytes())
    matrix = (
        content.index(b"tkhd") + 4 + 40
    )  # behind the box's name and version 0's times, id, duration, layer and volume
    assert struct.unpack_from(">9i", content, matrix) == (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    struct.pack_into(">9i", content, matrix, 0, 1 << 16, 0, -(1 << 16), 0, 0, 140 << 16, 0, 1 << 30)
    Path("held.mp4").write_bytes(content)
    (lying, _), (held, _) = ([frame.image for frame in Video(Path(name), 1)] for name in ("lying.mp4", "held.mp4"))
    assert lying.shape == (3, 140, 120)
    assert torch.equal(held, lying.rot90(-1, (1, 2)))


def test_a_film_of_odd_sides_loses_a_line(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    from detlab.commands.video import filming

    with filming(tmp_path / "odd.mp4", Fraction(5)) as odd:
        odd.add(torch.full((3, 65, 37), 200, dtype=torch.uint8))
    with av.open(str(tmp_path / "odd.mp4")) as container:
        (frame,) = container.decode(video=0)
        assert (frame.height, frame.width) == (64, 36)
