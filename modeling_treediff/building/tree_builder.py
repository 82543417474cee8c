"""Token embeddings to a vocabulary tree: cluster the tokens, then the tokens of each cluster, level by level.

Shape legend: V tokens, E dimensions of an embedding, D depth, K largest fan-out.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy import sparse
from tqdm import tqdm

from modeling_treediff.building.balanced import check_feasible, checked_counts, smallest_branching
from modeling_treediff.vocabulary_tree import VocabularyTree

from .balanced_kmeans import MAX_ITERATIONS, balanced_kmeans, quantise, quantise_weights
from .class_bigrams import ROUNDS, Neighbours, cluster_by_neighbours, neighbour_classes
from .embedding_matrix import checked_embeddings
from .representatives import with_representatives
from .unseen_tokens import place_unseen, spelling_features

METHODS = ("balanced-kmeans", "class-bigrams")
BAR = "{desc}: {percentage:3.0f}% {bar} {elapsed}<{remaining}"


def build_tree(
    embeddings: np.ndarray | torch.Tensor,
    branching: int,
    depth: int,
    method: str = "balanced-kmeans",
    seed: int = 0,
    token_counts: np.ndarray | torch.Tensor | Sequence[int] | None = None,
    follows: sparse.csr_array | None = None,
    metadata: dict[str, Any] | None = None,
    progress: bool = False,
    names: Sequence[str] | None = None,
) -> VocabularyTree:
    """Build a tree whose siblings have similar embeddings, or similar neighbours in a text.

    A node with n leaves and d levels below it gets as many children as the d-th root of n asks for, each with at most
    branching**(d-1) leaves: the tree always fits, and a branching above the minimum buys clusters of natural size.
    Siblings are ordered by frequency, so slot 0 is a node's most frequent child. Tokens without counts go to seen ones
    that are like them: where there are counts, some token below every internal node has one, if that many have. The
    result depends on the arguments alone, not on the machine or its threads (see `balanced_kmeans`).

    Args:
        embeddings: (V, E) of any floating type. Their lengths count: normalise them first to cluster by angle.
        branching: K, the largest fan-out.
        depth: D, the depth of every leaf.
        method: "balanced-kmeans" clusters the embeddings; "class-bigrams" goes on from there, by the classes that stand
            beside each token in a text (see `class_bigrams`), and needs `follows`.
        seed: seed of the clustering.
        token_counts: (V,) frequencies; frequent tokens weigh more in the clustering (as the square root) and come
            first among siblings. Without them all weigh the same and siblings are ordered by their lowest token id.
        follows: (V, V) counts; row a, column b: how often b directly follows a, as in `TextCounts`.
        metadata: provenance to keep with the tree; `method` and `seed` are added.
        progress: show a progress bar on stderr.
        names: (V,) how each token reads, as `text.token_names` has it: the likeness of tokens without counts.

    Raises:
        ValueError: unknown method, embeddings that are not (V, E) finite numbers, K^D < V, counts that are not
            (V,) finite numbers >= 0, names that are not V texts, or a method without the counts it needs.

    """
    if method not in METHODS:
        raise ValueError(f"Unknown method {method!r}; known: {', '.join(METHODS)}.")
    embedding_VE = checked_embeddings(embeddings)
    vocab_size = len(embedding_VE)
    check_feasible(vocab_size, branching, depth)
    count_V = np.zeros(vocab_size) if token_counts is None else checked_counts(token_counts, vocab_size)
    if names is not None and not (len(names) == vocab_size and all(isinstance(name, str) for name in names)):
        raise ValueError(f"names must be {vocab_size} texts, one for each token, got {len(names)} values.")
    if method == "class-bigrams" and (follows is None or follows.shape != (vocab_size, vocab_size)):
        raise ValueError(
            f"The method class-bigrams needs `follows`, neighbour counts of shape ({vocab_size}, {vocab_size})."
        )
    splitter = _Splitter(
        point_VE=quantise(embedding_VE),
        weight_V=quantise_weights(np.sqrt(count_V)),
        seen_V=count_V > 0 if count_V.any() else np.ones(vocab_size, dtype=bool),
        spelling_VF=None if names is None else spelling_features(names),
        generator=np.random.Generator(np.random.PCG64(seed)),
        neighbours=(follows, follows.T.tocsr()) if follows is not None and method == "class-bigrams" else None,
    )
    path_VD = _grow(splitter, count_V, branching, depth, progress)
    facts = (metadata or {}) | {"method": method, "seed": seed}
    return with_representatives(VocabularyTree.from_paths(path_VD, branching, facts), count_V)


@dataclass
class _Splitter:
    """Splits groups of tokens into clusters; the first group it gets is the whole vocabulary."""

    point_VE: np.ndarray
    weight_V: np.ndarray
    seen_V: np.ndarray  # whether the text has a token; all, without a text
    spelling_VF: sparse.csr_array | None  # features of the tokens' names
    generator: np.random.Generator
    neighbours: Neighbours | None  # None: clusters follow the points alone
    context_VC: sparse.csr_array | None = None  # neighbours by class of the first level, once that stands

    def num_clusters(self, tokens: np.ndarray, capacity: int, levels: int) -> int:
        """Return into how many clusters tokens with so many levels below them are split: each is to hold a seen one."""
        num_seen = int(np.count_nonzero(self.seen_V[tokens])) or len(tokens)
        return max(-(-len(tokens) // capacity), min(smallest_branching(len(tokens), levels), num_seen))

    def split(
        self, tokens: np.ndarray, num_clusters: int, capacity: int, below: int, advance: Callable[..., object]
    ) -> np.ndarray:
        """Return the cluster of each of the tokens, 0..num_clusters-1, all of which hold a seen token if they can.

        The seen tokens are clustered, with free places left in every cluster; then the others take these.

        Args:
            tokens: of the group.
            num_clusters: as many.
            capacity: the most tokens of a cluster.
            below: the most tokens of a cluster for each seen one in it.
            advance: of the progress bar.

        """
        seen_N = self.seen_V[tokens] if self.seen_V[tokens].any() else np.ones(len(tokens), dtype=bool)
        num_seen, num_unseen = int(seen_N.sum()), int((~seen_N).sum())
        cluster_N = np.full(len(tokens), -1)
        for most in (capacity - num_unseen // num_clusters, -(-num_seen // num_clusters)):  # seen ones of a cluster
            cluster_N[seen_N] = self._split_seen(tokens[seen_N], num_clusters, most, advance)
            if num_unseen:
                cluster_N[seen_N] = _without_empty(cluster_N[seen_N], num_clusters)
            seen_K = np.bincount(cluster_N[seen_N], minlength=num_clusters)
            room_K = np.minimum(capacity, seen_K * below) - seen_K
            if room_K.sum() >= num_unseen:
                break
        else:
            room_K = capacity - seen_K
        spelling_NF = None if self.spelling_VF is None else self.spelling_VF[tokens]
        cluster_N = place_unseen(cluster_N, seen_N, room_K, spelling_NF, self.point_VE[tokens])
        if self.neighbours is not None and self.context_VC is None:
            self.context_VC = neighbour_classes(self.neighbours, cluster_N, num_clusters)
        return cluster_N

    def _split_seen(
        self, tokens: np.ndarray, num_clusters: int, capacity: int, advance: Callable[..., object]
    ) -> np.ndarray:
        """Cluster tokens of a text, or all where there is none.

        Those of which nothing is known, no embedding and no neighbour, go together: they fill as many clusters as they
        can, in the order of their ids, and the rest of them free places. (To an auction they would all be alike.)
        """
        known_N = self.point_VE[tokens].any(axis=1)
        if self.neighbours is not None:
            known_N |= sum(np.diff(side.indptr) for side in self.neighbours)[tokens] > 0
        of_unknown = min((~known_N).sum() // capacity, num_clusters - bool(known_N.any()))
        cluster_N = np.full(len(tokens), -1)
        if known_N.any():
            cluster_N[known_N] = self._split_known(tokens[known_N], num_clusters - of_unknown, capacity, advance)
        free_K = capacity - np.bincount(cluster_N[known_N], minlength=num_clusters)
        places = np.repeat(np.arange(num_clusters)[::-1], free_K[::-1])
        cluster_N[~known_N] = places[: (~known_N).sum()]
        return cluster_N

    def _split_known(
        self, tokens: np.ndarray, num_clusters: int, capacity: int, advance: Callable[..., object]
    ) -> np.ndarray:
        point_NE, weight_N = self.point_VE[tokens], self.weight_V[tokens]
        cluster_N = balanced_kmeans(point_NE, num_clusters, capacity, self.generator, weight_N, advance)
        if self.neighbours is None:
            return cluster_N
        if self.context_VC is not None:
            fixed_NC = self.context_VC[tokens]
            return cluster_by_neighbours(cluster_N, num_clusters, capacity, lambda _: fixed_NC, point_NE, advance)
        sides = tuple(side[tokens][:, tokens] for side in self.neighbours)
        contexts = partial(neighbour_classes, sides, num_classes=num_clusters)
        return cluster_by_neighbours(cluster_N, num_clusters, capacity, contexts, point_NE, advance)


def _grow(splitter: _Splitter, count_V: np.ndarray, branching: int, depth: int, progress: bool) -> np.ndarray:
    """Split all tokens, then every cluster, until each token stands alone; return paths (V, D)."""
    vocab_size = len(count_V)
    path_VD = np.zeros((vocab_size, depth), dtype=np.int64)
    rounds = MAX_ITERATIONS + (0 if splitter.neighbours is None else ROUNDS)
    groups, placed = [np.arange(vocab_size)], 0
    with tqdm(total=vocab_size * max(depth - 1, 1) * rounds, desc="tree", disable=not progress, bar_format=BAR) as bar:
        for level in range(depth):
            parts = []
            for tokens in groups:
                cluster = np.arange(len(tokens))  # on the last level, and where there is nothing to choose
                capacity = branching ** (depth - level - 1)
                num_children = splitter.num_clusters(tokens, capacity, depth - level)
                if num_children < len(tokens):
                    below = branching if level < depth - 2 else capacity  # parents of leaves need a seen one each
                    cluster = splitter.split(tokens, num_children, capacity, below, bar.update)
                slot = _slots_by_frequency(cluster, count_V[tokens])
                path_VD[tokens, level] = slot
                if level < depth - 1:
                    parts += [tokens[slot == s] for s in range(slot.max() + 1)]
                placed += len(tokens)
                bar.update(min(placed * rounds, bar.total) - bar.n)
            groups = parts
    return path_VD


def _without_empty(cluster_N: np.ndarray, num_clusters: int) -> np.ndarray:
    """Give each empty cluster the last token of the largest one, as far as there are tokens."""
    cluster_N = cluster_N.copy()
    for empty in np.setdiff1d(np.arange(num_clusters), cluster_N):
        size_K = np.bincount(cluster_N, minlength=num_clusters)
        if size_K.max(initial=0) > 1:
            cluster_N[np.flatnonzero(cluster_N == size_K.argmax())[-1]] = empty
    return cluster_N


def _slots_by_frequency(cluster_N: np.ndarray, count_N: np.ndarray) -> np.ndarray:
    """Renumber clusters (N,) to 0, 1, ... by falling total count; equal ones by their first, lowest token."""
    _, first, index_N = np.unique(cluster_N, return_index=True, return_inverse=True)
    order = np.lexsort((first, -np.bincount(index_N, count_N)))
    return np.argsort(order, kind="stable")[index_N]
