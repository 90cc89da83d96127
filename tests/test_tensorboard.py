"""What a real TensorBoard server tells of a sweep, asked over HTTP as its page asks."""

from __future__ import annotations

import html
import io
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode
from urllib.request import ProxyHandler, Request, build_opener

import numpy as np
import pytest
from conftest import TINY, lines_of
from PIL import Image

pytestmark = pytest.mark.slow

RATES = (0.0005, 0.001, 0.002)
# A server on this machine is asked directly, whatever proxy the environment names.
DIRECT = build_opener(ProxyHandler({}))


@dataclass(frozen=True)
class Board:
    """A TensorBoard server, and the folders that it shows by the names that its runs must have."""

    address: str
    runs: dict[str, Path]

    def fetch(self, route: str, **query: Any) -> bytes:
        with DIRECT.open(f"{self.address}{route}?{urlencode(query)}", timeout=30) as answer:
            return answer.read()

    def get(self, route: str, **query: Any) -> Any:
        return json.loads(self.fetch(route, **query))

    def post(self, route: str, content: dict[str, Any]) -> Any:
        data, kind = json.dumps(content).encode(), {"Content-Type": "application/json"}
        with DIRECT.open(Request(self.address + route, data, kind), timeout=30) as answer:
            return json.loads(answer.read())

    def has_read_all(self) -> bool:
        """Whether the server, which reads files while it answers, holds the last record of every run."""
        texts, groups = self.get("data/plugin/text/tags"), self.session_groups()
        return texts.keys() == self.runs.keys() and len(groups) == len(self.runs)

    def session_groups(self) -> list[dict[str, Any]]:
        everything = {"startIndex": 0, "sliceSize": 100, "allowedStatuses": ["STATUS_SUCCESS"]}
        return self.post("data/plugin/hparams/session_groups", everything)["sessionGroups"]


def wait_for(condition: Callable[[], object], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not so after {seconds} s"
        time.sleep(0.2)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder in which a sweep of three rates has run."""
    folder = tmp_path_factory.mktemp("sweep")
    rates = f"optimizer.lr={','.join(map(str, RATES))}"
    command = [sys.executable, "-m", "detlab.run", "-m", rates, *TINY]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def board(sweep: Path) -> Iterator[Board]:
    """TensorBoard as the README starts it, on a free port."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", "outputs", "--host", "127.0.0.1", "--port", "0"]
    said = sweep / "tensorboard.log"
    with said.open("wb") as log:
        # TMPDIR: it leaves a note for other servers there.
        server = subprocess.Popen(
            command, cwd=sweep, env={**os.environ, "TMPDIR": str(sweep)}, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        wait_for(lambda: server.poll() is not None or "Press CTRL+C" in said.read_text(), 60)
        if server.poll() is not None:
            pytest.skip(f"TensorBoard does not start here: {said.read_text().splitlines()[-1:]}")
        address = re.findall(r"http://127\.0\.0\.1:\d+/", said.read_text())[0]
        outputs = sweep / "outputs"
        runs = {str(path.parent.relative_to(outputs)): path.parent for path in outputs.rglob("metrics.jsonl")}
        board = Board(address, runs)
        wait_for(board.has_read_all, 60)
        yield board
    finally:
        server.terminate()
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def test_each_job_of_a_sweep_is_one_run_named_by_what_it_varies(board: Board) -> None:
    assert sorted(board.get("data/runs")) == sorted(board.runs)
    assert sorted(Path(run).name for run in board.runs) == [f"{i}-optimizer.lr={rate}" for i, rate in enumerate(RATES)]


def test_every_number_of_metrics_jsonl_is_served_under_its_tag_and_step(board: Board) -> None:
    tags = board.get("data/plugin/scalars/tags")
    for run, folder in board.runs.items():
        # Floats come back as float32, which is what an event file holds; what is not finite is in neither.
        written: dict[str, list[tuple[int, float]]] = {}
        for line in lines_of(folder, perf=True):
            for tag, value in line.items():
                if tag not in ("step", "epoch") and value is not None:
                    written.setdefault(tag, []).append((line["step"], float(np.float32(value))))
        assert tags[run].keys() == written.keys()
        assert {"train/loss", "train/lr", "perf/step_time", "val/bbox/AP", "val/segm/AP50"} <= written.keys()
        for tag, points in written.items():
            served = board.get("data/plugin/scalars/scalars", run=run, tag=tag)
            assert [(step, value) for _, step, value in served] == points, tag


def test_the_rates_that_were_asked_for_are_those_in_the_curves(board: Board) -> None:
    for run in board.runs:
        asked = float(run.rpartition("=")[2])
        served = [value for _, _, value in board.get("data/plugin/scalars/scalars", run=run, tag="train/lr")]
        assert 0 < max(served) <= asked * (1 + 1e-6)


def test_the_picture_of_an_evaluation_can_be_fetched_and_decoded(board: Board) -> None:
    tags = board.get("data/plugin/images/tags")
    for run in board.runs:
        assert tags[run].keys() == {"val/predictions"}
        (listed,) = board.get("data/plugin/images/images", run=run, tag="val/predictions", sample=0)
        assert listed["step"] == 4
        data = board.fetch("data/plugin/images/individualImage", **dict(parse_qsl(listed["query"])))
        picture = Image.open(io.BytesIO(data))
        assert min(picture.size) >= 72
        colours = picture.convert("RGB").getcolors(picture.width * picture.height)
        assert colours is not None
        assert len(colours) > 100


def test_the_config_of_each_run_is_served_as_text(board: Board) -> None:
    tags = board.get("data/plugin/text/tags")
    for run, folder in board.runs.items():
        # torch's writer adds to the tag of a text; what detlab calls it comes first.
        (tag,) = tags[run]
        assert tag.partition("/")[0] == "config"
        (served,) = board.get("data/plugin/text/text", run=run, tag=tag)
        config = (folder / "config.yaml").read_text()
        assert f"lr: {run.rpartition('=')[2]}\n" in config
        # The server makes HTML of it: a table of one cell, set as code.
        code = re.search(r"<pre><code>(.*)</code></pre>", served["text"], re.DOTALL)
        assert code is not None
        assert html.unescape(code[1]).strip() == config.strip()


def test_hparams_compares_the_runs_by_their_rate_and_their_final_numbers(board: Board) -> None:
    experiment = board.post("data/plugin/hparams/experiment", {})
    types = {info["name"]: info["type"] for info in experiment["hparamInfos"]}
    assert (types["optimizer.lr"], types["model"]) == ("DATA_TYPE_FLOAT64", "DATA_TYPE_STRING")
    assert "val/bbox/AP" in {info["name"]["tag"] for info in experiment["metricInfos"]}
    assert [info["name"] for info in experiment["hparamInfos"] if info["differs"]] == ["optimizer.lr"]
    seen = []
    for group in board.session_groups():
        (session,) = group["sessions"]
        assert session["status"] == "STATUS_SUCCESS"
        seen.append((session["name"], group["hparams"]["optimizer.lr"]))
        values = {value["name"]["tag"]: value["value"] for value in session["metricValues"]}
        last = lines_of(board.runs[session["name"]])[-1]
        final = {tag: value for tag, value in last.items() if tag.startswith("val/") and value is not None}
        assert {"val/bbox/AP", "val/segm/AP"} <= final.keys()
        assert {tag: values[tag] for tag in final} == {tag: float(np.float32(value)) for tag, value in final.items()}
    assert sorted(seen) == [(run, float(run.rpartition("=")[2])) for run in sorted(board.runs)]
