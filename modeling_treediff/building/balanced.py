"""Balanced trees without clustering: random trees, and trees of tokens in a given order.

Shape legend: V tokens, D depth of every leaf.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from modeling_treediff.vocabulary_tree import Table, VocabularyTree, as_int64

from .representatives import with_representatives


def random_tree(
    vocab_size: int, branching: int, depth: int, seed: int = 0, metadata: dict[str, Any] | None = None
) -> VocabularyTree:
    """Return a balanced tree with tokens in random places: the baseline for clustered trees.

    Raises:
        ValueError: branching**depth leaves are fewer than the vocabulary.

    """
    check_feasible(vocab_size, branching, depth)
    order_V = np.argsort(np.random.default_rng(seed).random(vocab_size), kind="stable")
    return tree_from_order(order_V, branching, depth, {"method": "random", "seed": seed} | (metadata or {}))


def tree_from_order(order: Table, branching: int, depth: int, metadata: dict[str, Any] | None = None) -> VocabularyTree:
    """Return a balanced tree whose leaves, from the first slots to the last, are the tokens in `order`, (V,).

    Raises:
        ValueError: not a permutation of 0..V-1, or branching**depth leaves are fewer than the vocabulary.

    """
    order_V = as_int64(order, "order")
    if order_V.ndim != 1 or not np.array_equal(np.sort(order_V), np.arange(len(order_V))):
        raise ValueError(f"order must hold every token id from 0 to {len(order_V) - 1} once.")
    check_feasible(len(order_V), branching, depth)
    paths = _even_paths(order_V, branching, depth)
    return with_representatives(VocabularyTree.from_paths(paths, branching, metadata), -np.argsort(order_V))


def frequency_tree(
    token_counts: np.ndarray | torch.Tensor | Sequence[int],
    branching: int,
    depth: int,
    metadata: dict[str, Any] | None = None,
) -> VocabularyTree:
    """Return a balanced tree whose siblings are tokens equally frequent in a text, and nothing else.

    Tokens that the text lacks are shared out evenly: where there are enough others, each node has one of these below.

    Args:
        token_counts: (V,) how often the text has each token.
        branching: K, the largest fan-out.
        depth: D, the depth of every leaf.
        metadata: provenance to keep with the tree.

    Raises:
        ValueError: branching**depth leaves are fewer than the vocabulary, or counts that are not finite numbers >= 0.

    """
    count_V = checked_counts(token_counts, len(token_counts))
    check_feasible(len(count_V), branching, depth)
    places = np.arange(len(count_V))
    _, parent_V = np.unique(_even_paths(places, branching, depth)[:, :-1], axis=0, return_inverse=True)
    first_V = np.diff(parent_V, prepend=-1) > 0
    num_seen = int(np.count_nonzero(count_V))
    firsts = _evenly(places[first_V], min(num_seen, int(first_V.sum())))
    seen_V = np.isin(places, np.concatenate([firsts, _evenly(places[~first_V], num_seen - len(firsts))]))
    order = np.empty_like(places)
    order[seen_V], order[~seen_V] = np.split(np.argsort(-count_V, kind="stable"), [num_seen])
    order = order[np.lexsort((~seen_V, parent_V))]  # seen ones first among siblings
    return tree_from_order(order, branching, depth, {"method": "frequency"} | (metadata or {}))


def checked_counts(token_counts: np.ndarray | torch.Tensor | Sequence[int], vocab_size: int) -> np.ndarray:
    """Return (V,) float64 counts; ValueError for another shape, or numbers that are not finite or negative."""
    count_V = np.asarray(token_counts, dtype=np.float64)
    if count_V.shape != (vocab_size,):
        raise ValueError(f"token_counts must have shape ({vocab_size},), got {count_V.shape}.")
    if not np.isfinite(count_V).all() or count_V.min() < 0:
        raise ValueError("token_counts must be finite and not negative.")
    return count_V


def check_feasible(vocab_size: int, branching: int, depth: int) -> None:
    """Raise ValueError unless vocab_size leaves fit into a tree of this depth and fan-out, and can use both."""
    if max(branching, depth) > vocab_size:
        raise ValueError(f"Depth {depth} or fan-out {branching} is more than {vocab_size} tokens can use.")
    if (needed := smallest_branching(vocab_size, depth)) > branching:
        raise ValueError(
            f"{vocab_size} tokens do not fit a tree of depth {depth} with fan-out {branching} "
            f"(at most {branching}^{depth} leaves): use fan-out {needed} or more, or a deeper tree."
        )


def smallest_branching(vocab_size: int, depth: int) -> int:
    """Return the smallest fan-out K with K**depth >= vocab_size."""
    if min(vocab_size, depth) < 1:
        raise ValueError(f"vocab_size and depth must be at least 1, got {vocab_size} and {depth}.")
    return next(branching for branching in itertools.count(1) if branching**depth >= vocab_size)


def checked_branching(vocab_size: int, depth: int, branching: int | None = None) -> int:
    """Return the fan-out, by default the smallest that the depth needs; ValueError if so many tokens do not fit."""
    if branching is None:
        branching = smallest_branching(vocab_size, depth)
    check_feasible(vocab_size, branching, depth)
    return branching


def smallest_depth(vocab_size: int, branching: int) -> int:
    """Return the smallest depth D with branching**D >= vocab_size."""
    if vocab_size < 1 or branching < 1 or (branching == 1 and vocab_size > 1):
        raise ValueError(f"No tree of fan-out {branching} has {vocab_size} tokens.")
    depth = 1
    while branching**depth < vocab_size:
        depth += 1
    return depth


def _evenly(values: np.ndarray, count: int) -> np.ndarray:
    """Return `count` of the values, at equal distances."""
    return values[np.arange(count) * len(values) // max(count, 1)]


def _even_paths(order: np.ndarray, branching: int, depth: int) -> np.ndarray:
    """Return paths (V, D) that give the tokens, in this order, the leaves of a tree split as evenly as possible."""
    path_VD = np.zeros((len(order), depth), dtype=np.int64)
    groups = [order]
    for level in range(depth):
        parts = [np.array_split(group, min(branching, len(group))) for group in groups]
        for siblings in parts:
            for slot, tokens in enumerate(siblings):
                path_VD[tokens, level] = slot
        groups = [tokens for siblings in parts for tokens in siblings]
    return path_VD
