"""Token and bigram counts of a text, in one pass and bounded memory.

Shape legend: V tokens, T tokens of text, P distinct pairs of neighbours.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from modeling_treediff.text.tokenizing import gather

BLOCK_TOKENS = 2**20  # short documents are gathered to blocks of about this size: sorting each alone is slow


@dataclass(frozen=True, eq=False)
class TextCounts:
    """Counts of tokens and of neighbours.

    Attributes:
        token_counts: (V,) int64, how often each token occurs; always exact.
        follows: (V, V) int64; row a, column b: how often b directly follows a within a document.
        dropped: neighbours that are missing in `follows`, because it was full: the sum of exact counts less its sum.
        largest_error: no count in `follows` (0 where it has none) is short of the exact one by more than this.

    """

    token_counts: np.ndarray
    follows: sparse.csr_array
    dropped: int
    largest_error: int


def count_text(
    token_id_sequences: Iterable[Sequence[int] | np.ndarray], vocab_size: int, max_pairs: int = 2**24
) -> TextCounts:
    """Count tokens and direct neighbours in one pass.

    Memory depends on V, on max_pairs (16 bytes each, and about as much again while they are merged) and on the
    longest document, not on the length of the text. Whenever more than max_pairs distinct pairs are held, those with
    count 1 are dropped, or if that is not enough with count 1 and 2, and so on, until the rest fits: lossy counting
    (Manku and Motwani, "Approximate frequency counts over data streams", 2002). A pair that was dropped starts anew
    when it is met again. So a kept count is never too large, and too small by at most the sum of these thresholds;
    frequent pairs lose little or nothing, pairs met a few times in the whole text may be missing.

    Args:
        token_id_sequences: tokenised documents; neighbours never cross from one document to the next.
        vocab_size: V.
        max_pairs: how many distinct pairs are kept at most.

    Raises:
        ValueError: an id lies outside 0..V-1, or max_pairs is below 1.

    """
    if max_pairs < 1:
        raise ValueError(f"max_pairs must be at least 1, got {max_pairs}.")
    token_count_V = np.zeros(vocab_size, dtype=np.int64)
    table = _PairTable(max_pairs)
    for block in gather((np.asarray(ids, dtype=np.int64) for ids in token_id_sequences), BLOCK_TOKENS, len):
        id_T = np.concatenate(block)
        if id_T.size and (id_T.min() < 0 or id_T.max() >= vocab_size):
            raise ValueError(f"Token ids must lie in 0..{vocab_size - 1}, got {id_T.min()}..{id_T.max()}.")
        token_count_V += np.bincount(id_T, minlength=vocab_size)
        document_T = np.repeat(np.arange(len(block)), [len(ids) for ids in block])
        pair_T = (id_T[:-1] * vocab_size + id_T[1:])[document_T[:-1] == document_T[1:]]
        for start in range(0, len(pair_T), BLOCK_TOKENS):
            table.add(pair_T[start : start + BLOCK_TOKENS])
    return TextCounts(token_count_V, table.to_matrix(vocab_size), table.dropped, table.largest_error)


class _PairTable:
    """Distinct pairs, a V + b for b after a, in rising order, with their counts; at most max_pairs after `add`."""

    def __init__(self, max_pairs: int) -> None:
        self.max_pairs, self.dropped, self.largest_error = max_pairs, 0, 0
        self.pair_P, self.count_P = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)

    def add(self, pair_T: np.ndarray) -> None:
        pair, count = np.unique(pair_T, return_counts=True)
        place = np.searchsorted(self.pair_P, pair)
        known = place < len(self.pair_P)
        known[known] = self.pair_P[place[known]] == pair[known]
        self.count_P[place[known]] += count[known]
        self.pair_P = np.insert(self.pair_P, place[~known], pair[~known])
        self.count_P = np.insert(self.count_P, place[~known], count[~known])
        if len(self.pair_P) > self.max_pairs:
            self._drop_rarest()

    def _drop_rarest(self) -> None:
        excess = len(self.count_P) - self.max_pairs
        threshold = int(np.partition(self.count_P, excess - 1)[excess - 1])
        keep = self.count_P > threshold
        self.dropped += int(self.count_P[~keep].sum())
        self.largest_error += threshold
        self.pair_P, self.count_P = self.pair_P[keep], self.count_P[keep]

    def to_matrix(self, vocab_size: int) -> sparse.csr_array:
        first_of_row = np.searchsorted(self.pair_P, np.arange(vocab_size + 1) * vocab_size)
        cells = (self.count_P, self.pair_P % vocab_size, first_of_row)
        return sparse.csr_array(cells, shape=(vocab_size, vocab_size))
