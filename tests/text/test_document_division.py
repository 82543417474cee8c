"""Documents that look wrongly divided are warned of, where nobody said what bounds them."""

import logging
import re

import pytest

from modeling_treediff.cli.build_tree import read
from modeling_treediff.cli.options.text import Dataset
from modeling_treediff.text import Corpus, document_division
from modeling_treediff.text.document_division import CHECKED, watch_documents

ONE, SHORT = "is read as one document.*--documents lines", "half have less than 200 characters.*--documents"


@pytest.fixture
def warned(caplog, monkeypatch):
    """Return the warnings so far, and forget them: each is given once."""
    document_division.logger.warning_once.cache_clear()
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)

    def take():
        messages = list(caplog.messages)
        caplog.clear()
        return messages

    return take


LINES = [f"Line {number}: " + "words and words " * 20 for number in range(30)]
TEXTS = {
    "a document a line": ("\n".join(LINES), ONE),
    "a document a line, as Windows ends it": ("\r\n".join(LINES), ONE),
    "paragraphs of a novel": ("\n\n".join(["“Yes.”", "“No?”", "word " * 200] * 40), SHORT),
    "verses": ("\n\n".join(["A short line,\nand another one"] * 1200), SHORT),
    "documents": ("\n\n".join(LINES), None),
    "one line": (LINES[0], None),
    "more long ones than short ones": ("\n\n".join(["Short.", *LINES[:2]] * 20), None),
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_division_that_looks_wrong_is_warned_of_once(tmp_path, warned, name):
    text, message = TEXTS[name]
    file = tmp_path / "text.txt"
    file.write_text(text, newline="")
    for _ in range(2):
        list(read([str(file)], Dataset()))  # as a tree is built
    messages = warned()
    if message is None:
        assert not messages
    else:
        assert len(messages) == 1 and str(file) in messages[0] and re.search(message, messages[0])
    for bounds in ("blank-lines", "lines", "whole-file"):  # who says it knows it
        document_division.logger.warning_once.cache_clear()
        assert list(Corpus(file, document_bounds=bounds).documents()) and not warned()


def test_lines_of_a_folder_of_texts_are_warned_of_and_rows_are_not(tmp_path, warned):
    (tmp_path / "train.txt").write_text("Short.\n" * 50)
    list(Corpus(tmp_path).documents())
    assert "Of the first 50 documents" in warned()[0]
    (tmp_path / "train.txt").unlink()
    (tmp_path / "train.jsonl").write_text('{"text": "Short."}\n' * 50)
    for source in (tmp_path, tmp_path / "train.jsonl"):
        assert len(list(Corpus(source).documents())) == 50 and not warned()


def test_the_beginning_is_looked_at_and_never_held(warned):
    """So a stream is warned of too; and pieces of a document count as one."""
    documents = watch_documents(((number, "a") for number in range(10**9)), "stream")
    for _ in range(CHECKED):
        assert not warned()
        next(documents)
    assert "Of the first 1000 documents of stream" in warned()[0]
    pieces = [(number, "x" * 50) for number in range(10) for _ in range(10)]
    assert list(watch_documents(iter(pieces), "pieces")) == pieces and not warned()
    assert list(watch_documents(iter([(3, "a line\nand more")] * 2), "late")) and "one document" in warned()[0]
