"""Documents as tokens: each document's own, whatever the batches and pieces, in bounded memory."""

import numpy as np
import pytest
from helpers.conversations import BY_PREFIX
from helpers.processes import SAMPLE, run_python
from transformers import AutoTokenizer, ByT5Tokenizer

from modeling_treediff.text import (
    encode_documents,
    tokenize_documents,
    tokenize_pieces,
    tokenizer_fingerprint,
    tokenizing,
)
from modeling_treediff.text.tokenizing import cut_text, gather

TEXTS = ["Fellow citizens of the Senate", "", "and House of Representatives:", "é 漢 🙂"] * 3


@pytest.mark.parametrize("batch_characters", [1, 40, 2**20])
@pytest.mark.parametrize("kind", ["fast", "slow"])
def test_ids_are_those_of_each_document_alone(monkeypatch, batch_characters, kind):
    monkeypatch.setattr(tokenizing, "BATCH_CHARACTERS", batch_characters)
    tokenizer = AutoTokenizer.from_pretrained(SAMPLE) if kind == "fast" else ByT5Tokenizer()
    assert tokenizer.is_fast == (kind == "fast")
    alone = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    encoded = list(encode_documents(tokenizer, iter(TEXTS)))
    assert all(ids.dtype == np.int32 for ids in encoded)
    assert [ids.tolist() for ids in encoded] == alone
    ended = [token for ids in alone for token in (*ids, tokenizer.eos_token_id)]
    assert tokenize_documents(TEXTS, tokenizer).tolist() == ended
    for eos, expected in ((True, ended), (False, sum(alone, []))):
        pieces = list(tokenize_pieces(enumerate(TEXTS), tokenizer, eos, whole=True))
        assert [piece.document for piece in pieces] == list(range(len(TEXTS)))
        assert np.concatenate([piece.token_ids for piece in pieces]).tolist() == expected


def test_documents_are_read_as_they_are_needed(monkeypatch):
    monkeypatch.setattr(tokenizing, "BATCH_CHARACTERS", 100)
    read = []
    encoded = encode_documents(ByT5Tokenizer(), (read.append(text) or text for text in ["x" * 40] * 50))
    next(encoded)
    assert len(read) == 3
    assert len(list(encoded)) == 49 and len(read) == 50


def test_whole_documents_are_never_cut(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizing, "PIECE_CHARACTERS", 3)
    text = "unconstitutional, he said"
    [ids] = encode_documents(tokenizer, [text])
    assert ids.tolist() == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(list(tokenize_pieces([(0, text)], tokenizer))) > 5


@pytest.mark.parametrize("limit", [1, 5, 100])
def test_what_is_gathered_is_all_in_order_and_bounded(limit):
    items = ["a" * (number % 4) for number in range(30)]
    batches = list(gather(iter(items), limit, len))
    assert [item for batch in batches for item in batch] == items
    sizes = [sum(len(item) + 1 for item in batch) for batch in batches]
    assert all(limit <= size < limit + 4 for size in sizes[:-1]) and 0 < sizes[-1] < limit + 4
    assert not list(gather([], limit, len))


@pytest.mark.parametrize("length", [1, 2, 7, 30, 1000])
def test_cut_texts_lose_nothing_and_words_stay_whole(length):
    for text in ("", "a", "one two  three\n\n four" * 9, "x" * 50 + " y", " " * 40):
        pieces = cut_text(text, length)
        assert "".join(pieces) == text and all(0 < len(piece) <= length for piece in pieces if text)
        if length == 30:
            assert all(piece[0].isspace() for piece in pieces[1:]) or "x" in text


def test_long_documents_keep_their_tokens_when_cut(tokenizer, monkeypatch):
    documents = list(enumerate(["one two three " * 30 + "end", "x" * 100, "We the people of the United States " * 20]))
    whole = [piece.token_ids.tolist() for piece in tokenize_pieces(documents, tokenizer)]
    monkeypatch.setattr(tokenizing, "PIECE_CHARACTERS", 50)
    monkeypatch.setattr(tokenizing, "BATCH_CHARACTERS", 70)
    pieces = list(tokenize_pieces(documents, tokenizer))
    assert len(pieces) > 10
    for number, ids in enumerate(whole):
        own = [piece for piece in pieces if piece.document == number]
        assert [piece.offset for piece in own] == np.cumsum([0] + [len(piece.token_ids) for piece in own])[:-1].tolist()
        joined = np.concatenate([piece.token_ids for piece in own]).tolist()
        assert tokenizer.decode(joined) == tokenizer.decode(ids)
        assert joined == ids or number == 1  # a word longer than a piece is cut


def test_the_tokenizer_fingerprint_sees_what_changes_tokens(tokenizer, tmp_path, monkeypatch):
    before = tokenizer_fingerprint(tokenizer)
    tokenizer(["a", "b c"], padding=False, truncation=True, max_length=2)
    assert tokenizer_fingerprint(tokenizer) == before
    monkeypatch.setattr(tokenizer, "chat_template", BY_PREFIX)
    assert tokenizer_fingerprint(tokenizer) != before
    tokenizer.save_pretrained(tmp_path)
    text = (tmp_path / "tokenizer.json").read_text(encoding="utf-8")
    code = (
        "from transformers import AutoTokenizer; from modeling_treediff.text import tokenizer_fingerprint; import sys;"
        "print(tokenizer_fingerprint(AutoTokenizer.from_pretrained(sys.argv[1])))"
    )
    same = run_python(tmp_path, code=code).stdout.strip()
    assert same == tokenizer_fingerprint(tokenizer)
    (tmp_path / "tokenizer.json").write_text(text.replace('"add_prefix_space": false', '"add_prefix_space": true'))
    assert (tmp_path / "tokenizer.json").read_text() != text
    assert tokenizer_fingerprint(AutoTokenizer.from_pretrained(tmp_path)) != same


def test_reading_runs_ahead_by_a_bounded_amount_of_text(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizing, "PIECE_CHARACTERS", 100)
    monkeypatch.setattr(tokenizing, "BATCH_CHARACTERS", 1000)
    read = 0

    def documents():
        nonlocal read
        for number in range(2000):
            text = "some words " * (number % 30 + 1)
            read += len(text)
            yield number, text

    done = 0
    for piece in tokenize_pieces(documents(), tokenizer):
        done += len(tokenizer.decode(piece.token_ids, skip_special_tokens=True))
        assert read - done <= 1000 + 330
    assert read == done > 100_000
