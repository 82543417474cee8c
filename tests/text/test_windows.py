"""Windows: order, place in a run, shapes, fingerprints."""

import numpy as np
import pytest

from modeling_treediff.text import TokenWindows, unigram_entropy
from modeling_treediff.text import windows as token_windows


@pytest.fixture
def windows():
    return TokenWindows(np.random.default_rng(0).integers(0, 8192, (30, 16)).astype(np.int32))


def test_order_is_a_permutation_per_epoch_and_can_start_anywhere(windows):
    whole = windows.dataset(0, 75, seed=3)
    assert [whole[index]["position"] for index in range(75)] == list(range(75))
    order = [tuple(whole[index]["input_ids"]) for index in range(75)]
    every = sorted(map(tuple, windows.input_ids))
    assert sorted(order[:30]) == sorted(order[30:60]) == every and order[:30] != order[30:60]
    assert order != [tuple(item["input_ids"]) for item in map(windows.dataset(0, 75, seed=4).__getitem__, range(75))]
    for first in (1, 30, 37, 74):
        later = windows.dataset(first, 75, seed=3)
        assert [tuple(later[index]["input_ids"]) for index in range(len(later))] == order[first:]


def test_all_columns_of_a_window_stay_together():
    tokens = np.arange(40).reshape(10, 4)
    windows = TokenWindows(tokens, fixed_mask=tokens % 2, segment_ids=tokens // 3)
    for item in map(windows.dataset(0, 10, 0).__getitem__, range(10)):
        assert item.keys() == {"input_ids", "fixed_mask", "segment_ids", "position"}
        assert np.array_equal(item["fixed_mask"], item["input_ids"] % 2)
        assert np.array_equal(item["segment_ids"], item["input_ids"] // 3)
    some = windows[2:5]
    assert len(some) == 3 and some.sequence_length == 4 and np.array_equal(some.segment_ids, tokens[2:5] // 3)


@pytest.mark.parametrize("read_windows", [1, 7, 4096])
def test_counted_tokens_are_neither_padding_nor_fixed(windows, read_windows, monkeypatch):
    monkeypatch.setattr(token_windows, "READ_WINDOWS", read_windows)
    assert np.array_equal(windows.counted_ids, windows.input_ids.ravel())
    tokens = np.arange(12).reshape(2, 6)
    fixed, attention = (np.array([row, row]) for row in ([1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 0]))
    assert TokenWindows(tokens, attention, fixed).counted_ids.tolist() == [2, 3, 4, 8, 9, 10]


def test_a_fingerprint_tells_contents_apart_and_nothing_else(windows):
    tokens = windows.input_ids
    assert windows.fingerprint == TokenWindows(tokens.astype(np.uint16)).fingerprint
    changed = tokens.copy()
    changed[-1, -1] += 1
    others = [
        TokenWindows(changed),
        TokenWindows(tokens.reshape(60, 8)),
        TokenWindows(tokens, attention_mask=np.ones_like(tokens)),
        TokenWindows(tokens, fixed_mask=np.ones_like(tokens)),
        windows[:29],
    ]
    assert len({windows.fingerprint, *(other.fingerprint for other in others)}) == 1 + len(others)


def test_impossible_windows_are_refused():
    with pytest.raises(ValueError, match=r"\(W, T\) array"):
        TokenWindows(np.zeros(5, int))
    with pytest.raises(ValueError, match=r"\(W, T\) array"):
        TokenWindows(np.zeros((0, 5), int))
    with pytest.raises(ValueError, match=r"fixed_mask has shape \(2, 4\), the windows \(2, 5\)"):
        TokenWindows(np.zeros((2, 5), int), fixed_mask=np.zeros((2, 4), int))


def test_unigram_entropy_of_known_distributions():
    assert unigram_entropy(np.arange(8)) == pytest.approx(np.log(8))
    assert unigram_entropy(np.zeros(8, int)) == 0
    assert unigram_entropy(np.array([0, 0, 0, 1])) == pytest.approx(-0.75 * np.log(0.75) - 0.25 * np.log(0.25))
