"""Token embeddings to a vocabulary tree: cluster the tokens, then the tokens of each cluster, level by level.

Shape legend: V tokens, E dimensions of an embedding, D depth, K largest fan-out.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..tree_tables import check_feasible, smallest_branching
from ..vocabulary_tree import VocabularyTree
from .balanced_kmeans import balanced_kmeans, quantise, quantise_weights

METHODS = ("balanced-kmeans",)


def build_tree(
    embeddings: np.ndarray | torch.Tensor,
    branching: int,
    depth: int,
    method: str = "balanced-kmeans",
    seed: int = 0,
    token_counts: np.ndarray | torch.Tensor | Sequence[int] | None = None,
    metadata: dict[str, Any] | None = None,
) -> VocabularyTree:
    """Build a tree whose siblings have similar embeddings.

    A node with n leaves and d levels below it gets as many children as the d-th root of n asks for, each with at most
    branching**(d-1) leaves: the tree always fits, and a branching above the minimum buys clusters of natural size.
    Siblings are ordered by frequency, so slot 0 is a node's most frequent child. The result depends on the arguments
    alone, not on the machine or its threads (see `balanced_kmeans`).

    Args:
        embeddings: (V, E) of any floating type. Their lengths count: normalise them first to cluster by angle.
        branching: K, the largest fan-out.
        depth: D, the depth of every leaf.
        method: "balanced-kmeans", the only one so far.
        seed: seed of the clustering.
        token_counts: (V,) frequencies; frequent tokens weigh more in the clustering (as the square root) and come
            first among siblings. Without them all weigh the same and siblings are ordered by their lowest token id.
        metadata: provenance to keep with the tree; `method` and `seed` are added.

    Raises:
        ValueError: unknown method, embeddings that are not (V, E) finite numbers, K^D < V, or counts that are not
            (V,) finite numbers >= 0.

    """
    if method not in METHODS:
        raise ValueError(f"Unknown method {method!r}; known: {', '.join(METHODS)}.")
    embedding_VE = _checked_embeddings(embeddings)
    vocab_size = len(embedding_VE)
    check_feasible(vocab_size, branching, depth)
    count_V = _checked_counts(token_counts, vocab_size)
    point_VE, weight_V = quantise(embedding_VE), quantise_weights(np.sqrt(count_V))
    generator = np.random.Generator(np.random.PCG64(seed))
    path_VD = np.zeros((vocab_size, depth), dtype=np.int64)
    groups = [np.arange(vocab_size)]
    for level in range(depth):
        below = depth - level - 1
        parts = []
        for tokens in groups:
            num_children = smallest_branching(len(tokens), below + 1)
            cluster = np.arange(len(tokens))  # on the last level, and where there is nothing to choose
            if num_children < len(tokens):
                capacity = branching**below
                cluster = balanced_kmeans(point_VE[tokens], num_children, capacity, generator, weight_V[tokens])
            slot = _slots_by_frequency(cluster, count_V[tokens])
            path_VD[tokens, level] = slot
            if below:
                parts += [tokens[slot == s] for s in range(slot.max() + 1)]
        groups = parts
    facts = (metadata or {}) | {"method": method, "seed": seed}
    return VocabularyTree.from_paths(path_VD, branching, count_V, facts)


def _slots_by_frequency(cluster_N: np.ndarray, count_N: np.ndarray) -> np.ndarray:
    """Renumber clusters (N,) to 0, 1, ... by falling total count; equal ones by their first, lowest token."""
    _, first, index_N = np.unique(cluster_N, return_index=True, return_inverse=True)
    order = np.lexsort((first, -np.bincount(index_N, count_N)))
    return np.argsort(order, kind="stable")[index_N]


def _checked_embeddings(embeddings: np.ndarray | torch.Tensor) -> np.ndarray:
    if isinstance(embeddings, torch.Tensor):
        embeddings = embeddings.detach().to("cpu", torch.float64).numpy()
    embedding_VE = np.asarray(embeddings, dtype=np.float64)
    if embedding_VE.ndim != 2 or 0 in embedding_VE.shape:
        raise ValueError(f"embeddings must have shape (tokens, dimensions), got {embedding_VE.shape}.")
    broken = np.flatnonzero(~np.isfinite(embedding_VE).all(axis=1))
    if len(broken):
        shown = ", ".join(map(str, broken[:5].tolist())) + (", ..." if len(broken) > 5 else "")
        raise ValueError(f"{len(broken)} rows of the embeddings hold NaN or infinity: tokens {shown}.")
    return embedding_VE


def _checked_counts(token_counts: np.ndarray | torch.Tensor | Sequence[int] | None, vocab_size: int) -> np.ndarray:
    if token_counts is None:
        return np.zeros(vocab_size)
    count_V = np.asarray(token_counts, dtype=np.float64)
    if count_V.shape != (vocab_size,):
        raise ValueError(f"token_counts must have shape ({vocab_size},), got {count_V.shape}.")
    if not np.isfinite(count_V).all() or count_V.min() < 0:
        raise ValueError("token_counts must be finite and not negative.")
    return count_V
