"""The page of errors where there are very many classes, and where there is nothing to judge."""

from __future__ import annotations

import re
from typing import Any

from detlab.analysis.errors import KINDS
from detlab.analysis.errors_page import MOST_CLASSES, MOST_ROWS, page


def record(count: int) -> dict[str, Any]:
    """What errors.json holds for `count` classes, of which each has a higher AP50 than the one before; the last has no object."""
    names = [f"class-{k}" for k in range(count)]
    counts = [[0] * (count + 1) for _ in range(count + 1)]
    counts[2][3], counts[4][count], counts[count][5], counts[1][1] = 9, 7, 8, 50
    kinds = {kind: {"count": 1, "AP50": 0.5, "gain": 0.25 * (kind == "both")} for kind in KINDS}
    nothing = {"threshold": None, "precision": None, "recall": None, "f1": None}
    return {
        "errors": {"bbox": {"AP50": 0.25, "kinds": kinds, "all": 0.75}},
        "thresholds": {"bbox": dict.fromkeys(names, nothing)},
        "precision": 0.9,
        "calibration": {"bbox": {"error": None, "bins": []}},
        "confusion": {"bbox": {"classes": [*names, "background"], "counts": counts}},
        "curves": {"bbox": {name: None if k == count - 1 else [k / count] * 101 for k, name in enumerate(names)}},
        "worst": {"iou_type": "bbox", "images": []},
    }


def shown(count: int, label_errors: dict[str, Any] | None = None) -> str:
    return page("t", "s", record(count), label_errors or {}, {}, {})


def test_of_very_many_classes_the_largest_confusions_stand_in_place_of_the_matrix() -> None:
    many, few = shown(MOST_CLASSES + 1), shown(MOST_CLASSES)
    assert 'class="matrix"' in few
    assert 'class="matrix"' not in many
    rows = re.findall(r"<tr>(?:<td>([^<]*)</td>){2}<td class=\"n\">(\d)</td></tr>", many)
    assert rows == [("class-3", "9"), ("class-5", "8"), ("background", "7")]
    assert "The 3 most frequent of 25 classes" in many


def test_of_many_curves_those_of_the_lowest_ap50_are_coloured() -> None:
    assert '<li><i style="background:#888888"></i>the other 23</li>' in shown(30)
    assert re.findall(r"</i>(class-\d+)</li>", shown(30)) == [f"class-{k}" for k in range(6)]
    assert "the other" not in shown(7)


def test_what_was_not_measured_is_a_dash_and_gains_are_told_in_words() -> None:
    text = shown(8)
    assert "AP50 is 0.250, and 0.750 with all errors mended. Most would be gained from the kind “both”: +0.250." in text
    assert "lowest with a precision of 0.9" in text
    assert "<td>class-7</td>" + '<td class="n">–</td>' * 5 in text
    assert "calibration error of the scores is –" in text
    assert "Reliability" not in text


def test_a_long_list_of_label_errors_is_cut_and_says_so() -> None:
    row = {"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "review": "not annotated", "score": 0.5}
    told = {"images": [{"id": 1}], "categories": [{"id": 1, "name": "dog"}], "annotations": [row] * (MOST_ROWS + 1)}
    text = shown(8, told)
    assert text.count("found, but not annotated</td>") == MOST_ROWS
    assert f"{MOST_ROWS + 1} in all, here the first {MOST_ROWS}" in text
    assert "href=" not in text


def test_without_boxes_and_masks_there_is_nothing_to_judge() -> None:
    empty = {key: {} if isinstance(value, dict) else None for key, value in record(8).items()}
    text = page("t", "s", {**empty, "worst": {"iou_type": None, "images": []}}, {}, {}, {})
    assert "there are neither boxes nor masks to be judged" in text
    assert "<h2>" not in text
