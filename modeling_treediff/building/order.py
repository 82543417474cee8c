"""A balanced tree over tokens in a given order, such as that of their frequencies: a control without clusters."""

from typing import Any

import numpy as np

from modeling_treediff.vocabulary_tree import Table, VocabularyTree, as_int64, check_feasible, even_paths


def tree_from_order(order: Table, branching: int, depth: int, metadata: dict[str, Any] | None = None) -> VocabularyTree:
    """Return a balanced tree whose leaves, from the first slots to the last, are the tokens in `order`, (V,).

    With tokens in order of frequency, siblings are tokens equally frequent and nothing else.

    Raises:
        ValueError: not a permutation of 0..V-1, or branching**depth leaves are fewer than the vocabulary.

    """
    order_V = as_int64(order, "order")
    if order_V.ndim != 1 or not np.array_equal(np.sort(order_V), np.arange(len(order_V))):
        raise ValueError(f"order must hold every token id from 0 to {len(order_V) - 1} once.")
    check_feasible(len(order_V), branching, depth)
    paths = even_paths(order_V, branching, depth)
    return VocabularyTree.from_paths(paths, branching, -np.argsort(order_V), metadata)
