"""Arithmetic of a tree's tables: numbering nodes, and saying what is wrong with a table that is no tree.

Shape legend: V tokens, D depth of every leaf, N nodes.
"""

import numpy as np
import torch


def check_feasible(vocab_size: int, branching: int, depth: int) -> None:
    """Raise ValueError unless vocab_size leaves fit into a tree of this depth and fan-out."""
    if min(vocab_size, branching, depth) < 1:
        raise ValueError(
            f"vocab_size, branching and depth must be at least 1, got {vocab_size}, {branching} and {depth}."
        )
    if branching**depth < vocab_size:
        needed = smallest_branching(vocab_size, depth)
        raise ValueError(
            f"{vocab_size} tokens do not fit a tree of depth {depth} with fan-out {branching} "
            f"({branching}^{depth} = {branching**depth} leaves): use fan-out {needed} or more, or a deeper tree."
        )


def smallest_branching(vocab_size: int, depth: int) -> int:
    """Return the smallest fan-out K with K**depth >= vocab_size: the depth-th root rounded up, in exact integers."""
    if vocab_size < 1 or depth < 1:
        raise ValueError(f"vocab_size and depth must be at least 1, got {vocab_size} and {depth}.")
    branching = max(1, int(vocab_size ** (1 / depth)) - 1)  # a lower bound, whatever the rounding
    while branching**depth < vocab_size:
        branching += 1
    return branching


def as_int64(table: np.ndarray | torch.Tensor, name: str) -> np.ndarray:
    """Return a table of integers as int64 on the host; raise ValueError, naming it, if it holds anything else."""
    array = table.cpu().numpy() if isinstance(table, torch.Tensor) else np.asarray(table)
    if not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"{name} must hold integers, got {array.dtype}.")
    return array.astype(np.int64)


def number_nodes(path_VD: np.ndarray, max_branching: int) -> tuple[np.ndarray, np.ndarray]:
    """Give every distinct prefix of a path a node id; return ancestors (V, D+1) and child slots (N,)."""
    vocab_size, depth = path_VD.shape
    ancestors = [np.full(vocab_size, vocab_size)]
    slots = [np.zeros(1, dtype=np.int64)]
    next_id = vocab_size + 1
    for level in range(depth - 1):
        # (parent, slot) as one number: sorting it sorts by parent, then by slot.
        keys, index = np.unique(ancestors[-1] * max_branching + path_VD[:, level], return_inverse=True)
        ancestors.append(next_id + index)
        slots.append(keys % max_branching)
        next_id += len(keys)
    leaf_keys = ancestors[-1] * max_branching + path_VD[:, -1]
    order = np.argsort(leaf_keys, kind="stable")
    clash = np.flatnonzero(np.diff(leaf_keys[order]) == 0)
    if len(clash):
        first, second = order[clash[0]], order[clash[0] + 1]
        raise ValueError(f"Tokens {first} and {second} share the path {path_VD[first].tolist()}; each needs its own.")
    return np.stack([*ancestors, np.arange(vocab_size)], axis=1), np.concatenate([path_VD[:, -1], *slots])


def check_ancestors(ancestor_VD: np.ndarray) -> None:
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
