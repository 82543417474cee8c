"""What is shown of a tree."""

from helpers.options import parse, refusal


def test_words_to_search_may_begin_with_a_space():
    _, _, _, shown = parse("inspect-tree", "my_tree", "--search", " government", "#7")
    assert shown.search == [" government", "#7"]


def test_nothing_is_counted_below_none():
    assert "must not be negative" in refusal("inspect-tree", "my_tree", "--words", "-1")
    assert parse("inspect-tree", "my_tree", "--words", "0")
