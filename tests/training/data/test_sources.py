"""Corpora as training takes them: cached or streamed, packed or as conversations, with held-out parts."""

import copy
import json

import numpy as np
import pytest
from helpers.processes import run_python
from test_chat import BY_PREFIX, CONVERSATION
from transformers import AutoTokenizer

from modeling_treediff.text import Corpus, TokenWindows, tokenize_documents
from modeling_treediff.text.tokenizing import cut_text, tokenize_pieces, tokenizer_fingerprint
from modeling_treediff.training import DataOptions, StreamedWindows, open_training_data, sources
from modeling_treediff.training.data.chat import NOT_FOUND

TEXTS = [f"Article {number}. The Congress shall have power {'and duty ' * (number % 5)}." for number in range(40)]


@pytest.fixture
def corpus(tmp_path):
    (tmp_path / "text.txt").write_text("\n\n".join(TEXTS))
    return Corpus(tmp_path / "text.txt")


@pytest.fixture
def options(tmp_path):
    def make(length=16, **changes):
        return DataOptions(length, **({"hold_out_every": 5, "cache_folder": tmp_path / "cache"} | changes))

    return make


def rows(texts, tokenizer, length=16):
    row = tokenize_documents(texts, tokenizer)
    return row[: len(row) // length * length].reshape(-1, length)


def held_out_split():
    held_out = TEXTS[4::5]
    return [text for text in TEXTS if text not in held_out], held_out


def test_cached_windows_are_the_packed_documents(corpus, tokenizer, options):
    training, validation = open_training_data(corpus, tokenizer, options())
    for windows, texts in zip((training, validation), held_out_split(), strict=True):
        assert isinstance(windows, TokenWindows) and isinstance(windows.input_ids, np.memmap)
        assert np.array_equal(windows.input_ids, rows(texts, tokenizer)) and windows.columns.keys() == {"input_ids"}
    whole, other = open_training_data(corpus, tokenizer, options(), validation=corpus)
    assert np.array_equal(whole.input_ids, rows(TEXTS, tokenizer)) and whole.fingerprint == other.fingerprint
    assert len({training.fingerprint, validation.fingerprint, whole.fingerprint}) == 3
    assert open_training_data(corpus, tokenizer, options(8))[0].fingerprint != training.fingerprint


def test_a_second_run_does_not_tokenise_and_a_changed_text_does(corpus, tokenizer, options, monkeypatch, tmp_path):
    calls = []

    def counted(documents, tokenizer):
        calls.append(1)
        return tokenize_pieces(documents, tokenizer)

    monkeypatch.setattr(sources, "tokenize_pieces", counted)

    def calls_for(changed=corpus, **changes):
        before = len(calls)
        open_training_data(changed, changes.pop("tokenizer", tokenizer), options(**changes))
        return len(calls) - before

    assert calls_for() == 1 and calls_for() == 0
    assert calls_for(length=8) == 0  # packed tokens serve all lengths
    assert calls_for(separate_documents=True) == 1 and calls_for(separate_documents=True) == 0
    assert calls_for(hold_out_every=4) == 1
    moved = tmp_path / "moved.txt"
    moved.write_bytes(corpus.source.read_bytes())
    assert calls_for(Corpus(moved)) == 0  # the content counts, not the name
    moved.write_text(corpus.source.read_text().replace("power", "POWER"))  # as long as before
    assert calls_for(Corpus(moved)) == 1


def test_documents_can_be_kept_apart(corpus, tokenizer, options):
    for streaming in (False, True):
        training, validation = open_training_data(
            corpus, tokenizer, options(separate_documents=True, streaming=streaming)
        )
        items = training.dataset(0, 10, 0)
        some = list(items) if streaming else [items[index] for index in range(10)]
        for window in [*some, {"input_ids": validation.input_ids[0], "segment_ids": validation.segment_ids[0]}]:
            new = np.diff(window["segment_ids"].astype(int)) != 0
            assert np.array_equal(new, window["input_ids"][:-1] == tokenizer.eos_token_id)


def test_streamed_and_cached_data_are_of_the_same_documents(corpus, tokenizer, options):
    training, validation = open_training_data(corpus, tokenizer, options())
    stream, streamed_validation = open_training_data(corpus, tokenizer, options(streaming=True))
    assert isinstance(stream, StreamedWindows)
    assert np.array_equal(validation.input_ids, streamed_validation.input_ids)
    windows = stream.windows_from((0, 0, 0))
    assert all(np.array_equal(next(windows)["input_ids"], row) for row in training.input_ids)
    _, whole = open_training_data(corpus, tokenizer, options(streaming=True), validation=corpus)
    assert np.array_equal(whole.input_ids, rows(TEXTS, tokenizer))


def test_the_held_out_part_of_a_stream_is_bounded(corpus, tokenizer, options, monkeypatch):
    monkeypatch.setattr(sources, "STREAMED_HELD_OUT_WINDOWS", 3)
    _, validation = open_training_data(corpus, tokenizer, options(streaming=True))
    assert np.array_equal(validation.input_ids, rows(held_out_split()[1], tokenizer)[:3])


def test_answers_that_merge_with_their_prompt_are_dropped(tmp_path, tokenizer, options, monkeypatch, caplog):
    """The generation prompt ends in a space, which is one token with the word after it, if a letter follows."""
    by_space = BY_PREFIX.replace("[assistant]{% endif %}", "[assistant] {% endif %}")
    monkeypatch.setattr(tokenizer, "chat_template", by_space)
    file = tmp_path / "mixed.jsonl"
    merged, kept = ({"prompt": "Who?", "completion": text} for text in ("The President.", "\n\n"))
    tokens = [tokenizer.encode(f"[assistant] {row['completion']}") for row in (merged, kept)]
    prompt = tokenizer.encode("[assistant] ")
    assert [row[: len(prompt)] == prompt for row in tokens] == [False, True]
    file.write_text("\n".join(json.dumps(row) for row in [merged, kept] * 4))
    training, _ = open_training_data(Corpus(file), tokenizer, options(64, chat=True), Corpus(file))
    assert len(training) == 4 and "4 examples" in caplog.text and f"4 {NOT_FOUND}" in caplog.text
    file.write_text("\n".join([json.dumps(merged)] * 8))
    with pytest.raises(ValueError, match="the beginning of no answer is found.*put {% generation %} blocks"):
        open_training_data(Corpus(file), tokenizer, options(64, chat=True), Corpus(file))


@pytest.fixture
def conversations(tmp_path):
    file = tmp_path / "chat.jsonl"
    file.write_text("\n".join([json.dumps(CONVERSATION)] * 10))
    return Corpus(file)


def test_conversations_become_windows(conversations, tokenizer, options, monkeypatch, caplog):
    monkeypatch.setattr(tokenizer, "chat_template", BY_PREFIX)
    for fill in (True, False):
        training, validation = open_training_data(conversations, tokenizer, options(64, chat=True, fill_answers=fill))
        assert training.input_ids.shape == (16, 64) and validation.input_ids.shape == (4, 64)
        assert (training.attention_mask is None) == fill and training.fixed_mask.any(axis=1).all()
    assert not caplog.text
    for _ in range(2):  # made, and found again
        open_training_data(conversations, tokenizer, options(28, chat=True))
        assert "used whole in windows of 28 tokens: 10 examples, 10 answers cut off, 10 dropped" in caplog.text
        caplog.clear()
    with pytest.raises(ValueError, match=r"training text .*chat.jsonl has no answer that fits in a window"):
        open_training_data(conversations, tokenizer, options(4, chat=True))
    monkeypatch.setattr(
        tokenizer,
        "chat_template",
        BY_PREFIX.replace("[assistant]", "<assistant>").replace("[{{ message['role'] }}]", "<{{ message['role'] }}>"),
    )
    changed, _ = open_training_data(conversations, tokenizer, options(64, chat=True))
    assert changed.fingerprint != training.fingerprint


def test_bad_input_is_named(corpus, conversations, tokenizer, options, tmp_path, monkeypatch):
    for bad, changes, message in (
        (corpus, {"hold_out_every": 50}, "too few documents to hold out one in 50"),
        (corpus, {"length": 10_000}, "less than one window of 10000"),
        (Corpus(tmp_path / "none.txt"), {}, "no text file"),
        (Corpus(tmp_path / "none.jsonl"), {}, "no file"),
        (Corpus(conversations.source, text_column="body"), {}, "no column 'body'; it has messages"),
        (conversations, {"chat": True}, "has no chat template"),
    ):
        for streaming in (False, True):
            if streaming and changes.get("chat"):
                continue
            with pytest.raises((ValueError, OSError), match=message):
                training, _ = open_training_data(bad, tokenizer, options(**changes, streaming=streaming))
                next(iter(training.dataset(0, 1, 0)))
    monkeypatch.setattr(tokenizer, "chat_template", BY_PREFIX)
    with pytest.raises(ValueError, match="is plain text; conversations come from"):
        open_training_data(corpus, tokenizer, options(chat=True))
    for changes, message in (
        ({"length": 0}, "at least one token, got 0"),
        ({"hold_out_every": 1}, "take 2 or more"),
        ({"chat": True, "streaming": True}, "not streamed"),
        ({"chat": True, "separate_documents": True}, "leave out separate_documents"),
    ):
        with pytest.raises(ValueError, match=message):
            options(**changes)
    without = copy.deepcopy(tokenizer)
    without.eos_token = None
    with pytest.raises(ValueError, match="no eos_token"):
        open_training_data(corpus, without, options())


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
    monkeypatch.setattr("modeling_treediff.text.tokenizing.PIECE_CHARACTERS", 50)
    monkeypatch.setattr("modeling_treediff.text.tokenizing.BATCH_CHARACTERS", 70)
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
        "from transformers import AutoTokenizer; from modeling_treediff.text.tokenizing import *; import sys;"
        "print(tokenizer_fingerprint(AutoTokenizer.from_pretrained(sys.argv[1])))"
    )
    same = run_python(tmp_path, code=code).stdout.strip()
    assert same == tokenizer_fingerprint(tokenizer)
    (tmp_path / "tokenizer.json").write_text(text.replace('"add_prefix_space": false', '"add_prefix_space": true'))
    assert (tmp_path / "tokenizer.json").read_text() != text
    assert tokenizer_fingerprint(AutoTokenizer.from_pretrained(tmp_path)) != same


def test_reading_runs_ahead_by_a_bounded_amount_of_text(tokenizer, monkeypatch):
    monkeypatch.setattr("modeling_treediff.text.tokenizing.PIECE_CHARACTERS", 100)
    monkeypatch.setattr("modeling_treediff.text.tokenizing.BATCH_CHARACTERS", 1000)
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
