"""Vectors for all nodes of a tree from those of its tokens, in full or factorised.

Shape legend: V tokens, N nodes, I internal nodes, E hidden size, R rank.
"""

from dataclasses import dataclass

import torch
from torch.nn import functional as F

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


@dataclass(frozen=True)
class FactorisedVectors:
    """Increments along the path: those of tokens as W v, those of internal nodes in full.

    Attributes:
        nodes: (N - 1, R) v of every node but the root, 0 for internal ones; of mean square 1 / R over tokens, as new.
        projection: (E, R) W.
        internal: (I, E) increments of the internal nodes.
        error: what the tokens' increments lose, the Frobenius norm of the rest over theirs; 0 if they are all 0.

    """

    nodes: torch.Tensor
    projection: torch.Tensor
    internal: torch.Tensor
    error: float


def factorised_vectors(increment_NE: torch.Tensor, vocab_size: int, rank: int) -> FactorisedVectors:
    """Return the best factorisation of the tokens' increments, in the least squares, by truncated SVD."""
    token_VE, internal_IE = increment_NE[:vocab_size].double(), increment_NE[vocab_size:]
    squared_E, direction_EE = torch.linalg.eigh(token_VE.mT @ token_VE)  # the squares of the singular values, ascending
    squared_R, direction_ER = squared_E[-rank:], direction_EE[:, -rank:]
    kept_R = squared_R > squared_E[-1] * len(squared_E) * torch.finfo(torch.float64).eps  # the others are rounding
    length_R = (squared_R.clamp(min=0) * rank / vocab_size).sqrt()
    token_VR = token_VE @ direction_ER * torch.where(kept_R, 1 / length_R, 0)
    loss_VE = token_VE - token_VE @ direction_ER @ direction_ER.mT
    surplus = rank - len(squared_R)  # there are no more directions than E
    return FactorisedVectors(
        nodes=F.pad(token_VR, (0, surplus, 0, len(internal_IE) - 1)).to(increment_NE.dtype),
        projection=F.pad(direction_ER * length_R * kept_R, (0, surplus)).to(increment_NE.dtype),
        internal=internal_IE,
        error=float(loss_VE.norm() / token_VE.norm()) if token_VE.any() else 0.0,
    )
