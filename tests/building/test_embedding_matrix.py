"""Embeddings before clustering: principal components against numpy's SVD, angles kept, bad numbers refused."""

import numpy as np
import pytest
import torch

from modeling_treediff.building import reduce_embeddings


def cosines(rows):
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit @ unit.T


@pytest.mark.parametrize("dimensions", [3, 10])
def test_it_keeps_the_leading_principal_components(dimensions):
    points = np.random.default_rng(0).normal(size=(60, 10)) * np.arange(1, 11) + 5
    centred = points - points.mean(axis=0)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    reduced = reduce_embeddings(points, dimensions)
    assert reduced.shape == (60, dimensions)
    np.testing.assert_allclose(np.linalg.norm(reduced, axis=1), 1)
    np.testing.assert_allclose(cosines(reduced), cosines((left * values)[:, :dimensions]), atol=1e-9)


def test_rows_of_zeros_stay_and_do_not_move_the_mean():
    points = np.random.default_rng(0).normal(size=(20, 4)) + 3
    with_zeros = np.concatenate([points, np.zeros((30, 4))])
    reduced = reduce_embeddings(with_zeros)
    assert not reduced[20:].any()
    np.testing.assert_allclose(reduced[:20], reduce_embeddings(points))
    assert not reduce_embeddings(np.zeros((5, 300))).any()


def test_precision_and_library_do_not_matter():
    points = torch.randn(30, 200, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    expected = reduce_embeddings(points.double().numpy())
    assert expected.shape == (30, 128)
    np.testing.assert_allclose(reduce_embeddings(points.requires_grad_()), expected)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_refused(bad):
    points = np.ones((4, 200))
    points[2, 5] = bad
    with pytest.raises(ValueError, match="tokens 2"):
        reduce_embeddings(points)
