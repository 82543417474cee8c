"""Packing: a row of tokens, a row in blocks, and a stream give the same windows."""

import numpy as np
import pytest

from modeling_treediff.text import pack_pieces, pack_windows, tokenize_documents
from modeling_treediff.text.packing import PackedRow
from modeling_treediff.text.tokenizing import TokenPiece


class Blocks:
    """A row that is no array."""

    def __init__(self, values):
        self.values = values

    def __len__(self):
        return len(self.values)

    def __getitem__(self, place):
        assert isinstance(place, slice)
        return self.values[place]


def by_hand(row, length):
    """The definition: token w T + t of the row is token t of window w, as long as windows are full."""
    return [[int(row[start + place]) for place in range(length)] for start in range(0, len(row) - length + 1, length)]


def test_windows_are_documents_with_separators(tokenizer):
    documents = ["To the Congress.", "We the people."]
    tokens = tokenize_documents(documents, tokenizer)
    assert tokenizer.decode(tokens) == "To the Congress.<|endoftext|>We the people.<|endoftext|>"
    packed = pack_windows(tokens, 3)
    assert packed.shape == (len(tokens) // 3, 3) and packed.tolist() == by_hand(tokens, 3)
    with pytest.raises(ValueError, match=rf"held-out text has {len(tokens)} tokens, less than one window of 100"):
        pack_windows(tokens, 100, "held-out text")
    with pytest.raises(ValueError, match="at least one token, got 0"):
        pack_windows(tokens, 0)


@pytest.mark.parametrize("length", [1, 3, 10, 101])
def test_a_row_that_is_no_array_gives_the_windows_of_one(length):
    row = np.random.default_rng(0).integers(0, 2**16, 101).astype(np.uint16)
    array, packed = pack_windows(row, length), pack_windows(Blocks(row), length)
    assert isinstance(packed, PackedRow) and np.shares_memory(array, row)
    assert packed.shape == array.shape and len(packed) == len(array) and array.tolist() == by_hand(row, length)
    count = len(array)
    for windows in (0, count - 1, np.int64(count // 2), -1, slice(None), slice(0, 2), slice(count - 1, None),
                    np.array([count - 1, 0, 0])):  # fmt: skip
        assert np.array_equal(packed[windows], array[windows]) and packed[windows].dtype == row.dtype
    with pytest.raises(IndexError):
        packed[count]


@pytest.mark.parametrize("length", [1, 4, 7])
@pytest.mark.parametrize("seed", range(3))
def test_a_stream_of_pieces_gives_the_windows_of_the_row(length, seed):
    """Documents of any number of pieces, in two epochs; where each window begins, and which tokens share a document."""
    generator = np.random.default_rng(seed)
    pieces, tokens = [], []
    for epoch in range(2):
        for document in range(1, 6):
            offset = 0
            for size in generator.integers(1, 9, generator.integers(1, 4)):
                pieces.append(TokenPiece(document, offset, generator.integers(0, 99, size).astype(np.int32), epoch))
                tokens += [((epoch, document, offset + place), token) for place, token in enumerate(pieces[-1][2])]
                offset += int(size)
    windows = list(pack_pieces(iter(pieces), length))
    assert [window.input_ids.tolist() for window in windows] == by_hand([token for _, token in tokens], length)
    for number, window in enumerate(windows):
        places = [place for place, _ in tokens[number * length : (number + 1) * length]]
        assert window.place == places[0] and window.segment_ids[0] == 0
        same = [[one[:2] == other[:2] for one in places] for other in places]
        assert np.array_equal(window.segment_ids[:, None] == window.segment_ids, same)


def test_a_stream_is_read_no_further_than_a_window_needs():
    read = []

    def pieces():
        for number in range(10):
            read.append(number)
            yield TokenPiece(number, 0, np.arange(5, dtype=np.int32))

    windows = pack_pieces(pieces(), 10)
    assert next(windows).input_ids.tolist() == [*range(5), *range(5)] and read == [0, 1]
