"""Measures of a clustering: entropy, mutual information of neighbouring classes, similarity within classes.

Probabilities are relative frequencies, without smoothing or correction for the length of the text: on little text all
mutual information is too high, a random tree's by the larger factor. Shape legend: V tokens, M classes, E dimensions.
"""

import numpy as np
from scipy import sparse

from modeling_treediff.vocabulary_tree import VocabularyTree


def counts_below(tree: VocabularyTree, token_counts: np.ndarray) -> np.ndarray:
    """(V,) counts of the tokens -> (N,) of all nodes: the sum over the tokens below each."""
    each = np.repeat(token_counts, tree.tree_depth + 1)
    return np.bincount(tree.ancestors.numpy().ravel(), each, minlength=tree.num_nodes)


def entropy(weight_M: np.ndarray) -> float:
    """Return the entropy in nats of a distribution proportional to weights (M,) >= 0; 0 if there is no weight."""
    weight = weight_M[weight_M > 0].astype(np.float64)
    total = weight.sum()
    return float(np.log(total) - (weight @ np.log(weight)) / total) if len(weight) > 1 else 0.0


def class_bigram_information(follows: sparse.sparray, class_V: np.ndarray) -> float:
    """Return the mutual information, in nats, of the classes of two neighbouring tokens.

    Args:
        follows: (V, V) counts; row a, column b: how often b directly follows a.
        class_V: (V,) class of every token, integers >= 0.

    """
    pairs = sparse.coo_array(follows)
    size = int(class_V.max()) + 1
    cells = sparse.coo_array((pairs.data, (class_V[pairs.row], class_V[pairs.col])), shape=(size, size))
    joint = cells.tocsr().data  # equal cells are summed
    first, second = (np.bincount(class_V[side], pairs.data, size) for side in (pairs.row, pairs.col))
    return max(0.0, entropy(first) + entropy(second) - entropy(joint))


def mean_cosine(unit_VE: np.ndarray, class_V: np.ndarray) -> float | None:
    """Return the mean cosine over all pairs of different tokens that share a class; None if no two do.

    The pairs of n vectors of length one have the sum |u_1 + ... + u_n|^2 - n, so no pair is ever formed.

    Args:
        unit_VE: (V, E) rows of length one; zero rows are left out.
        class_V: (V,) class of every token, integers >= 0.

    """
    seen = np.flatnonzero(unit_VE.any(axis=1))
    size_M = np.bincount(class_V[seen])
    member_MV = sparse.csr_array((np.ones(len(seen)), (class_V[seen], seen)), shape=(len(size_M), len(unit_VE)))
    sum_ME = member_MV @ unit_VE
    pairs = int((size_M * (size_M - 1)).sum())
    return float(((sum_ME * sum_ME).sum() - len(seen)) / pairs) if pairs else None


def unit_rows(embedding_VE: np.ndarray) -> np.ndarray:
    """Scale the rows of (V, E) to length one in float64; zero rows stay."""
    length_V1 = np.linalg.norm(embedding_VE.astype(np.float64), axis=1, keepdims=True)
    return np.divide(embedding_VE, length_V1, out=np.zeros(embedding_VE.shape), where=length_V1 > 0)
