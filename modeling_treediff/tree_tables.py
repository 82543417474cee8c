"""Arithmetic of a tree's tables: numbering nodes, and saying what is wrong with a table that is no tree.

Shape legend: V tokens, D depth of every leaf, N nodes.
"""

from typing import Any

import numpy as np
import torch

from .mask_token import MASK_TOKEN


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


def tokenizer_size(tokenizer: Any) -> int:  # noqa: ANN401 -- any object with a length
    """Return the largest token id of a tokenizer plus one: V of a tree for it, whose leaves are token ids.

    Added tokens count, but not the mask behind all others that a saved model's tokenizer has. Where no token has some
    of the ids below, as in several vocabularies of GPT-4's kind, it is more than `len(tokenizer)`; the leaves of the
    missing ids are never used.
    """
    if not hasattr(tokenizer, "get_vocab"):
        return len(tokenizer)
    size = max(tokenizer.get_vocab().values(), default=-1) + 1
    has_root = getattr(tokenizer, "mask_token", None) == MASK_TOKEN and tokenizer.mask_token_id == size - 1
    return size - has_root


def smallest_depth(vocab_size: int, branching: int) -> int:
    """Return the smallest depth D with branching**D >= vocab_size."""
    if vocab_size < 1 or branching < 1 or (branching == 1 and vocab_size > 1):
        raise ValueError(f"No tree of fan-out {branching} has {vocab_size} tokens.")
    depth = 1
    while branching**depth < vocab_size:
        depth += 1
    return depth


def as_int64(table: np.ndarray | torch.Tensor, name: str) -> np.ndarray:
    """Return a table of integers as int64 on the host; raise ValueError, naming it, if it holds anything else."""
    array = table.cpu().numpy() if isinstance(table, torch.Tensor) else np.asarray(table)
    if not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"{name} must hold integers, got {array.dtype}.")
    return array.astype(np.int64)


def even_paths(order: np.ndarray, branching: int, depth: int) -> np.ndarray:
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


def free_paths(path_VD: np.ndarray, branching: int, count: int) -> np.ndarray:
    """Return up to `count` paths (count, D) that no token has, those that branch off nearest to the root first.

    Where a node has room for another child, all places below that child come before any other, so that tokens placed
    in this order stand together.
    """
    depth = path_VD.shape[1]
    found = [np.zeros((0, depth), dtype=np.int64)]
    missing = count
    for level in range(depth):
        prefixes, children = np.unique(path_VD[:, :level], axis=0, return_inverse=True)
        taken = np.zeros((len(prefixes), branching), dtype=bool)
        taken[children.reshape(-1), path_VD[:, level]] = True
        for node, slot in np.argwhere(~taken):
            if missing == 0:
                break
            number = np.arange(min(missing, branching ** (depth - level - 1)))
            below = [number // branching ** (depth - 1 - lower) % branching for lower in range(level + 1, depth)]
            stem = np.tile(np.append(prefixes[node], slot), (len(number), 1))
            found.append(np.hstack([stem, *(digit[:, None] for digit in below)]))
            missing -= len(number)
    return np.concatenate(found)


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


def most_frequent_below(ancestor_VD: np.ndarray, num_nodes: int, token_counts: np.ndarray | None) -> np.ndarray:
    """Return each node's most frequent token (N,), the lowest id among equals; without counts all are equal."""
    vocab_size = len(ancestor_VD)
    counts_V = np.zeros(vocab_size) if token_counts is None else np.asarray(token_counts)
    if counts_V.shape != (vocab_size,):
        raise ValueError(f"token_counts must have shape ({vocab_size},), got {counts_V.shape}.")
    rarest_first = np.lexsort((-np.arange(vocab_size), counts_V))
    token_N = np.arange(num_nodes)
    for level in range(ancestor_VD.shape[1] - 1):
        token_N[ancestor_VD[rarest_first, level]] = rarest_first  # the last write wins
    return token_N


def paths_from_ancestors(ancestor_VD: np.ndarray) -> np.ndarray:
    """Return paths (V, D); siblings take slots 0, 1, ... in the order of their node ids."""
    path_VD = np.zeros((ancestor_VD.shape[0], ancestor_VD.shape[1] - 1), dtype=np.int64)
    for level in range(path_VD.shape[1]):
        edges = np.unique(ancestor_VD[:, level : level + 2], axis=0)  # sorted by parent, then by child
        slot = np.arange(len(edges)) - np.searchsorted(edges[:, 0], edges[:, 0])
        by_child = np.argsort(edges[:, 1])
        path_VD[:, level] = slot[by_child][np.searchsorted(edges[by_child, 1], ancestor_VD[:, level + 1])]
    return path_VD


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
