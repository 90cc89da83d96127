"""`detlab score`: the lines, the JSON, and every file that cannot be scored."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from detlab.commands.score import main
from detlab.errors import UserError

ROOT = Path(__file__).parents[2]
SHARED = ROOT / "../shared"
GROUND_TRUTH = {
    "images": [{"id": 1, "height": 100, "width": 120}],
    "categories": [{"id": 3, "name": "cat"}, {"id": 8, "name": "dog"}],
    "annotations": [{"id": 0, "image_id": 1, "category_id": 3, "bbox": [10, 10, 50, 50], "area": 2500}],
}
ROW: dict[str, Any] = {"image_id": 1, "category_id": 3, "bbox": [10, 10, 50, 36], "score": 0.9}  # IoU 0.72


def written(folder: Path, ground_truth: Any, results: Any) -> list[str]:
    (folder / "gt.json").write_text(json.dumps(ground_truth))
    (folder / "results.json").write_text(json.dumps(results))
    return [str(folder / "gt.json"), str(folder / "results.json")]


def test_json_is_one_object_with_the_tags_names_and_null_for_nothing_to_measure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*written(tmp_path, GROUND_TRUTH, [ROW]), "--json"]) == 0
    numbers = json.loads(capsys.readouterr().out)
    assert numbers["bbox/AP"] == pytest.approx(0.5)
    assert numbers["bbox/AP/cat"] == pytest.approx(0.5)
    assert numbers["bbox/AP50"] == pytest.approx(1.0)
    assert numbers["bbox/AP75"] == 0.0
    assert numbers["bbox/APs"] is None
    assert numbers["bbox/AP/dog"] is None
    assert len(numbers) == 14


def test_the_lines_are_cocos_and_the_type_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(written(tmp_path, GROUND_TRUTH, [ROW])) == 0
    said, *lines = capsys.readouterr().out.splitlines()
    assert said.startswith("bbox (by the fields of the results")
    assert len(lines) == 14
    assert lines[0] == " Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all | maxDets=100 ] = 0.500"
    assert lines[1] == " Average Precision  (AP) @[ IoU=0.50      | area=   all | maxDets=100 ] = 1.000"
    assert lines[3] == " Average Precision  (AP) @[ IoU=0.50:0.95 | area= small | maxDets=100 ] = nan"
    assert lines[6] == " Average Recall     (AR) @[ IoU=0.50:0.95 | area=   all | maxDets=  1 ] = 0.500"
    # One more for each of several classes.
    assert lines[12] == " Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all | maxDets=100 ] = 0.500  cat"
    assert lines[13] == " Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all | maxDets=100 ] = nan  dog"


@pytest.mark.parametrize(
    ("ground_truth", "results", "iou_type", "first", "ninth"),
    # ../shared/README.md, "Reference numbers": the first and the ninth of each list.
    [
        ("instances_val2014_100", "instances_val2014_fakebbox100_results", "bbox", 0.5045806987, 0.5953529829),
        ("instances_val2014_100", "instances_val2014_fakesegm100_results", "segm", 0.3195452759, 0.4168394992),
        ("gt_dataset", "dt_dataset", "keypoints", 0.5048844884, 0.4666666667),
    ],
)
def test_the_reference_files_are_scored_by_what_they_hold(
    ground_truth: str, results: str, iou_type: str, first: float, ninth: float, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = SHARED / ("coco_keypoints_139099" if iou_type == "keypoints" else "coco_val2014_100")
    if not folder.exists():
        pytest.skip(f"needs ../shared/{folder.name}, which this checkout lacks")
    assert main([str(folder / f"{ground_truth}.json"), str(folder / f"{results}.json"), "--json"]) == 0
    numbers = list(json.loads(capsys.readouterr().out).items())
    assert numbers[0] == (f"{iou_type}/AP", pytest.approx(first, abs=1e-9))
    assert numbers[8][1] == pytest.approx(ninth, abs=1e-9)


def test_the_type_can_be_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = written(tmp_path, GROUND_TRUTH, [{**ROW, "segmentation": [[1, 1, 9, 1, 9, 9]]}])
    assert main([*files, "--iou-type", "bbox"]) == 0
    assert capsys.readouterr().out.startswith("bbox:\n")
    with pytest.raises(UserError, match="lacks segmentation"):
        main(files)


def test_every_backend_prints_the_same_and_another_one_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = written(tmp_path, GROUND_TRUTH, [ROW])
    printed = set()
    for backend in ("auto", "pycocotools", "faster"):
        assert main([*files, "--backend", backend]) == 0
        printed.add(capsys.readouterr().out)
    assert len(printed) == 1
    with pytest.raises(SystemExit, match="2"):
        main([*files, "--backend", "fast"])
    assert "argument --backend: invalid choice: 'fast'" in capsys.readouterr().err


def test_no_detections_are_scored_as_boxes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*written(tmp_path, GROUND_TRUTH, []), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bbox/AP"] == 0.0


def test_sigmas_make_other_keypoints_than_a_persons_scorable(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    points = {"keypoints": [20, 20, 2, 30, 30, 2]}
    ground_truth = {**GROUND_TRUTH, "annotations": [{**GROUND_TRUTH["annotations"][0], **points}]}
    files = written(tmp_path, ground_truth, [{**ROW, **points}])
    assert main([*files, "--sigmas", "0.05,0.1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["keypoints/AP"] == pytest.approx(1.0)
    with pytest.raises(UserError, match="give a sigma for each keypoint"):
        main(files)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    files = written(tmp_path, GROUND_TRUTH, [])
    with pytest.raises(UserError, match=r"absent\.json: cannot be read \(No such file"):
        main([files[0], str(tmp_path / "absent.json")])


@pytest.mark.parametrize(
    ("content", "said"),
    [(b'[\n  {"a": 1},\n  {"a" 2}\n]', "line 3, column 8"), (b"", "line 1, column 1"), (b"\x89PNG\r\n", "byte 0")],
)
def test_a_file_that_is_not_json_is_named_with_the_place(tmp_path: Path, content: bytes, said: str) -> None:
    files = written(tmp_path, GROUND_TRUTH, [])
    Path(files[1]).write_bytes(content)
    with pytest.raises(UserError, match=rf"results\.json: not JSON.*{said}"):
        main(files)


def test_files_in_the_wrong_order_are_told(tmp_path: Path) -> None:
    files = written(tmp_path, GROUND_TRUTH, [ROW])
    with pytest.raises(UserError, match=r"results\.json: holds a list; .* The order is GT\.json RESULTS\.json"):
        main(files[::-1])
    with pytest.raises(UserError, match=r"gt\.json: holds a dict; COCO results are a list"):
        main([files[0], files[0]])


def test_a_row_that_lacks_a_field_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"results: row 1 \(image 1\) lacks score"):
        main(written(tmp_path, GROUND_TRUTH, [ROW, {k: v for k, v in ROW.items() if k != "score"}]))


def test_help_does_not_import_torch() -> None:
    code = "import sys; from detlab.commands.score import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    done = subprocess.run(
        [sys.executable, "-c", code + "print(sorted({'torch', 'numpy', 'pycocotools'} & set(sys.modules)))"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "usage: detlab score" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"
