"""Charts: places in the drawing are those that the numbers say, and names are no markup."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from detlab import charts

HOSTILE = "<script>&\x1b"


def drawn(chart: str) -> ElementTree.Element:
    """The chart's drawing; its markup is whole."""
    found = re.search(r"<svg .*</svg>", chart, re.S)
    assert found is not None
    return ElementTree.fromstring(found[0])


def every_chart() -> dict[str, str]:
    bins = [{"from": 0.0, "to": 0.5, "count": 0, "score": None, "precision": None},
            {"from": 0.5, "to": 1.0, "count": 4, "score": 0.75, "precision": 0.25}]  # fmt: skip
    return {
        "scatter": charts.scatter(HOSTILE, {HOSTILE: [(HOSTILE, 1.0, HOSTILE)], "b": [("x", 2.0, "c")]}, HOSTILE),
        "curves": charts.curves(HOSTILE, [(HOSTILE, HOSTILE, [(0, 0), (1, 1)]), ("b", "b", [(0, 1)])], HOSTILE),
        "bars": charts.bars(HOSTILE, [(HOSTILE, 1.0, HOSTILE)]),
        "reliability": charts.reliability(HOSTILE, bins, HOSTILE),
        "columns": charts.columns(HOSTILE, [1, 2], [0.0, 1.0, 2.0]),
        "distribution": charts.distribution(HOSTILE, [1, 2], [-1.0, 0.0, 1.0], (-0.5, 0.5)),
        "parallel": charts.parallel(HOSTILE, [HOSTILE, "b"], [(HOSTILE, HOSTILE, [HOSTILE, 1.0])]),
    }


@pytest.mark.parametrize("name", every_chart())
def test_names_of_strangers_stay_text_in_every_chart(name: str) -> None:
    chart = every_chart()[name]
    assert drawn(chart).findtext("title") == "<script>&\\x1b"
    assert "<script" not in chart
    assert "\x1b" not in chart


def test_curves_from_0_to_1_end_at_the_corners_and_the_faint_series_lies_behind() -> None:
    lines = [("a", "a", [(0.0, 1.0), (1.0, 0.0)]), ("others", "b", [(0.0, 0.0), (1.0, 1.0)])]
    chart = charts.curves("t", lines, "recall", faint="others", unit=True)
    paths = [path for path in drawn(chart).findall("path") if path.get("class") == "line"]
    left, right = charts.LEFT, charts.WIDTH - charts.RIGHT
    top, bottom = charts.TOP, charts.HEIGHT - charts.BELOW
    assert [path.get("d") for path in paths] == [
        f"M{left:.1f} {bottom:.1f}L{right:.1f} {top:.1f}",
        f"M{left:.1f} {top:.1f}L{right:.1f} {bottom:.1f}",
    ]
    assert [path.get("stroke") for path in paths] == [charts.FAINT, charts.ink(0)]


def test_bars_are_as_long_as_their_numbers_are_large() -> None:
    chart = drawn(charts.bars("t", [("a", 0.5, "0.5"), ("b", 1.0, "1"), ("c", 0.0, "0")]))
    half, whole, none = (float(bar.get("width", "")) for bar in chart.findall("rect"))
    assert half == pytest.approx(whole / 2)
    assert none == 1.0  # still to be seen
    assert charts.bars("t", [("a", 0.0, "0")]).count("<rect") == 1


def test_a_reliability_diagram_has_a_bar_for_each_bin_that_holds_something() -> None:
    chart = drawn(every_chart()["reliability"])
    (bar,) = chart.findall("g")
    assert bar.findtext("title") == "0.5 to 1: 4 detections, mean score 0.750, 0.250 right"
    (box,) = bar.findall("rect")
    assert float(box.get("height", "")) == pytest.approx(0.25 * (charts.HEIGHT - charts.TOP - charts.BELOW))


def test_columns_are_as_tall_as_their_numbers_and_say_where_nothing_was_measured() -> None:
    chart = drawn(charts.columns("t", [1, 4], [0.0, 0.5, 1.0]))
    quarter, whole = (float(bar.get("height", "")) for bar in chart.findall("rect"))
    assert quarter == pytest.approx(whole / 4, abs=0.1)  # places are told to a tenth of a pixel
    assert [bar.findtext("title") for bar in chart.findall("rect")] == ["0 to 0.5: 1", "0.5 to 1: 4"]
    assert "t: none" in charts.columns("t", [], [])
