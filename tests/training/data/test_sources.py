"""Corpora as training takes them: cached or streamed, packed or as conversations, with held-out parts."""

import copy
import json
import logging
import lzma
import re

import numpy as np
import pytest
from helpers.conversations import BY_PREFIX, CONVERSATION, STRICT
from helpers.processes import SAMPLE
from tokenizers import normalizers

from modeling_treediff.text import Corpus, TokenWindows, document_division, tokenize_documents, tokenize_pieces
from modeling_treediff.text.packing import PackedRow
from modeling_treediff.training import DataOptions, StreamedWindows, open_training_data
from modeling_treediff.training.data import sources
from modeling_treediff.training.data.chat import NOT_FOUND

TEXTS = [f"Article {number}. The Congress shall have power {'and duty ' * (number % 5)}." for number in range(40)]


@pytest.fixture
def corpus(tmp_path):
    (tmp_path / "text.txt").write_text("\n\n".join(TEXTS))
    return Corpus(tmp_path / "text.txt")


@pytest.fixture
def options(tmp_path):
    def make(length=16, **changes):
        return DataOptions(
            sequence_length=length, **({"hold_out_every": 5, "cache_folder": tmp_path / "cache"} | changes)
        )

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
        assert isinstance(windows, TokenWindows) and isinstance(windows.input_ids, PackedRow)  # mapped, not held
        assert np.array_equal(windows.input_ids[:], rows(texts, tokenizer)) and windows.columns.keys() == {"input_ids"}
    whole, other = open_training_data(corpus, tokenizer, options(), validation=corpus)
    assert np.array_equal(whole.input_ids[:], rows(TEXTS, tokenizer)) and whole.fingerprint == other.fingerprint
    assert len({training.fingerprint, validation.fingerprint, whole.fingerprint}) == 3
    assert open_training_data(corpus, tokenizer, options(8))[0].fingerprint != training.fingerprint


@pytest.fixture
def calls(monkeypatch):
    """One entry for each time that a text is tokenised into the cache."""
    calls = []

    def counted(documents, tokenizer):
        calls.append(1)
        return tokenize_pieces(documents, tokenizer)

    monkeypatch.setattr(sources, "tokenize_pieces", counted)
    return calls


def test_a_second_run_does_not_tokenise_and_a_changed_text_does(corpus, tokenizer, options, calls, tmp_path):
    def calls_for(changed=corpus, **changes):
        before = len(calls)
        open_training_data(changed, tokenizer, options(**changes))
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


@pytest.fixture
def talks(tmp_path):
    """A text of which each line is also a row of a dataset: two texts, and a conversation."""
    file = tmp_path / "talks.txt"
    lines = [json.dumps({"text": text, "other": text.upper(), **CONVERSATION}) for text in TEXTS]
    file.write_text("\n\n".join(lines))
    return file, lines


@pytest.fixture
def trained_anew(options, tmp_path):
    """Open data with the cache of earlier runs; with a fresh cache they must be the same."""

    def training_rows(corpus, tokenizer, **changes):
        folders = (tmp_path / "cache", tmp_path / "fresh" / str(len(list(tmp_path.glob("fresh/*")))))
        found, fresh = (
            open_training_data(corpus, tokenizer, options(**changes, cache_folder=folder)) for folder in folders
        )
        for one, other in zip(found, fresh, strict=True):
            assert np.array_equal(one.input_ids[:], other.input_ids[:]) and one.fingerprint == other.fingerprint
        return found[0].input_ids[:]

    return training_rows


def kept(texts):
    return [text for number, text in enumerate(texts) if (number + 1) % 5]


def test_a_file_with_another_ending_is_tokenised_anew(talks, trained_anew, tokenizer):
    """Rows saved as .txt by mistake, trained on, renamed to .jsonl: now the tokens are of the texts, not of JSON."""
    file, lines = talks
    assert np.array_equal(trained_anew(Corpus(file), tokenizer), rows(kept(lines), tokenizer))
    renamed = file.rename(file.with_suffix(".jsonl"))
    assert np.array_equal(trained_anew(Corpus(renamed), tokenizer), rows(kept(TEXTS), tokenizer))


def test_another_column_is_tokenised_anew(talks, trained_anew, tokenizer):
    file = talks[0].rename(talks[0].with_suffix(".jsonl"))
    assert np.array_equal(trained_anew(Corpus(file), tokenizer), rows(kept(TEXTS), tokenizer))
    upper = [text.upper() for text in kept(TEXTS)]
    assert np.array_equal(trained_anew(Corpus(file, text_column="other"), tokenizer), rows(upper, tokenizer))


def test_another_tokenizer_tokenises_anew(talks, trained_anew, tokenizer):
    """Another one of as many tokens: it writes all in lower case."""
    file = talks[0].rename(talks[0].with_suffix(".jsonl"))
    lower = copy.deepcopy(tokenizer)
    lower.backend_tokenizer.normalizer = normalizers.Lowercase()
    assert np.array_equal(trained_anew(Corpus(file), tokenizer), rows(kept(TEXTS), tokenizer))
    assert np.array_equal(trained_anew(Corpus(file), lower), rows([text.lower() for text in kept(TEXTS)], tokenizer))


def test_another_chat_template_or_window_tokenises_conversations_anew(talks, trained_anew, tokenizer):
    corpus = Corpus(talks[0].rename(talks[0].with_suffix(".jsonl")))
    one, other = copy.deepcopy(tokenizer), copy.deepcopy(tokenizer)
    one.chat_template, other.chat_template = BY_PREFIX, BY_PREFIX.replace("'\\n'", "'\\n\\n'")
    first = trained_anew(corpus, one, chat=True, length=64)
    assert len(first) == 2 * len(kept(TEXTS)) and not np.array_equal(
        first, trained_anew(corpus, other, chat=True, length=64)
    )
    assert trained_anew(corpus, one, chat=True, length=80).shape[1] == 80


@pytest.mark.parametrize(("length", "separate"), [(64, False), (100, True)])
def test_the_sample_gives_the_windows_of_a_plain_reference(tokenizer, options, length, separate):
    """Split, tokenised, joined and cut by hand, without anything of the package but the text's reading."""
    text = lzma.open(SAMPLE / "validation.txt.xz", "rt", encoding="utf-8").read()
    documents = [document.strip() for document in re.split(r"\n\s*\n", text) if document.strip()]
    corpus = Corpus(SAMPLE / "validation.txt.xz")
    options = options(length, separate_documents=separate)
    parts = open_training_data(corpus, tokenizer, options)
    for held_out, windows in enumerate(parts):
        ids, segments = [], []
        for number, document in enumerate(documents):
            if (number % 5 == 4) == bool(held_out):
                ids += [*tokenizer(document, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
                segments += [number] * (len(ids) - len(segments))
        full = len(ids) // length * length
        assert np.array_equal(windows.input_ids[:], np.reshape(ids[:full], (-1, length)))
        if separate:
            own = windows.segment_ids[:]
            expected = np.reshape(segments[:full], (-1, length))
            assert np.array_equal(own[:, 1:] == own[:, :-1], expected[:, 1:] == expected[:, :-1])
    order = np.random.default_rng([3, 0]).permutation(len(parts[0]))
    items = parts[0].dataset(0, len(order), seed=3)
    for position in range(0, len(order), 50):
        assert np.array_equal(items[position]["input_ids"], parts[0].input_ids[order[position]])


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
    assert np.array_equal(validation.input_ids[:], streamed_validation.input_ids)
    windows = stream.windows_from((0, 0, 0))
    assert all(np.array_equal(next(windows)["input_ids"], row) for row in training.input_ids[:])
    _, whole = open_training_data(corpus, tokenizer, options(streaming=True), validation=corpus)
    assert np.array_equal(whole.input_ids[:], rows(TEXTS, tokenizer))


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
        training, validation = open_training_data(
            conversations, tokenizer, options(64, chat=True, pad_answers=not fill)
        )
        assert training.input_ids.shape == (16, 64) and validation.input_ids.shape == (4, 64)
        assert (training.attention_mask is None) == fill and training.fixed_mask[:].any(axis=1).all()
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


def test_conversations_that_the_template_refuses_are_counted_and_some_must_remain(
    tmp_path, tokenizer, options, monkeypatch, caplog
):
    monkeypatch.setattr(tokenizer, "chat_template", STRICT)
    file, good = tmp_path / "strict.jsonl", json.dumps({"messages": CONVERSATION["messages"][1:]})
    file.write_text("\n".join([good, json.dumps(CONVERSATION)] * 5))
    for _ in range(2):  # made, and found again
        training, _ = open_training_data(Corpus(file), tokenizer, options(64, chat=True), Corpus(file))
        said = "10 examples, 10 dropped, refused by the chat template (System role not supported)."
        assert len(training) == 10 and said in caplog.text
        caplog.clear()
    file.write_text(json.dumps(CONVERSATION))
    with pytest.raises(
        ValueError, match=r"No answer in .*strict.jsonl can be used: 2 dropped, refused .*\(System role"
    ):
        open_training_data(Corpus(file), tokenizer, options(64, chat=True), Corpus(file))


def test_a_division_that_looks_wrong_is_warned_of_also_from_the_cache(
    corpus, tokenizer, options, caplog, monkeypatch, tmp_path
):
    """Not who gave the bounds, though the entry is the same."""
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    single = tmp_path / "single.txt"
    single.write_text("\n".join(TEXTS))
    for text, said in ((corpus.source, "Of the first 40 documents"), (single, "is read as one document")):
        for bounds, warned in ((None, 1), (None, 1), ("blank-lines", 0)):
            document_division.logger.warning_once.cache_clear()
            caplog.clear()
            open_training_data(
                Corpus(text, document_bounds=bounds), tokenizer, options(), Corpus(text, document_bounds=bounds)
            )
            assert sum(said in one and str(text) in one for one in caplog.messages) == warned


def test_bad_input_is_named(corpus, conversations, tokenizer, options, tmp_path, monkeypatch):
    for bad, changes, message in (
        (corpus, {"hold_out_every": 50}, r"hold out one in 50. Say what bounds them \(--documents\), or give a valid"),
        (Corpus(corpus.source, document_bounds="blank-lines"), {"hold_out_every": 50}, "in 50. Give a validation text"),
        (corpus, {"length": 10_000}, "less than one window of 10000"),
        (Corpus(tmp_path / "none.txt"), {}, "no text file"),
        (Corpus(tmp_path / "none.jsonl"), {}, "no json file"),
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
