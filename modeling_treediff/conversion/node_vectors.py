"""Vectors for all nodes of a tree from those of its tokens.

Shape legend: V tokens, N nodes, I internal nodes, E hidden size.
"""

import torch

from modeling_treediff.vocabulary_tree import VocabularyTree


def node_vectors(token_VE: torch.Tensor, tree: VocabularyTree) -> torch.Tensor:
    """(V, E) -> (N, E): a leaf has its token's vector, an internal node the mean over all tokens below it."""
    nodes_VD = tree.ancestors[:, :-1] - tree.vocab_size  # internal nodes are numbered after the leaves
    num_internal = tree.num_nodes - tree.vocab_size
    count_I = torch.bincount(nodes_VD.flatten(), minlength=num_internal)
    total_IE = torch.zeros(num_internal, token_VE.shape[1], dtype=torch.float64)
    exact_VE = token_VE.double()
    for node_V in nodes_VD.unbind(1):
        total_IE.index_add_(0, node_V, exact_VE)
    return torch.cat([token_VE, (total_IE / count_I[:, None]).to(token_VE.dtype)])


def path_increments(vector_NE: torch.Tensor, tree: VocabularyTree) -> torch.Tensor:
    """(N, E) -> (N, E): what each node adds to its parent's vector; the root, which has none, its own.

    Inverse: the sum of the increments of a node and of all its ancestors is the node's vector, up to rounding.
    """
    parent_N = tree.parent
    above_NE = vector_NE[parent_N.clamp(min=0)] * (parent_N >= 0)[:, None]
    return vector_NE - above_NE
