"""Token embeddings from text alone: the SVD of the PMI between tokens and their neighbours.

Positive pointwise mutual information with the left and the right neighbour, reduced by a truncated singular value
decomposition (Levy and Goldberg, "Neural word embedding as implicit matrix factorization", 2014; context smoothing
from Levy, Goldberg and Dagan, 2015). Neighbours at distance one make tokens of the same grammatical role alike.

Shape legend: V tokens, C contexts (tokens on one side, or on both), E dimensions of an embedding.
"""

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import svds

CONTEXT_SMOOTHING = 0.75  # exponent on the neighbours' frequencies; below 1 it damps the PMI of rare neighbours
RANK_TOLERANCE = 1e-9  # smaller singular values, as a fraction of the largest, are zeros with rounding errors
SINGULAR_VALUE_POWER = 0.5  # how strongly the leading dimensions outweigh the others, 0 to 1


def token_embeddings(follows: sparse.csr_array, dimensions: int = 64) -> np.ndarray:
    """Embed every token by its left and right neighbours.

    Args:
        follows: (V, V) counts of neighbours, from `count_text`; row a, column b: how often b directly follows a.
        dimensions: E; where the text supports fewer, the last columns are zero.

    Returns:
        (V, E) float64, rows of length one, so that distances are angles; zero rows for tokens without neighbours. The
        same on every run, unless singular values tie exactly, as they can in artificial texts.

    Raises:
        ValueError: no two tokens are neighbours.

    """
    if follows.nnz == 0:
        raise ValueError("The texts hold no two neighbouring tokens: there is nothing to embed from.")
    left_and_right = [_positive_pmi(follows.T.tocsr()), _positive_pmi(follows)]
    matrix_VC = sparse.hstack(left_and_right, format="csr")
    del left_and_right  # it is as large as the matrix
    vectors_VE, values_E = _leading_singular_vectors(matrix_VC, dimensions)
    embedding_VE = vectors_VE * values_E**SINGULAR_VALUE_POWER
    length_V1 = np.linalg.norm(embedding_VE, axis=1, keepdims=True)
    # A token that the kept dimensions do not see has a length of rounding error only; scaled up it would be noise.
    seen_V1 = length_V1 > 1e-9 * length_V1.max()
    return np.divide(embedding_VE, length_V1, out=np.zeros_like(embedding_VE), where=seen_V1)


def _positive_pmi(counts_VC: sparse.csr_array) -> sparse.csr_array:
    """Return max(0, log(p(token, context) / (p(token) p(context)))) of the (tokens, contexts) counts."""
    token_V = counts_VC.sum(axis=1)
    context_C = counts_VC.sum(axis=0) ** CONTEXT_SMOOTHING
    cells = counts_VC.tocoo()
    pmi = np.log(cells.data * context_C.sum() / (token_V[cells.row] * context_C[cells.col]))
    keep = pmi > 0
    return sparse.csr_array((pmi[keep], (cells.row[keep], cells.col[keep])), shape=counts_VC.shape)


def _leading_singular_vectors(matrix_VC: sparse.csr_array, dimensions: int) -> tuple[np.ndarray, np.ndarray]:
    """Return left singular vectors (V, E) and singular values (E,), largest first, zeros where the rank ends."""
    size = min(matrix_VC.shape)
    if dimensions >= size // 2:
        vectors, values, _ = np.linalg.svd(matrix_VC.toarray(), full_matrices=False)
    else:
        # tol=0 iterates to machine precision and v0 fixes the start: the same vectors on every run.
        start = np.random.Generator(np.random.PCG64(0)).random(size)
        vectors, values, _ = svds(matrix_VC, k=dimensions, tol=0, v0=start, return_singular_vectors="u")
    order = np.argsort(-values, kind="stable")[:dimensions]
    order = order[values[order] > RANK_TOLERANCE * values.max()]  # the others' vectors are arbitrary
    vectors, values = vectors[:, order], values[order]
    largest = vectors[np.abs(vectors).argmax(axis=0), np.arange(len(order))]
    vectors = vectors * np.where(largest < 0, -1.0, 1.0)  # the sign of a singular vector is arbitrary
    missing = dimensions - len(order)
    return np.pad(vectors, ((0, 0), (0, missing))), np.pad(values, (0, missing))
