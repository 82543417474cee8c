"""Tables in Markdown, and what stands between the marks of a page."""

import pytest

from benchmarks.markdown import fill, marks, table


def test_a_page_gets_what_belongs_between_its_marks_and_keeps_the_rest():
    begin, end = marks("numbers")
    page = f"before\n{begin}old\n{end}after\n"
    filled = fill(page, marks("numbers"), table(("a", "b"), [["1", "2"]]))
    assert filled == f"before\n{begin}| a | b |\n| --- | --- |\n| 1 | 2 |\n{end}after\n"
    assert fill(filled, marks("numbers"), "old\n") == page
    with pytest.raises(ValueError):
        fill(page, marks("words"), "")
