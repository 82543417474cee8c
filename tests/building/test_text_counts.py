"""Counting a text: the same as counting in plain Python, whatever the blocks, and bounded in memory."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from modeling_treediff.building import count_text, text_counts

VOCAB_SIZE = 40


def random_documents(seed=0, documents=60):
    """Zipfian tokens, in documents of 0 to 49 tokens."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(0, 50, size=documents)
    return [generator.zipf(1.3, size=length) % VOCAB_SIZE for length in lengths]


def pairs_of(documents):
    return Counter(pair for ids in documents for pair in pairwise(np.asarray(ids).tolist()))


def as_counter(follows):
    cells = follows.tocoo()
    pairs = zip(cells.row.tolist(), cells.col.tolist(), strict=True)
    return Counter(dict(zip(pairs, cells.data.tolist(), strict=True)))


@pytest.mark.parametrize("block_tokens", [1, 7, 100, 2**20])
def test_counts_are_those_of_plain_python_whatever_the_blocks(monkeypatch, block_tokens):
    monkeypatch.setattr(text_counts, "BLOCK_TOKENS", block_tokens)
    documents = random_documents()
    counts = count_text(iter(documents), VOCAB_SIZE)
    tokens = Counter(token for ids in documents for token in ids.tolist())
    assert counts.token_counts.tolist() == [tokens[token] for token in range(VOCAB_SIZE)]
    assert as_counter(counts.follows) == pairs_of(documents)
    assert (counts.dropped, counts.largest_error) == (0, 0)
    assert counts.follows.has_canonical_format and counts.follows.shape == (VOCAB_SIZE, VOCAB_SIZE)


def test_neighbours_do_not_cross_documents():
    counts = count_text([[0, 2, 2], np.array([2]), [], (3, 0)], 5)
    assert counts.token_counts.tolist() == [2, 0, 3, 1, 0]
    assert as_counter(counts.follows) == {(0, 2): 1, (2, 2): 1, (3, 0): 1}


@pytest.mark.parametrize("documents", [[], [[]], [[], [1], []]])
def test_texts_without_neighbours_have_empty_counts(documents):
    counts = count_text(documents, 3)
    assert counts.follows.nnz == 0 and counts.token_counts.sum() == sum(map(len, documents))


@pytest.mark.parametrize(("block_tokens", "max_pairs"), [(1, 1), (10, 20), (64, 50), (200, 200), (64, 10**6)])
@pytest.mark.parametrize("seed", range(3))
def test_a_full_table_loses_no_more_than_it_says(monkeypatch, block_tokens, max_pairs, seed):
    monkeypatch.setattr(text_counts, "BLOCK_TOKENS", block_tokens)
    documents = random_documents(seed)
    counts = count_text(documents, VOCAB_SIZE, max_pairs)
    kept, true = as_counter(counts.follows), pairs_of(documents)
    assert kept <= true  # no count too large
    assert max((true - kept).values(), default=0) <= counts.largest_error
    assert true.total() - kept.total() == counts.dropped
    assert len(kept) <= max_pairs
    assert (counts.dropped == 0) == (len(true) <= max_pairs)
    assert counts.token_counts.sum() == sum(map(len, documents))
    again = count_text(documents, VOCAB_SIZE, max_pairs)
    assert (again.follows != counts.follows).nnz == 0


def test_frequent_pairs_outlive_a_stream_of_rare_ones(monkeypatch):
    monkeypatch.setattr(text_counts, "BLOCK_TOKENS", 100)
    rare = np.random.default_rng(0).permutation(10_000)
    documents = [[*rare[start : start + 20].tolist(), *[10_000, 10_001] * 5] for start in range(0, 10_000, 20)]
    counts = count_text(documents, 10_002, max_pairs=200)
    assert 2500 - counts.largest_error <= counts.follows[10_000, 10_001] <= 2500
    assert counts.largest_error < 250


def test_the_table_stays_small_whatever_the_length(monkeypatch):
    """The bound that the docstring states: max_pairs, and one block while it is merged."""
    monkeypatch.setattr(text_counts, "BLOCK_TOKENS", 64)
    sizes, drop_rarest = [], text_counts._PairTable._drop_rarest

    def measured(table):
        sizes.append(len(table.pair_P))
        drop_rarest(table)
        assert len(table.pair_P) == len(table.count_P) <= table.max_pairs

    monkeypatch.setattr(text_counts._PairTable, "_drop_rarest", measured)
    generator = np.random.default_rng(0)
    documents = (generator.integers(1000, size=size) for size in (5000, *[3] * 2000))  # one far longer than a block
    count_text(documents, 1000, max_pairs=100)
    assert len(sizes) > 50 and max(sizes) <= 100 + 64


def test_documents_are_taken_as_they_are_needed(monkeypatch):
    monkeypatch.setattr(text_counts, "BLOCK_TOKENS", 10)
    taken = []

    def documents():
        for number in range(100):
            taken.append(number)
            yield [0, 1, 9 if number == 20 else 2]

    with pytest.raises(ValueError, match=r"0\.\.8, got 0\.\.9"):
        count_text(documents(), 9)
    assert len(taken) < 30


def test_bad_arguments_are_refused():
    for ids in ([4], [0, -1]):
        with pytest.raises(ValueError, match=r"must lie in 0\.\.3"):
            count_text([ids], 4)
    with pytest.raises(ValueError, match="max_pairs must be at least 1, got 0"):
        count_text([[1, 2]], 4, max_pairs=0)
