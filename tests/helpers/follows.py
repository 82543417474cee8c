"""Counts of which token follows which."""

import numpy as np
from scipy import sparse


def some_follows(vocab_size: int, seed: int = 0) -> sparse.csr_array:
    random = np.random.default_rng(seed)
    counts = random.integers(1, 9, (vocab_size, vocab_size)) * (random.random((vocab_size, vocab_size)) < 0.2)
    return sparse.csr_array(counts)
