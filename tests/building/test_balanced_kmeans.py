"""Balanced k-means: exact arithmetic, clusters of equal size."""

import numpy as np
import pytest

from modeling_treediff.building.balanced_kmeans import balanced_kmeans, centroids, quantise, quantise_weights


def random_points(rows, columns=5, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, columns))


def test_arithmetic_is_integer_and_exact():
    points = quantise(random_points(300, 40) * 1e-3)
    weights = quantise_weights(np.random.default_rng(0).random(300))
    labels = np.arange(300) % 7
    centres = centroids(points, weights, labels, np.zeros((7, 40)))
    for array in (points, weights, centres):
        assert np.array_equal(array, np.rint(array))
    assert (points**2).sum(axis=1).max() < 2**24 * 1.01
    assert (points**2).sum(axis=1).max() > 2**22 * 0.99  # the bits are used
    exact = points.astype(np.int64) @ centres.astype(np.int64).T
    assert np.array_equal(points @ centres.T, exact)


def test_contested_clusters_end():
    """Blobs of the wrong sizes: most of one must move into the room of another, far away."""
    points = np.concatenate([random_points(900) * 0.01, random_points(100) * 0.01 + 100])
    labels = balanced_kmeans(quantise(points), 10, 100, np.random.default_rng(0))
    assert np.array_equal(np.bincount(labels), np.full(10, 100))
    heavy_tailed = quantise(np.exp(20 * np.random.default_rng(0).random((2000, 2))))
    assert np.bincount(balanced_kmeans(heavy_tailed, 40, 50, np.random.default_rng(0))).tolist() == [50] * 40
    with pytest.raises(ValueError, match="cannot hold"):
        balanced_kmeans(np.zeros((10, 2)), 3, 3, np.random.default_rng(0))
