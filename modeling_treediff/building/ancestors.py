"""A vocabulary tree from a table of each token's ancestors, the format in which other programs save trees.

Shape legend: V tokens, D depth of every leaf.
"""

from typing import Any

import numpy as np

from modeling_treediff.vocabulary_tree import Table, VocabularyTree, as_int64


def tree_from_ancestors(
    ancestors: Table, max_branching: int | None = None, metadata: dict[str, Any] | None = None
) -> VocabularyTree:
    """Build a tree from each token's ancestors.

    Args:
        ancestors: (V, D+1) node ids, from the root to the token itself. Internal nodes may have any ids >= V; they are
            renumbered as `VocabularyTree` numbers them. Siblings take slots in the order of their ids.
        max_branching: K; by default the largest fan-out found.
        metadata: provenance to keep with the tree.

    Raises:
        ValueError: a leaf not at the last depth, several roots, a node at two depths (a cycle), a node with two
            parents, or a fan-out over max_branching.

    """
    ancestor_VD = as_int64(ancestors, "ancestors")
    _check_ancestors(ancestor_VD)
    path_VD = _paths_from_ancestors(ancestor_VD)
    fan_out = int(path_VD.max()) + 1
    if max_branching is not None and fan_out > max_branching:
        token, level = np.argwhere(path_VD == fan_out - 1)[0]
        raise ValueError(
            f"Node {ancestor_VD[token, level]} at depth {level} has {fan_out} children, at most {max_branching} are "
            "allowed."
        )
    return VocabularyTree.from_paths(path_VD, max_branching or fan_out, metadata)


def _paths_from_ancestors(ancestor_VD: np.ndarray) -> np.ndarray:
    """Return paths (V, D); siblings take slots 0, 1, ... in the order of their node ids."""
    path_VD = np.zeros((ancestor_VD.shape[0], ancestor_VD.shape[1] - 1), dtype=np.int64)
    for level in range(path_VD.shape[1]):
        edges = np.unique(ancestor_VD[:, level : level + 2], axis=0)  # sorted by parent, then by child
        slot = np.arange(len(edges)) - np.searchsorted(edges[:, 0], edges[:, 0])
        by_child = np.argsort(edges[:, 1])
        path_VD[:, level] = slot[by_child][np.searchsorted(edges[by_child, 1], ancestor_VD[:, level + 1])]
    return path_VD


def _check_ancestors(ancestor_VD: np.ndarray) -> None:
    """Raise ValueError unless the (V, D+1) table describes one tree with leaves 0..V-1 in its last column."""
    if ancestor_VD.ndim != 2 or ancestor_VD.shape[0] < 1 or ancestor_VD.shape[1] < 2:
        raise ValueError(f"ancestors must have shape (tokens, depth + 1), got {ancestor_VD.shape}.")
    vocab_size, depth = ancestor_VD.shape[0], ancestor_VD.shape[1] - 1
    inner = ancestor_VD[:, :-1]
    wrong = np.flatnonzero(ancestor_VD[:, -1] != np.arange(vocab_size))
    if len(wrong):
        raise ValueError(f"Token {wrong[0]} does not end its own row: every leaf must be its token, at depth {depth}.")
    if inner.min() < vocab_size:
        token, level = np.argwhere(inner < vocab_size)[0]
        raise ValueError(f"Leaf {inner[token, level]} stands at depth {level}; every leaf must be at depth {depth}.")
    if len(np.unique(inner[:, 0])) > 1:
        raise ValueError(f"There are several roots: {np.unique(inner[:, 0])[:5].tolist()}.")
    level_of: dict[int, int] = {}
    for level in range(depth):
        for node in np.unique(inner[:, level]).tolist():
            if node in level_of:
                raise ValueError(f"Node {node} stands at depths {level_of[node]} and {level}: the tree has a cycle.")
            level_of[node] = level
        edges = np.unique(ancestor_VD[:, level : level + 2], axis=0)
        child, parents = np.unique(edges[:, 1], return_counts=True)
        if parents.max() > 1:
            node = int(child[parents > 1][0])
            above = edges[edges[:, 1] == node, 0].tolist()
            raise ValueError(f"Node {node} has {len(above)} parents: {above[:5]}.")
