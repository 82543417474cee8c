"""Streams: windows in the order of the corpus, shuffled in blocks, and read on from any place."""

import json
import pickle
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate.data_loader import IterableDatasetShard
from torch.utils.data import DataLoader

from modeling_treediff.building.balanced import random_tree
from modeling_treediff.noise_schedules import SequentialSchedule
from modeling_treediff.text import Corpus, tokenize_documents, tokenizing
from modeling_treediff.training import DiffusionCollator, StreamedWindows
from modeling_treediff.training.data import streaming
from modeling_treediff.training.data.collator import FORWARDED

LENGTH, COUNT = 16, 120


@pytest.fixture(scope="module")
def texts():
    generator = random.Random(0)
    words = ["people", "Congress", "the", "of", "war", "peace", "year", "Union", "law"]
    return [" ".join(generator.choices(words, k=generator.randrange(1, 60))) for _ in range(24)]


@pytest.fixture(scope="module", params=["txt", "jsonl"])
def corpus(request, texts, tmp_path_factory):
    """With empty documents between the others."""
    file = tmp_path_factory.mktemp("stream") / f"corpus.{request.param}"
    if request.param == "txt":
        file.write_text("\n\n" + "\n\n".join(texts))
    else:
        file.write_text("\n".join(json.dumps({"text": text}) for pair in texts for text in ("", pair)))
    return Corpus(file)


@pytest.fixture
def windows(corpus, tokenizer):
    """About 45 windows per epoch: the items are of three epochs."""
    return StreamedWindows(corpus, tokenizer, LENGTH, separate_documents=True, shuffled_windows=8)


def equal(first, second):
    return all(
        one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)
        for one, other in zip(first, second, strict=True)
    )


def content(items):
    """Without the place, which is where a reader may start: another one after another start."""
    return [{name: value for name, value in item.items() if name != "place"} for item in items]


def test_a_stream_is_all_documents_packed_epoch_after_epoch(windows, texts, tokenizer):
    row = tokenize_documents(texts, tokenizer)
    expected = np.tile(row, 4)[: COUNT * LENGTH].reshape(COUNT, LENGTH)
    assert COUNT * LENGTH > 2 * len(row)
    stream = windows.windows_from((0, 0, 0))
    for tokens, window in zip(expected, stream, strict=False):
        assert np.array_equal(window["input_ids"], tokens)
        ends = np.concatenate([[0], (tokens[:-1] == tokenizer.eos_token_id).cumsum()])
        assert np.array_equal(window["segment_ids"], ends)


def test_items_are_the_stream_shuffled_within_blocks(windows):
    items = list(windows.dataset(0, COUNT, seed=1))
    assert [item["position"] for item in items] == list(range(COUNT))
    stream = windows.windows_from((0, 0, 0))
    moved = 0
    for start in range(0, COUNT, 8):
        block = [next(stream)["input_ids"].tolist() for _ in range(8)]
        shuffled = [item["input_ids"].tolist() for item in items[start : start + 8]]
        assert sorted(block) == sorted(shuffled)
        moved += block != shuffled
    assert moved == COUNT / 8
    again = pickle.loads(pickle.dumps(windows.dataset(0, COUNT, seed=1)))  # as a worker that is not forked gets it
    assert equal(items, again) and not equal(items, windows.dataset(0, COUNT, seed=2))


@pytest.mark.parametrize("shuffled_windows", [1, 8, 50])
def test_resuming_anywhere_gives_what_an_uninterrupted_run_gives(corpus, tokenizer, shuffled_windows):
    """From the place of any earlier item, in the middle of documents and epochs and at their ends."""
    windows = StreamedWindows(corpus, tokenizer, LENGTH, True, shuffled_windows=shuffled_windows)
    whole = list(windows.dataset(0, COUNT, seed=3))
    assert max(item["place"][0] for item in whole) >= 1 and any(item["place"][2] for item in whole)
    firsts = (1, 7, 8, 33, 44, 45, 46, 90, 119) if corpus.source.suffix == ".txt" else (45, 90)  # `datasets` is slower
    for first in firsts:
        for saved in {first, max(first - 20, 0)}:
            resumed = windows.dataset(first, COUNT, 3, place=(saved, *whole[saved]["place"]))
            assert equal(content(whole[first:]), content(resumed))
    assert equal(whole[50:], windows.dataset(50, COUNT, seed=3))  # without a place too, only slower


def test_a_document_tokenised_in_pieces_is_read_on_inside(corpus, tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizing, "PIECE_CHARACTERS", 30)
    monkeypatch.setattr(tokenizing, "BATCH_CHARACTERS", 50)
    windows = StreamedWindows(corpus, tokenizer, LENGTH, shuffled_windows=4)
    whole = list(windows.dataset(0, 60, seed=3))
    for first in range(0, 60, 7):
        resumed = windows.dataset(first, 60, 3, place=(first, *whole[first]["place"]))
        assert equal(content(whole[first:]), content(resumed))


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 3), (3, 1)])
def test_processes_share_one_stream_also_when_their_number_changes(windows, before, after, workers):
    """As accelerate deals batches to processes: 72 windows with one number of processes, the others with another."""
    collate = DiffusionCollator(random_tree(8192, 91, 2), SequentialSchedule(2), 7)

    def batches(processes, first, count, place):
        dealt = []
        for rank in range(processes):
            items = windows.dataset(first, count, 7, place)
            shard = IterableDatasetShard(items, 4, num_processes=processes, process_index=rank)
            dealt.append(list(DataLoader(shard, 4, collate_fn=collate, num_workers=workers)))
        return [batch for step in zip(*dealt, strict=True) for batch in step]

    whole = batches(1, 0, COUNT, None)
    earlier = batches(before, 0, 72, None)
    last_step = earlier[-before]
    later = batches(after, 72, COUNT, (72 - 4 * before, *last_step["place"][0].tolist()))
    assert len(whole) == len(earlier + later) == 30
    for one, other in zip(whole, earlier + later, strict=True):
        names = one.keys() - {"place"}
        assert set(FORWARDED) & names == {"segment_ids"}
        assert all(torch.equal(one[name], other[name]) for name in names)


def test_held_out_documents_are_left_out(corpus, tokenizer, texts):
    windows = StreamedWindows(corpus, tokenizer, 8, hold_out_every=4)
    numbered = list(corpus.documents())
    kept = tokenize_documents([text for number, text in numbered if (number + 1) % 4], tokenizer)
    assert 0 < len(kept) < len(tokenize_documents(texts, tokenizer))
    stream = windows.windows_from((0, 0, 0))
    read = np.concatenate([next(stream)["input_ids"] for _ in range(len(kept) // 8)])
    assert np.array_equal(read, kept[: len(read)])


def test_fingerprints_tell_streams_apart(corpus, tokenizer, tmp_path):
    other = tmp_path / f"other{corpus.source.suffix}"
    other.write_text(corpus.source.read_text() + " ")
    streams = [
        StreamedWindows(corpus, tokenizer, 8),
        StreamedWindows(corpus, tokenizer, 9),
        StreamedWindows(corpus, tokenizer, 8, separate_documents=True),
        StreamedWindows(corpus, tokenizer, 8, hold_out_every=2),
        StreamedWindows(corpus, tokenizer, 8, shuffled_windows=5),
        StreamedWindows(Corpus(other), tokenizer, 8),
    ]
    assert len({stream.fingerprint for stream in streams}) == len(streams)
    assert StreamedWindows(corpus, tokenizer, 8).fingerprint == streams[0].fingerprint


def test_impossible_streams_are_refused(windows, corpus, tokenizer, monkeypatch):
    with monkeypatch.context() as in_a_worker:
        in_a_worker.setattr(streaming, "get_worker_info", lambda: SimpleNamespace(num_workers=2))
        with pytest.raises(ValueError, match="at most one data loader worker, not 2"):
            next(iter(windows.dataset(0, 8, 0)))
    with pytest.raises(ValueError, match="sequence_length must be at least 1"):
        StreamedWindows(corpus, tokenizer, 0)
    with pytest.raises(ValueError, match="no document to train on"):
        next(iter(StreamedWindows(corpus, tokenizer, 8, hold_out_every=1).dataset(0, 8, 0)))
