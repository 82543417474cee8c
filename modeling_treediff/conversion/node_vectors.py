"""Vectors for all nodes of a tree from those of its tokens, in full or factorised.

Shape legend: V tokens, N nodes, I internal nodes, E hidden size, R rank.
"""

from dataclasses import dataclass

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


@dataclass(frozen=True)
class FactorisedVectors:
    """Vectors of tokens as W v.

    Attributes:
        tokens: (V, R) v, of mean square 1 / R in every column, as in a new embedding.
        projection: (E, R) W; 0 in columns that have no direction left, where v is random, for training to use them.
        error: what is lost, the Frobenius norm of the rest over that of all vectors; 0 if these are all 0.

    """

    tokens: torch.Tensor
    projection: torch.Tensor
    error: float


def factorised_vectors(token_VE: torch.Tensor, rank: int) -> FactorisedVectors:
    """Return the best factorisation of the tokens' vectors, in the least squares, by truncated SVD.

    What is random is drawn from torch's global generator.
    """
    exact_VE = token_VE.double()
    squared_E, direction_EE = torch.linalg.eigh(exact_VE.mT @ exact_VE)  # the squares of the singular values, ascending
    direction_ER, squared_R = direction_EE[:, -rank:], squared_E[-rank:]
    # The others are rounding.
    kept = (squared_R > squared_E[-1] * len(squared_E) * torch.finfo(torch.float64).eps).nonzero()[:, 0]
    length = (squared_R[kept] * rank / len(token_VE)).sqrt()
    token_VR = torch.randn(len(token_VE), rank, dtype=torch.float64) * rank**-0.5
    projection_ER = torch.zeros(token_VE.shape[1], rank, dtype=torch.float64)
    token_VR[:, kept] = exact_VE @ direction_ER[:, kept] / length
    projection_ER[:, kept] = direction_ER[:, kept] * length
    loss_VE = exact_VE - exact_VE @ direction_ER @ direction_ER.mT
    error = float(loss_VE.norm() / exact_VE.norm()) if exact_VE.any() else 0.0
    return FactorisedVectors(token_VR.to(token_VE.dtype), projection_ER.to(token_VE.dtype), error)
