"""`detlab evaluate`: the numbers that the run logged, on its own data and on other, from a folder and from a lone file."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import runs
import torch
from conftest import lines_of, write_pennfudan
from PIL import Image

from detlab import cli

Detlab = Callable[..., int]


@pytest.fixture
def trained(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of the real Mask R-CNN; the working folder is the one that it was started in."""
    run = runs.mask_rcnn(tmp_path_factory.getbasetemp())
    _work_in(run.parent, monkeypatch)
    return run


@pytest.fixture
def seeing(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of a user's own model, which makes no mistake; the working folder is the one that it was started in."""
    run = runs.bright(tmp_path_factory.getbasetemp())
    _work_in(run.parent, monkeypatch)
    monkeypatch.setenv("DETLAB_ALLOW", "bright_model")
    return run


def _work_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.path", sys.path[:])


def numbers(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """What `detlab ARGUMENTS --json` prints."""
    capsys.readouterr()
    assert cli.main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    """The lines that `detlab evaluate ARGUMENTS` is refused with."""
    capsys.readouterr()
    assert cli.main(["evaluate", *arguments]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("detlab: ")
    return said.err.removeprefix("detlab: ").splitlines()


def logged(run: Path) -> list[dict[str, Any]]:
    """The numbers of each evaluation of a run, without `val/`."""
    lines = [line for line in lines_of(run) if "val/bbox/AP" in line]
    return [
        {key.removeprefix("val/"): value for key, value in line.items() if key.startswith("val/")} for line in lines
    ]


def test_the_numbers_are_those_that_the_run_logged_for_its_best_evaluation(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, last = logged(trained)
    assert first["bbox/AP"] > 0.01
    assert first != last
    assert numbers(capsys, "evaluate", str(trained)) == first
    assert numbers(capsys, "evaluate", str(trained / "checkpoints/last.pt")) == last


def test_a_checkpoint_copied_away_from_its_run_tells_all_that_is_needed(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(trained / "checkpoints/best.pt", tmp_path / "mine.pt")
    monkeypatch.chdir(tmp_path)
    # With another number of workers, which must change no number.
    assert numbers(capsys, "evaluate", "mine.pt", "workers=1") == logged(trained)[0]


def test_a_users_own_model_needs_none_of_the_users_configuration(
    seeing: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("PennFudanPed", "bright_model.py"):
        (tmp_path / name).symlink_to(seeing.parent / name)
    monkeypatch.chdir(tmp_path)
    assert numbers(capsys, "evaluate", str(seeing)) == logged(seeing)[0]


def test_the_lines_are_cocos_for_each_type_and_say_what_was_scored_on_what(
    seeing: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["evaluate", "run"]) == 0
    said, *lines = capsys.readouterr().out.splitlines()
    assert said == "run/checkpoints/best.pt, val of Penn-Fudan pedestrians, 4 images"
    assert (lines[0], lines[13], len(lines)) == ("bbox:", "segm:", 28)
    assert lines[1] == " Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all | maxDets=100 ] = 1.000"
    assert lines[25] == " Average Recall     (AR) @[ IoU=0.50:0.95 | area= large | maxDets=100 ] = nan"
    assert lines[26:] == [
        "operating thresholds, best F1 at segm IoU 0.5 on the run's validation part; predict takes these:",
        "  pedestrian: 0.500  precision 1.000  recall 1.000  F1 1.000",
    ]


def test_the_errors_are_told_by_kind_and_written_beside_what_was_scored(
    seeing: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    told = numbers(capsys, "evaluate", str(seeing), "--errors", "--out", str(out))
    # Of each of 4 images one thing is reported that is not there, below all that is.
    for iou_type in ("bbox", "segm"):
        kinds = told["errors"][iou_type]["kinds"]
        assert {kind: one["count"] for kind, one in kinds.items() if one["count"]} == {"background": 4}
        assert (told["errors"][iou_type]["AP50"], kinds["background"]["gain"]) == (
            pytest.approx(1.0),
            pytest.approx(0.0),
        )
    assert told["segm/AP"] == 1.0
    assert json.loads((out / "errors.json").read_text()) == {
        key: value for key, value in told.items() if "/" not in key
    }
    assert cli.main(["evaluate", str(seeing), "--errors", "--precision", "0.5"]) == 0
    said = capsys.readouterr().out
    assert "  background       4        1.000  0.000" in said
    assert "lowest with a precision of 0.5" in said
    assert refused(capsys, str(seeing), "--precision", "0.5") == [
        "--precision: it chooses the thresholds that --errors tells; add --errors."
    ]
    assert refused(capsys, str(seeing), "--errors", "--out", str(out))[0].startswith(f"--out: {out} holds ")


def hostile_photographs(folder: Path) -> Path:
    """Photographs with markup in their names, in each of which an object is annotated that the model does not see."""
    root = write_pennfudan(folder, 6)
    for image in sorted((root / "PNGImages").iterdir()):
        name = f"<img src=x onerror='alert(1)'>{image.stem}"
        image.rename(image.with_name(f"{name}.png"))
        mask = root / "PedMasks" / f"{image.stem}_mask.png"
        pixels = Image.open(mask).convert("L")
        pixels.paste(9, (2, 50, 20, 58))
        pixels.save(mask.with_name(f"{name}_mask.png"))
        mask.unlink()
    return root


def test_the_page_of_errors_has_what_the_json_has_and_pictures_and_needs_nothing_else(
    seeing: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = hostile_photographs(tmp_path / "data"), tmp_path / "out"
    told = numbers(capsys, "evaluate", str(seeing), f"dataset.root={root}", "--errors", "--out", str(out))
    page = (out / "errors.html").read_text()
    for iou_type in ("bbox", "segm"):
        for kind, one in told["errors"][iou_type]["kinds"].items():
            cells = "".join(
                f'<td class="n">{value}</td>' for value in (one["count"], *_three(one["AP50"], one["gain"]))
            )
            assert re.search(rf"<td>{kind}<br><small>[^<]+</small></td>{re.escape(cells)}", page)
        threshold = told["thresholds"][iou_type]["pedestrian"]
        ap50 = sum(told["curves"][iou_type]["pedestrian"]) / 101
        cells = _three(ap50, *(threshold[key] for key in ("threshold", "precision", "recall", "f1")))
        assert ">pedestrian</td>" + "".join(f'<td class="n">{value}</td>' for value in cells) in page
        (error,) = _three(told["calibration"][iou_type]["error"])
        assert f"calibration error of the scores is {error}" in page
    shown = re.findall(r'rgb\(0 114 178 / \d+%\)">(\d+)<', page)
    matrices = [told["confusion"][iou_type]["counts"] for iou_type in ("bbox", "segm")]
    assert [int(count) for count in shown] == [n for (row, rest) in matrices for n in (*row, rest[0])]
    # One object more in each of 4 images: the worst, and in all of them it was never found.
    assert [one["errors"] for one in told["worst"]["images"]] == [1, 1, 1, 1]
    assert page.count("data:image/jpeg;base64,") == 8
    assert page.count("1 not found</figcaption>") == 4
    for link in re.findall('href="#([^"]+)"', page):
        assert page.count(f'id="{link}"') == 1
    assert len(re.findall("href=", page)) == page.count("annotated, but never found</td>") == 4
    assert not re.search(r"https?://|<link|@import|src=\"(?!data:)", page)
    assert "<img src=x" not in page
    assert "&lt;img src=x onerror=&#x27;alert(1)&#x27;&gt;Ped0000" in page


def _three(*values: float) -> list[str]:
    return [f"{value:.3f}" for value in values]


def test_the_page_of_errors_can_do_without_pictures(
    seeing: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = hostile_photographs(tmp_path / "data"), tmp_path / "out"
    arguments = [str(seeing), f"dataset.root={root}", "--errors", "--no-pictures", "--out", str(out)]
    assert cli.main(["evaluate", *arguments]) == 0
    page = (out / "errors.html").read_text()
    assert "<img" not in page
    assert "href=" not in page
    assert page.count("1 not found</td>") == 4
    (line,) = refused(capsys, str(seeing), "--no-pictures")
    assert line == "--no-pictures: belongs to errors.html; add --errors --out DIR."


def test_a_model_without_errors_above_its_thresholds_gets_a_page_that_says_so(
    seeing: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["evaluate", str(seeing), "--errors", "--out", str(tmp_path)]) == 0
    page = (tmp_path / "errors.html").read_text()
    assert "<h2>The worst images</h2>" not in page
    assert "<h2>Likely label errors</h2><p>None.</p>" in page


@pytest.mark.slow
def test_chromium_shows_the_page_of_errors_without_an_error(
    seeing: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium here")
    root = hostile_photographs(tmp_path / "data")
    assert cli.main(["evaluate", str(seeing), f"dataset.root={root}", "--errors", "--out", str(tmp_path / "out")]) == 0
    command = [
        chromium, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--window-size=390,900",
        f"--user-data-dir={tmp_path}/profile", "--dump-dom", f"file://{tmp_path}/out/errors.html",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert "CONSOLE" not in done.stderr
    assert done.stdout.count('src="data:image/jpeg') == 8


def test_the_part_and_values_of_the_data_set_can_be_others(seeing: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for argument, said in (
        ("--part=train", "train of Penn-Fudan pedestrians, 2 images"),
        ("dataset.val_size=3", "val of Penn-Fudan pedestrians, 3 images"),
    ):
        assert cli.main(["evaluate", str(seeing), argument]) == 0
        assert capsys.readouterr().out.splitlines()[0].endswith(said)


def test_a_users_own_model_on_a_users_own_data_is_scored_on_more_of_it(
    seeing: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_pennfudan(tmp_path / "more", 9)
    found = numbers(capsys, "evaluate", str(seeing), f"dataset.root={tmp_path / 'more'}", "dataset.val_size=8")
    assert (found["bbox/AP"], found["segm/AP"], found["bbox/APl"]) == (1.0, 1.0, None)


def test_a_newly_chosen_data_set_is_composed_without_what_the_run_or_its_recipe_had_set_in_the_old_one(
    seeing: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "experiments/experiment").mkdir(parents=True)
    (tmp_path / "experiments/experiment/mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /dataset: pennfudan\ndataset:\n  val_size: 4\n  split_seed: 0\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(seeing.parent)
    state = torch.load(seeing / "checkpoints/best.pt", weights_only=True)
    torch.save({**state, "overrides": ["experiment=mine", f"dataset.root={seeing.parent / 'PennFudanPed'}"]}, "best.pt")
    assert numbers(capsys, "evaluate", "best.pt") == logged(seeing)[0]
    # It composes and is built: only its class has another name.
    said = "dataset: class 'person' is unknown to the model. The data set has person; best.pt has pedestrian."
    assert refused(capsys, "best.pt", "dataset=synthetic")[0] == said


def test_the_files_in_out_are_what_was_scored_and_score_gives_the_same_numbers(
    seeing: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # One object more in one mask than the model sees: no number is 0 or 1 by chance.
    root = write_pennfudan(tmp_path / "data", 6)
    for mask in (root / "PedMasks").iterdir():
        pixels = Image.open(mask).convert("L")
        pixels.paste(9, (2, 50, 20, 58))
        pixels.save(mask)
    out = tmp_path / "scores"
    found = numbers(capsys, "evaluate", str(seeing), f"dataset.root={root}", "--out", str(out))
    assert 0.3 < found["segm/AP"] < 0.8
    assert json.loads((out / "metrics.json").read_text()) == found
    files = [str(out / "ground_truth.json"), str(out / "predictions.json")]
    again = {
        key: value for t in ("bbox", "segm") for key, value in numbers(capsys, "score", *files, "--iou-type", t).items()
    }
    assert again == found


def test_files_of_an_earlier_evaluation_are_replaced_only_where_that_is_said(
    seeing: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "metrics.json").write_text("mine")
    arguments = [str(seeing), "--out", str(tmp_path)]
    said = f"--out: {tmp_path} holds metrics.json already; name another folder, or add --overwrite."
    assert refused(capsys, *arguments) == [said]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]
    assert (tmp_path / "metrics.json").read_text() == "mine"
    assert numbers(capsys, "evaluate", *arguments, "--overwrite") == json.loads((tmp_path / "metrics.json").read_text())
    assert refused(capsys, str(seeing), "--out", str(tmp_path / "metrics.json")) == [
        f"--out: {tmp_path / 'metrics.json'} is a file; name a folder."
    ]


def test_every_wrong_override_is_told_at_once(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = refused(
        capsys, str(trained), "optimizer.lr=3", "datset=pennfudan", "dataset.vl_size=2", "workers=-1", "device=1,2"
    )
    kept = "stays as the run had it; what can be given is dataset, evaluator, workers, device, precision, keep_freed_memory, allow"
    assert lines[0].startswith(f"optimizer.lr: {kept}")
    assert set(lines[1:]) == {
        "device: several values; a list is written device=[...].",
        "datset: no such key. Did you mean dataset?",
        "dataset.vl_size: no such key. Did you mean dataset.val_size?",
        "workers: -1 is not allowed; allowed: 0 or more.",
    }


@pytest.mark.parametrize(
    "override", ["model=mobilenet", "epochs=3", "experiment=x", "resume=a", "hydra.run.dir=x", "~optimizer.lr"]
)
def test_what_would_change_the_run_itself_is_refused(
    trained: Path, override: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (line,) = refused(capsys, str(trained), override)
    assert "stays as the run had it" in line


def test_an_override_of_the_run_that_no_longer_composes_is_told_as_the_runs(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = torch.load(trained / "checkpoints/best.pt", weights_only=True)
    for overrides, said in (
        (["dataset.colour=red"], "dataset.colour: no such key. ({} says so.)"),
        (["--help"], "{} is damaged."),
    ):
        torch.save({**state, "overrides": overrides}, tmp_path / "old.pt")
        (line,) = refused(capsys, str(tmp_path / "old.pt"))
        assert line.startswith(said.format(tmp_path / "old.pt"))


def test_code_that_only_the_checkpoint_asks_for_is_not_run(
    seeing: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("DETLAB_ALLOW")
    (line,) = refused(capsys, str(seeing))
    assert "'bright_model.Bright' is not permitted" in line


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("nowhere", "nowhere: neither a run's folder nor a checkpoint file."),
        ("first-run/checkpoints", "first-run/checkpoints: holds no checkpoints/best.pt"),
        ("first-run/run.json", "first-run/run.json: not a file that torch.save wrote"),
    ],
)
def test_what_is_no_run_is_refused(trained: Path, place: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = refused(capsys, place)
    assert line.startswith(said)


def test_a_damaged_checkpoint_is_refused(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = bytearray((trained / "checkpoints/best.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "best.pt").write_bytes(content)
    (line,) = refused(capsys, str(tmp_path / "best.pt"))
    assert "best.pt: damaged: its checksum" in line


def test_a_part_that_the_data_set_lacks_or_that_is_empty_is_refused(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (line,) = refused(capsys, str(trained), "--part", "tst")
    assert "no part 'tst'" in line
    (line,) = refused(capsys, str(trained), "--part", "test")
    assert line == "--part: the part 'test' of the data set has no images."
