"""`detlab compare` says in what two runs differ, and whether that is more than chance."""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from detlab import cli
from detlab.config import CONF, register
from detlab.evaluation.coco import score

Composed = Callable[..., DictConfig]
OVERRIDES = ("dataset.train_size=4", "dataset.val_size=12", "model=mobilenet")


def write_run(
    folder: Path, composed: Composed, keep: Callable[[int, dict[str, Any]], bool], *overrides: str
) -> dict[str, Any]:
    """A run's folder as far as a comparison reads it, of a detector that finds the objects for which `keep` says so; the truth."""
    from detlab.config import build
    from detlab.data.fingerprint import fingerprint

    cfg = composed(*OVERRIDES, *overrides)
    dataset = build(cfg.dataset, group="dataset", allow=[], part="val")
    truth = dataset.ground_truth()
    rows = [
        {"image_id": a["image_id"], "category_id": a["category_id"], "bbox": a["bbox"], "score": 0.9 - i / 1000}
        for i, a in enumerate(truth["annotations"])
        if keep(i, a)
    ]
    folder.mkdir()
    settings = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key not in ("hydra", "name")])
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(settings, resolve=True))
    record = {
        "overrides": [*OVERRIDES, *overrides],
        "fingerprints": {"val": fingerprint(dataset)},
        "classes": list(dataset.class_map.names),
        "state": "done",
        "started": "2026-01-31T12:00:00+00:00",
        "ended": "2026-01-31T12:01:30+00:00",
        "parameters": 7,
        "position": {"best_step": 3},
    }
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "split.json").write_text(json.dumps({"val": list(dataset.image_names)}))
    (folder / "predictions.json").write_text(json.dumps(rows))
    (folder / "metrics.jsonl").write_text('{"step": 1, "perf/images_per_second": 2.5}\n')
    return truth


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Runs `all`, which finds everything, and `half`, which finds every second object, and their ground truth."""
    base = tmp_path_factory.mktemp("compared")

    def compose_it(*overrides: str) -> DictConfig:
        register()
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return compose("config", list(overrides))

    truth = write_run(base / "all", compose_it, lambda i, a: True)
    write_run(base / "half", compose_it, lambda i, a: i % 2 == 0, "optimizer.lr=0.5")
    return base, truth


@pytest.fixture
def two(made: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Copies of both in the working folder; their ground truth."""
    for name in ("all", "half"):
        shutil.copytree(made[0] / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return copy.deepcopy(made[1])


def compare(*arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    status = cli.main(["compare", *arguments, "--resamples", "100"])
    said = capsys.readouterr()
    return status, said.out, said.err


def test_runs_that_differ_by_far_are_told_apart_and_one_from_itself_is_not(
    two: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    status, said, _ = compare("all", "half", "--no-pictures", capsys=capsys)
    assert status == 0
    assert "optimizer.lr: 0.001 -> 0.5" in said
    assert "training's chance is not in it" in said
    assert "seconds: 90.0 -> 90.0" in said
    assert "images a second: 2.5 -> 2.5" in said
    assert re.search(r"bbox/AP: B - A is -0\.\d+, .* can be told apart with 12 images; A is better\.", said)
    status, said, _ = compare("all", "all", "--no-pictures", capsys=capsys)
    assert status == 0
    assert (
        "bbox/AP: B - A is +0.0000, between +0.0000 and +0.0000 with 95% confidence: the runs cannot be told apart"
        in said
    )
    assert sorted(path.name for path in Path("comparisons").iterdir()) == ["all-all", "all-half"]


def test_the_page_needs_no_network_and_has_pictures_and_the_numbers_of_score(
    two: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    status, said, _ = compare("all", "half", "--out", "out", "--json", "--pictures", "2", capsys=capsys)
    assert status == 0
    content = json.loads(said)
    assert content == json.loads(Path("out/comparison.json").read_text())
    for side in ("a", "b"):
        run = {"a": "all", "b": "half"}[side]
        expected = score(two, json.loads(Path(run, "predictions.json").read_text()), "bbox")
        for name, numbers in content["metrics"].items():
            assert numbers[side] == (None if expected[name] != expected[name] else expected[name])
    assert content["config"] == {"optimizer.lr": [0.001, 0.5]}
    assert content["intervals"]["bbox/AP"]["told_apart"] is True
    page = Path("out/comparison.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 2
    assert page.count("<svg") == 2
    assert not re.search(r"https?://|<script|<link", page)
    assert 'name="viewport"' in page
    (first, *_) = content["images_that_differ_most"]
    assert re.search(r": bbox A \d found, 0 missed, 0 wrong; B \d found, [1-9] missed, 0 wrong", first)


def test_two_seeds_of_the_same_settings_are_not_told_apart_however_far_their_weights_are(
    two: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    for config in (Path("half/config.yaml"), Path("half/config_resolved.yaml")):
        if config.exists():
            config.write_text(
                re.sub(
                    r"^seed: 0$",
                    "seed: 1",
                    config.read_text().replace("lr: 0.5", "lr: 0.001").replace("\ntags: []\n", "\ntags: [other]\n"),
                    flags=re.M,
                )
            )
    status, said, _ = compare("all", "half", "--out", "out", "--json", "--no-pictures", capsys=capsys)
    content = json.loads(said)
    assert status == 0
    assert content["config"] == {"seed": [0, 1], "tags": [[], ["other"]]}
    assert content["seeds_alone"]
    assert not any(interval["told_apart"] for interval in content["intervals"].values())
    assert all("settings cannot be told apart" in verdict for verdict in content["verdicts"])
    assert "settings cannot be told apart" in Path("out/comparison.html").read_text()


def test_without_pictures_no_image_is_read(
    two: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from detlab.data.synthetic import Synthetic

    def refuse(*_: Any) -> None:
        raise AssertionError("an image was read")

    monkeypatch.setattr(Synthetic, "__getitem__", refuse)
    assert compare("all", "half", "--no-pictures", "--out", "out", capsys=capsys)[0] == 0
    assert "data:image" not in Path("out/comparison.html").read_text()
    with pytest.raises(AssertionError, match="an image was read"):
        compare_pictures()


def compare_pictures() -> None:
    from detlab.commands import compare as command

    command.main(["all", "half", "--resamples", "100", "--out", "other"])


def test_results_files_are_compared_on_a_ground_truth(two: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    Path("gt.json").write_text(json.dumps(two))
    for name in ("all", "half"):
        shutil.copy(Path(name, "predictions.json"), f"{name}.json")
    status, said, _ = compare("all.json", "half.json", "--ground-truth", "gt.json", "--json", capsys=capsys)
    assert status == 0
    content = json.loads(said)
    assert content["config"] is None
    assert content["metrics"]["bbox/AP"]["a"] == pytest.approx(1.0)
    assert Path("comparisons/all-half/comparison.html").is_file()


def test_names_from_files_are_escaped_in_the_page(two: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    truth = copy.deepcopy(two)
    for image in truth["images"]:
        image["file_name"] = "<script>alert(1)</script>\x1b[2J"
    truth["categories"] += [{"id": 99, "name": "<img src=x>\x1b[2J"}]
    Path("gt.json").write_text(json.dumps(truth))
    arguments = ("all/predictions.json", "half/predictions.json", "--ground-truth", "gt.json", "--out", "out")
    status, said, _ = compare(*arguments, capsys=capsys)
    assert status == 0
    page = Path("out/comparison.html").read_text()
    assert "<script" not in page
    assert "<img src=x" not in page
    assert "\x1b" not in page + said
    assert "&lt;img src=x&gt;\\x1b" in page


@pytest.mark.slow
def test_runs_on_other_images_are_refused_and_it_is_said_what_differs(
    two: dict[str, Any], tmp_path: Path, composed: Composed, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "more", composed, lambda i, a: True, "dataset.val_size=13")
    status, _, said = compare("all", "more", capsys=capsys)
    assert status == 2
    assert len(said.splitlines()) == 2
    assert "all has 12 images, more has 13; only one has" in said
    assert "detlab evaluate RUN" in said
    write_run(tmp_path / "seed", composed, lambda i, a: True, "dataset.seed=5")
    status, _, said = compare("all", "seed", capsys=capsys)
    assert status == 2
    assert "of the same names, but of other sizes or objects: they were not validated on the same data" in said
    assert len(said.splitlines()) == 2


def test_data_that_are_not_the_runs_any_more_are_refused(
    two: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, said = compare("all", "half", "dataset.seed=5", capsys=capsys)
    assert status == 2
    assert "all: was not scored on this data set: dataset.seed 0 -> 5." in said
    assert len(said.splitlines()) == 2


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda run: (run / "predictions.json").unlink(), "half: holds no predictions.json"),
        (lambda run: (run / "run.json").unlink(), "half: holds no run.json; it is no run's folder."),
        (lambda run: (run / "run.json").write_text("{}"), "half/run.json: damaged, or of an older detlab; it lacks"),
        (lambda run: (run / "run.json").write_text("{"), "half/run.json: not JSON at line 1"),
        (lambda run: (run / "config.yaml").unlink(), "half/config.yaml: cannot be read"),
        (
            lambda run: (run / "config.yaml").write_text("[1]"),
            "half/config.yaml: the configuration in it is no mapping",
        ),
        (lambda run: (run / "predictions.json").write_text('[{"image_id": 1, "bbox": 3}]'), "results: row 0"),
    ],
)
def test_a_folder_that_is_no_whole_run_is_named_with_what_it_lacks(
    damage: Callable[[Path], None], said: str, two: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    damage(Path("half"))
    status, _, error = compare("all", "half", "--no-pictures", capsys=capsys)
    assert status == 2
    assert said in error
    assert len(error.splitlines()) <= 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("all", "none"), "none: not a folder; give two runs' folders"),
        (("all", "half", "--sigmas", "0.1"), "--sigmas: belongs to --ground-truth"),
        (
            ("a.json", "b.json", "dataset.seed=1", "--ground-truth", "gt.json"),
            "dataset.seed=1: overrides are for two runs",
        ),
        (("a.json", "b.json", "--ground-truth", "none.json"), "none.json: cannot be read"),
        (("all", "half", "epochs=3"), "epochs: stays as the run had it"),
    ],
)
def test_a_mistake_is_told_in_a_line(
    arguments: tuple[str, ...], said: str, two: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, error = compare(*arguments, capsys=capsys)
    assert status == 2
    assert said in error


def test_files_that_are_in_the_way_are_replaced_only_when_asked(
    two: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("out").mkdir()
    Path("out/comparison.html").write_text("mine")
    status, _, said = compare("all", "half", "--out", "out", "--no-pictures", capsys=capsys)
    assert status == 2
    assert "holds comparison.html already" in said
    assert Path("out/comparison.html").read_text() == "mine"
    assert compare("all", "half", "--out", "out", "--no-pictures", "--overwrite", capsys=capsys)[0] == 0


@pytest.mark.parametrize("value", ["99", "1.5", "many"])
def test_too_few_resamples_are_refused(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["compare", "a", "b", "--resamples", value])
    assert caught.value.code == 2
    assert "number_from_100" in capsys.readouterr().err


@pytest.fixture
def seeds(two: dict[str, Any]) -> dict[str, Any]:
    """Two runs of A, which find all or nearly all, and two of B, which find a half; the ground truth."""
    for source, name, left_out in (("all", "a0", 0), ("all", "a1", 2), ("half", "b0", 0), ("half", "b1", 1)):
        shutil.copytree(source, Path("sweep") / name)
        rows = json.loads(Path(source, "predictions.json").read_text())
        Path("sweep", name, "predictions.json").write_text(json.dumps(rows[left_out:]))
        config = Path("sweep", name, "config.yaml")
        config.write_text(re.sub(r"^seed: 0$", f"seed: {name[1]}", config.read_text(), flags=re.M))
    return two


def test_settings_are_compared_over_their_seeds(seeds: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    status, said, _ = compare("sweep/a*", "sweep/b*", capsys=capsys)
    assert status == 0
    assert re.search(r"A  a1 +1 +0\.\d{4} +0\.\d{4}\n", said)
    assert "optimizer.lr: 0.001 -> 0.5" in said
    assert "differ by more than their seed" not in said
    assert re.search(r"bbox/AP: the mean of B's 2 runs less that of A's 2 is -0\.\d+, between ", said)
    content = json.loads(Path("comparisons/a_-b_/comparison.json").read_text())
    for side in "ab":
        for i in range(2):
            rows = json.loads(Path("sweep", f"{side}{i}", "predictions.json").read_text())
            assert content["intervals"]["bbox/AP"][side][i] == score(seeds, rows, "bbox")["bbox/AP"]
    page = Path("comparisons/a_-b_/comparison.html").read_text()
    assert page.count("<circle") == 8
    assert not re.search(r"https?://|<script|<link", page)


def test_a_group_of_other_settings_is_told(seeds: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree("sweep/b0", "sweep/a2")
    Path("sweep/a3").mkdir()
    shutil.copy("sweep/a0/run.json", "sweep/a3/run.json")  # not evaluated yet
    status, said, error = compare("sweep/a*", "sweep/b*", "--out", "out", "--json", capsys=capsys)
    assert status == 0
    assert len(json.loads(said)["intervals"]["bbox/AP"]["a"]) == 3
    assert "left out: sweep/a3: holds no predictions.json" in error
    status, said, _ = compare("sweep/a*", "sweep/b*", capsys=capsys)
    assert "A's runs differ by more than their seed (optimizer.lr)" in said


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("sweep/a*", "sweep/b0"), "B: sweep/b0 matches 1 run(s) with predictions"),
        (("sweep/x*", "sweep/b*"), "A: sweep/x* matches 0 run(s) with predictions"),
        (("sweep/*", "sweep/b*"), "both A and B match it"),
        (("sweep/a*", "sweep/b*", "--sigmas", "0.1"), "--sigmas: belongs to --ground-truth"),
    ],
)
def test_groups_that_cannot_be_compared_are_refused_in_a_line(
    seeds: dict[str, Any], arguments: tuple[str, ...], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, error = compare(*arguments, capsys=capsys)
    assert status == 2
    assert expected in error
    assert not Path("comparisons").exists()
