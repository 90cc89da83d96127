"""Pages: what strangers wrote stays text, nothing is loaded, columns of numbers are told apart."""

from __future__ import annotations

import re

from detlab import pages
from detlab.pages import Html, matrix, number, page, pictures, table, text

HOSTILE = '</title><script>alert(1)</script>" onload="x\x1b[31m\ud800'


def test_what_is_no_markup_is_escaped_and_its_control_characters_are_told() -> None:
    assert text("<b>\x1b") == "&lt;b&gt;\\x1b"
    assert text(None) == "null"
    assert text(text("a & b")) == "a &amp; b"
    assert text(Html("<b>a</b>")) == "<b>a</b>"


def test_no_part_of_a_page_lets_a_strangers_text_become_markup() -> None:
    parts = [
        table([HOSTILE, "b"], [[HOSTILE, HOSTILE]], sortable=True, kind="names"),
        matrix(HOSTILE, [HOSTILE], [HOSTILE], [[1]]),
        pictures(HOSTILE, [(HOSTILE, HOSTILE)], anchor=HOSTILE),
    ]
    shown = page(HOSTILE, parts)
    assert "<script" not in shown
    assert 'onload="' not in shown
    assert shown.count("</title>") == 1
    assert "\x1b" not in shown
    shown.encode()


def test_a_page_forbids_itself_to_load_anything_and_scripts_where_it_has_none() -> None:
    plain, sorting = page("a", ["<p>b</p>", ""]), page("a", [], scripts=(pages.SORTING,))
    assert not re.search(r"https?://|<link|@import|<script", plain)
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'\"" in plain
    assert "script-src 'unsafe-inline'" in sorting
    assert sorting.count("<script>") == 1
    assert 'name="viewport"' in plain


def test_columns_of_numbers_stand_to_the_right_and_what_is_absent_is_one() -> None:
    shown = table(["a", "b"], [["x", "0.5"], ["1", pages.ABSENT], ["2", "5%"]])
    assert '<th scope="col">a</th><th scope="col" class="n">b</th>' in shown
    assert '<td class="n">0.5</td>' in shown
    assert "<td>1</td>" in shown
    assert 'class="n"' not in table(["a"], [])


def test_a_name_that_may_be_cut_comes_up_whole_under_the_pointer() -> None:
    assert '<td title="a &lt; b">a &lt; b</td>' in table(["name"], [["a < b"]], kind="names")


def test_a_matrix_is_darker_where_more_of_a_row_lies_and_empty_where_nothing_can_be() -> None:
    shown = matrix("object", ["dog", "nothing"], ["dog", "not found"], [[3, 1], [0, None]])
    assert re.findall(r"/ (\d+)%\)\">(\d+)<", shown) == [("45", "3"), ("15", "1"), ("0", "0")]
    assert shown.endswith('<td class="n"></td></tr>\n</tbody></table></div>')


def test_numbers_that_nobody_measured_are_dashes() -> None:
    assert [number(value) for value in (None, float("nan"), float("inf"), 0.12345)] == ["–", "–", "–", "0.123"]
    assert number(0.5, 1, "+") == "+0.5"
