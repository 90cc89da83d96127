"""`detlab report`: from run folders, whole and damaged, to a page, a Markdown and a CSV."""

from __future__ import annotations

import csv
import json
import re
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import runs

from detlab import cli
from detlab.locks import alone_in

HOSTILE = "<script>alert(1)</script>\x1b[2J|"


@pytest.fixture(autouse=True)
def _paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.path", sys.path[:])


def write_run(
    folder: Path, *overrides: str, values: tuple[float | None, ...] = (), state: str = "done", **more: Any
) -> Path:
    """A run's folder of these evaluations, in the words of the writer and the records."""
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "overrides.yaml").write_text(json.dumps(list(overrides)))
    lines: list[dict[str, Any]] = []
    for i, value in enumerate(values):
        lines.append({"step": i + 1, "epoch": i, "train/loss": 2.0 / (i + 1), "perf/images_per_second": 1.5 + i})
        lines.append({"step": i + 1, "epoch": i, "val/bbox/AP": value, "val/bbox/APl": None})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "config.yaml").write_text("objective: bbox/AP\nseed: 0\noptimizer:\n  lr: 0.001\n")
    record = {
        "overrides": list(overrides), "choices": {"model": "maskrcnn"}, "state": state,
        "started": "2026-11-25T10:00:00+00:00", "ended": "2026-11-25T10:01:30+00:00",
        "code": [{"folder": "/x", "commit": "0123456789abcdef", "untracked": [], "patch": "code-0.patch"}],
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps({**record, **more}))
    return folder


def reported(folder: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert cli.main(["report", str(folder), *arguments]) == 0
    return capsys.readouterr().out


def rows_of(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "report.csv").open(newline="", encoding="utf-8") as file:
        return {row["run"]: row for row in csv.DictReader(file)}


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Two rates by two seeds, a rate with one seed, and one that failed."""
    folder = tmp_path / "10-00-00-sweep"
    third = 1 / 3
    for number, (lr, seed, values) in enumerate(
        [("0.001", 0, (0.1, third)), ("0.001", 1, (0.2, 0.3)), ("0.01", 0, (0.5, 0.4)), ("0.01", 1, (0.1, 0.7)), ("0.1", 0, (.05,))]
    ):  # fmt: skip
        write_run(folder / f"{number}-lr={lr}_seed={seed}", f"optimizer.lr={lr}", f"seed={seed}", values=values)
    write_run(
        folder / "10-lr=9_seed=0", "optimizer.lr=9", "seed=0", state="failed", why="non-finite gradient in step 2"
    )
    return folder


def test_the_numbers_of_the_csv_are_those_of_the_runs_bit_by_bit(
    sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reported(sweep, capsys)
    rows = rows_of(sweep)
    assert len(rows) == 6
    for name, row in rows.items():
        lines = [json.loads(line) for line in (sweep / name / "metrics.jsonl").read_text().splitlines()]
        scored = [line for line in lines if "val/bbox/AP" in line]
        if not scored:
            assert row["best/val/bbox/AP"] == row["last/val/bbox/AP"] == ""
            continue
        best = max(scored, key=lambda line: line["val/bbox/AP"])
        assert row["best/val/bbox/AP"] == repr(best["val/bbox/AP"])
        assert row["best_step"] == str(best["step"])
        assert row["last/val/bbox/AP"] == repr(scored[-1]["val/bbox/AP"])
        assert row["last/val/bbox/APl"] == ""
        assert (row["seconds"], row["commit"]) == ("90.0", "0123456789+")


def test_the_best_run_is_named_with_a_command_that_a_shell_reads(
    sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(sweep / "11-x", "optimizer.lr=0.01", "dataset.classes=[a b]", "seed=7", values=(0.9,))
    assert "best: 11-x  bbox/AP 0.9" in reported(sweep, capsys)
    page = (sweep / "report.html").read_text()
    assert "python -m detlab.run optimizer.lr=0.01 &#x27;dataset.classes=[a b]&#x27; seed=7" in page


def test_runs_equal_but_for_their_seed_are_averaged_and_one_alone_has_no_spread(
    sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reported(sweep, capsys)
    said = (sweep / "report.md").read_text()
    spread = f"{statistics.stdev([0.5, 0.7]):.4g}"
    assert [line for line in said.splitlines() if line.startswith(("| 0.0", "| 0.1", "| 9"))] == [
        f"| 0.01 | 2 | 0.6 | {spread} |",
        f"| 0.001 | 2 | 0.3167 | {statistics.stdev([1 / 3, 0.3]):.4g} |",
        "| 0.1 | 1 | 0.05 | – |",
    ]
    assert "nothing is known about the spread" in (sweep / "report.html").read_text()


def test_a_run_that_was_resumed_is_no_setting_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "0", "optimizer.lr=0.1", "seed=0", values=(0.1,))
    write_run(tmp_path / "1", "optimizer.lr=0.1", "seed=1", "resume=1", "resume_anyway=true", values=(0.3,))
    write_run(tmp_path / "2", "optimizer.lr=0.2", "seed=0", values=(0.2,))
    reported(tmp_path, capsys)
    said = (tmp_path / "report.md").read_text()
    assert "resume" not in said.partition("| run |")[2]
    assert "| 0.1 | 2 | 0.2 |" in said


def test_runs_that_are_damaged_unfinished_or_failed_are_named_and_hide_no_other(
    sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(sweep / "a-cut", "seed=3", values=(0.2, 0.3))
    with (sweep / "a-cut" / "metrics.jsonl").open("a") as file:
        file.write('no json\n{"step": 9, "val/bbox/AP": 0.99')
    write_run(sweep / "b-running", "seed=4", values=(0.6,), state="running")
    broken = write_run(sweep / "c-broken", "seed=5", values=(0.2,))
    (broken / "run.json").write_text('{"state": ')
    (broken / "config.yaml").write_bytes(b"\xff\xfe: [")
    early = write_run(sweep / "d-early", "seed=6")
    (early / "detlab.log").write_text("10:00:00  dataset.root: gone\n")
    (early / "run.json").unlink()
    told = write_run(sweep / "e-told", "seed=7")
    (told / "run.json").unlink()
    (told / "failed.json").write_text(json.dumps({"why": "dataset.root: no such folder", "overrides": ["seed=8"]}))
    said = reported(sweep, capsys)
    assert said.splitlines()[0] == "11 runs: 6 done, 1 running, 2 failed, 1 damaged, 1 not begun."
    for line in (
        "failed: 10-lr=9_seed=0: non-finite gradient in step 2",
        "done: a-cut: 1 line(s) of metrics.jsonl cannot be read",
        "damaged: c-broken: run.json cannot be read",
        "not begun: d-early: no reason is recorded; its log ends with: 10:00:00 dataset.root: gone",
        "failed: e-told: dataset.root: no such folder",
    ):
        assert line in said
    rows = rows_of(sweep)
    assert rows["a-cut"]["last/val/bbox/AP"] == "0.3"
    assert rows["b-running"]["best/val/bbox/AP"] == "0.6"
    assert rows["e-told"]["override/seed"] == "8"
    assert rows["d-early"]["override/seed"] == "6"


def test_what_a_stranger_wrote_stays_text_everywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "sweep"
    write_run(folder / "<b>0", f"name={HOSTILE}", f"model={HOSTILE}", "seed=0", values=(0.1, 0.2))
    write_run(folder / "1", "model==cmd()", "seed=1", values=(0.3, 0.2))
    write_run(folder / "2", "seed=2", state="failed", why=HOSTILE)
    said = reported(folder, capsys)
    page = (folder / "report.html").read_text()
    assert "\x1b" not in said
    assert page.count("<script") == 1
    assert "<b>0" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "<script" not in (folder / "report.md").read_text()
    assert rows_of(folder)["1"]["override/model"] == "'=cmd()"


def test_the_page_needs_nothing_else_and_its_charts_have_titles(
    sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = sweep.parent / "elsewhere"
    assert reported(sweep, capsys, f"--out={out}").splitlines()[-1] == f"{out}/report.html"
    assert not (sweep / "report.html").exists()
    page = (out / "report.html").read_text()
    assert not re.search(r"https?://|<link|@import|src=\"(?!data:)", page)
    titles = re.findall(r"<svg [^>]*><title>([^<]+)</title>", page)
    assert titles == [
        "bbox/AP by optimizer.lr", "bbox/AP by seed", "bbox/AP over the steps",
        "training loss over the steps", "parallel coordinates",
    ]  # fmt: skip
    assert "optimizer.lr (logarithmic)" in page


def test_json_gives_the_rows_and_writes_nothing(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = json.loads(reported(sweep, capsys, "--json"))
    assert rows[0]["best/val/bbox/AP"] == 1 / 3
    assert rows[-1]["why"] == "non-finite gradient in step 2"
    assert not (sweep / "report.html").exists()


def test_runs_without_an_evaluation_are_reported_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "sweep" / "0", "seed=0", state="running")
    assert reported(tmp_path / "sweep", capsys).startswith("1 runs: 1 running.")
    assert "No run has been evaluated yet" in (tmp_path / "sweep" / "report.html").read_text()


def test_a_run_that_was_killed_is_no_running_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "sweep" / "0", "seed=0", state="running")
    with alone_in(run):
        assert reported(tmp_path / "sweep", capsys).startswith("1 runs: 1 running.")
    assert reported(tmp_path / "sweep", capsys).startswith("1 runs: 1 cut off.")
    assert reported(tmp_path / "sweep", capsys).startswith("1 runs: 1 cut off.")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["gone"], "gone: no such folder"),
        (["empty"], "empty: no run below it"),
        (["sweep", "--metric=segm/AP"], "--metric: no run has 'segm/AP'; there are bbox/AP, bbox/APl."),
        (["sweep", "--out=file"], "--out: file is a file"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("file").touch()
    write_run(Path("sweep/0"), "seed=0", values=(0.1,))
    assert cli.main(["report", *arguments]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280], ids=["phone", "desktop"])
def test_chromium_shows_a_real_run_s_page_without_an_error(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, capsys: pytest.CaptureFixture[str], width: int
) -> None:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium here")
    run = runs.mask_rcnn(tmp_path_factory.getbasetemp())
    reported(run, capsys, f"--out={tmp_path}")
    page = (tmp_path / "report.html").read_text()
    assert "data:image/jpeg;base64," in page
    command = [
        chromium, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", f"--window-size={width},900",
        f"--user-data-dir={tmp_path}/profile", "--dump-dom", f"file://{tmp_path}/report.html",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert "CONSOLE" not in done.stderr
    assert "Best run" in done.stdout
