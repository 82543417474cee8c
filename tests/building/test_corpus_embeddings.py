"""Embeddings from neighbours: near for tokens of one class, zero for unseen ones, the same with either solver."""

import numpy as np
import pytest
from scipy import sparse

from modeling_treediff.building import build_tree, count_text, token_embeddings


def embed(documents, vocab_size, dimensions):
    return token_embeddings(count_text(documents, vocab_size).follows, dimensions)


def test_tokens_of_one_class_lie_together():
    """Classes follow each other in a cycle, tokens within a class are drawn freely; ids are shuffled."""
    generator = np.random.default_rng(0)
    name = generator.permutation(100)
    text = [name[np.arange(200) % 10 * 10 + generator.integers(10, size=200)] for _ in range(200)]
    first_level = build_tree(embed(text, 100, dimensions=9), 10, 2).paths[name, 0].reshape(10, 10)
    assert (first_level == first_level[:, :1]).all()
    assert len(first_level[:, 0].unique()) == 10


def test_sparse_and_dense_solvers_agree():
    text = [np.random.default_rng(0).zipf(1.5, size=20000) % 150]
    sparse_solver, dense_solver = embed(text, 150, dimensions=20), embed(text, 150, dimensions=140)
    assert sparse_solver.shape == (150, 20) and dense_solver.shape == (150, 140)
    leading = dense_solver[:, :20] / np.maximum(np.linalg.norm(dense_solver[:, :20], axis=1, keepdims=True), 1e-300)
    np.testing.assert_allclose(sparse_solver, leading, atol=1e-8)


def test_the_dense_formula_holds_by_hand():
    """Positive PMI with smoothed contexts on both sides, then U sqrt(S), rows of length one."""
    count = np.random.default_rng(0).integers(0, 4, size=(12, 12))

    def positive_pmi(counts):
        smoothed = counts.sum(axis=0) ** 0.75
        expected = counts.sum(axis=1)[:, None] * smoothed / smoothed.sum()
        return np.log(np.maximum(counts / expected, 1))

    vectors, values, _ = np.linalg.svd(np.hstack([positive_pmi(count.T), positive_pmi(count)]))
    expected = vectors * np.sqrt(values)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    embeddings = token_embeddings(sparse.csr_array(count), dimensions=12)
    np.testing.assert_allclose(embeddings @ embeddings.T, expected @ expected.T, atol=1e-12)


def test_unseen_tokens_are_zero_and_documents_do_not_touch():
    embeddings = embed([[0, 1, 0, 1], [2], [3, 0]], 6, dimensions=8)
    assert embeddings.shape == (6, 8) and np.isfinite(embeddings).all()
    assert not embeddings[[2, 4, 5]].any()
    np.testing.assert_allclose(np.linalg.norm(embeddings[[0, 1, 3]], axis=1), 1)


def test_a_text_without_neighbours_is_refused():
    with pytest.raises(ValueError, match="no two neighbouring tokens"):
        embed([[1], []], 4, dimensions=2)
