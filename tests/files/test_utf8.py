"""Bytes that are not UTF-8 are named, wherever a text comes from."""

import os

import pytest
from helpers.eight_words import make_tokenizer
from helpers.options import parse, refusal

from modeling_treediff.cli.generate import starting_nodes
from modeling_treediff.files.utf8 import check_utf8
from modeling_treediff.text import tokenize_documents

LATIN = os.fsdecode(b"caf\xe9")  # as Python has a command line's bytes
LONG = "a" * 10**6 + "\ud800" + "b" * 10**6


@pytest.mark.parametrize("text", ["", "café 漢 🙂", "\ufeff\x00\x1b"])
def test_all_of_unicode_is_taken(text):
    check_utf8(text)


@pytest.mark.parametrize(("text", "place"), [(LATIN, 4), (LONG, 10**6 + 1), ("\udfff", 1)])
def test_what_is_none_is_shown_with_its_place(text, place):
    with pytest.raises(ValueError, match=rf"^The text '.{{1,60}}' is not UTF-8 \(character {place}\): set the"):
        check_utf8(text)


@pytest.mark.parametrize(
    "line",
    [
        ["generate", "model", "--prompt", LATIN],
        ["generate", "model", f"--infill={LATIN}_"],
        ["generate", "model", "--bad-words", "war", LATIN],
        ["push", "folder", "name", "--message", LATIN],
        ["train", "--license", LATIN],
        ["inspect-tree", "sotu-8k", "--search", LATIN],
    ],
)
def test_texts_of_a_command_line_are_checked(line):
    assert r"caf\udce9" in (said := refusal(*line)) and "is not UTF-8" in said and said.count("\n") == 1


@pytest.mark.parametrize(
    "line",
    [["evaluate", "model", LATIN], ["generate", LATIN, "--animation", f"{LATIN}.html"], ["train", "--text", LATIN]],
)
def test_names_of_files_may_be_any_bytes(line):
    parse(*line)


def test_texts_of_the_page_and_of_python_are_checked():
    tokenizer = make_tokenizer()
    for refused in (
        lambda: starting_nodes(tokenizer, 8, LATIN, None),
        lambda: starting_nodes(tokenizer, 8, None, f"{LATIN} _"),
        lambda: tokenize_documents(["a b", LATIN], tokenizer),
    ):
        with pytest.raises(ValueError, match="is not UTF-8"):
            refused()
