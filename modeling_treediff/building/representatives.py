"""The representative of each node: the most frequent token below it, by which it is shown as text."""

from dataclasses import replace

import numpy as np
import torch

from modeling_treediff.vocabulary_tree import VocabularyTree


def with_representatives(tree: VocabularyTree, token_counts: np.ndarray) -> VocabularyTree:
    """Return a tree whose nodes are represented by the most frequent token below them, the lowest id among equals.

    Args:
        tree: stays as it is.
        token_counts: (V,) frequencies; ValueError for another shape.

    """
    counts_V = np.asarray(token_counts)
    if counts_V.shape != (tree.vocab_size,):
        raise ValueError(f"token_counts must have shape ({tree.vocab_size},), got {counts_V.shape}.")
    rarest_first = np.lexsort((-np.arange(tree.vocab_size), counts_V))
    token_N, ancestor_VD = np.arange(tree.num_nodes), tree.ancestors.cpu().numpy()
    for level in range(tree.tree_depth):
        token_N[ancestor_VD[rarest_first, level]] = rarest_first  # the last write wins
    return replace(tree, representative=torch.from_numpy(token_N))
