"""Extending a tree by new tokens, such as added special tokens."""

from typing import Any

import numpy as np

from modeling_treediff.vocabulary_tree import VocabularyTree, as_int64


def extend_tree(tree: VocabularyTree, num_tokens: int, metadata: dict[str, Any] | None = None) -> VocabularyTree:
    """Return a tree with further tokens, ids V..V+num_tokens-1.

    All tokens keep their ids, paths and depth, all nodes their representative. The new ones take free places, those
    nearest to the root first; where there are too few, the fan-out K grows by as little as needed. Internal nodes are
    numbered after the last token, so their ids grow: node n of the given tree is
    `extended.ancestors[tree.representative[n], tree.depth[n]]`.

    Args:
        tree: any tree.
        num_tokens: how many are added, at least 1.
        metadata: added to the tree's provenance, which loses the fingerprint of the tokenizer without these tokens.

    Raises:
        ValueError: num_tokens is below 1.

    """
    if num_tokens < 1:
        raise ValueError(f"A tree is extended by 1 token or more, got {num_tokens}.")
    path_VD, branching = as_int64(tree.paths, "paths"), tree.max_branching
    while branching**tree.tree_depth < tree.vocab_size + num_tokens:
        branching += 1
    path_VD = np.concatenate([path_VD, _free_paths(path_VD, branching, num_tokens)])
    kept = {name: value for name, value in tree.metadata.items() if name != "tokenizer_sha256"}
    extended = VocabularyTree.from_paths(path_VD, branching, metadata=kept | (metadata or {}))
    node_N = extended.ancestors[tree.representative.cpu(), tree.depth.cpu()]
    extended.representative[node_N] = tree.representative.cpu()
    return extended.to(tree.ancestors.device)


def _free_paths(path_VD: np.ndarray, branching: int, count: int) -> np.ndarray:
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
