"""Balanced k-means: clusters near in squared distance, none larger than a capacity, the same on every machine.

All arithmetic is on integers held in float64. Points are rounded to integer vectors shorter than 2^12 and centroids
to integers, so a squared distance stays near 2^26 at most, and even a sum over 2^18 points of weight 2^8 below 2^53:
every dot product and sum is exact, whatever the order of summation. The clusters therefore do not depend on the
machine, the BLAS or the number of threads. Only the rounding of the input itself loses information.

Shape legend: N points, E dimensions, K clusters, U points without a cluster yet.
"""

from collections.abc import Callable

import numpy as np
from scipy import sparse

from .auction import auction

LENGTH_BITS = 12
MAX_WEIGHT = 256
MAX_ITERATIONS = 12  # rounds of assignment and new centroids, at most


def quantise(points: np.ndarray) -> np.ndarray:
    """Scale finite points (N, E) by one power of two and round: integers in float64, rows shorter than 2^12."""
    if not np.any(points):
        return np.zeros(points.shape)
    unit = np.ldexp(points.astype(np.float64), -_exponent(np.abs(points).max()))
    return np.rint(np.ldexp(unit, LENGTH_BITS - _exponent(np.sqrt((unit * unit).sum(axis=1).max()))))


def quantise_weights(weights: np.ndarray) -> np.ndarray:
    """Scale weights (N,) >= 0 to integers 1..256 in float64."""
    largest = max(weights.max(initial=0), 1)
    return np.maximum(1.0, np.rint(weights / largest * MAX_WEIGHT))


def balanced_kmeans(
    point_NE: np.ndarray,
    num_clusters: int,
    capacity: int,
    generator: np.random.Generator,
    weight_N: np.ndarray | None = None,
    advance: Callable[[int], object] = lambda _: None,
) -> np.ndarray:
    """Cluster points by Lloyd's iteration in which an auction assigns the points.

    Args:
        point_NE: (N, E) integers in float64, from `quantise`.
        num_clusters: K.
        capacity: the largest size of a cluster; K * capacity >= N.
        generator: randomness of the k-means++ seeding; only its stable stream `random()` is used.
        weight_N: (N,) integers in float64, from `quantise_weights`: how much each point matters.
        advance: called after every iteration with N, for a progress bar.

    Returns:
        (N,) cluster indices in 0..K-1; a cluster may be empty.

    Raises:
        ValueError: the clusters cannot hold the points.

    """
    if num_clusters < 1 or num_clusters * capacity < len(point_NE):
        raise ValueError(f"{num_clusters} clusters of at most {capacity} cannot hold {len(point_NE)} points.")
    weight_N = np.ones(len(point_NE)) if weight_N is None else weight_N
    centroid_KE = _seed_centroids(point_NE, weight_N, num_clusters, generator)
    cluster_N = np.full(len(point_NE), -1)
    for _ in range(MAX_ITERATIONS):
        score_NK = point_NE @ (2 * centroid_KE.T)
        score_NK -= (centroid_KE * centroid_KE).sum(axis=1)
        score_NK *= weight_N[:, None]
        before_N, cluster_N = cluster_N, auction(score_NK, capacity)
        advance(len(point_NE))
        if (cluster_N != before_N).sum() <= len(point_NE) // 1000:
            break
        centroid_KE = centroids(point_NE, weight_N, cluster_N, centroid_KE)
    return cluster_N


def _exponent(value: float) -> int:
    """Return the smallest e with value < 2^e."""
    return int(np.frexp(value)[1])


def _seed_centroids(
    point_NE: np.ndarray, weight_N: np.ndarray, num_clusters: int, generator: np.random.Generator
) -> np.ndarray:
    """Choose K points, each with a probability that grows with its squared distance to those before (k-means++)."""
    length_N = (point_NE * point_NE).sum(axis=1)
    distance_N = np.ones(len(point_NE))
    nearest_N = np.full(len(point_NE), np.inf)
    chosen = []
    for _ in range(num_clusters):
        mass_N = np.cumsum(weight_N * distance_N)
        if mass_N[-1] == 0:  # fewer distinct points than clusters: any point will do
            mass_N = np.arange(1.0, len(point_NE) + 1)
        chosen.append(int(np.searchsorted(mass_N, generator.random() * mass_N[-1], side="right")))
        centre_E = point_NE[chosen[-1]]
        nearest_N = np.minimum(nearest_N, length_N - 2 * (point_NE @ centre_E) + centre_E @ centre_E)
        distance_N = nearest_N
    return point_NE[chosen]


def centroids(point_NE: np.ndarray, weight_N: np.ndarray, cluster_N: np.ndarray, previous_KE: np.ndarray) -> np.ndarray:
    """Return the rounded weighted mean of every cluster; an empty one keeps its previous centroid."""
    num_clusters = len(previous_KE)
    sum_KE = (membership(cluster_N, num_clusters) * weight_N) @ point_NE
    weight_K1 = np.bincount(cluster_N, weight_N, num_clusters)[:, None]
    return np.where(weight_K1 > 0, np.rint(sum_KE / np.maximum(weight_K1, 1)), previous_KE)


def membership(cluster_N: np.ndarray, num_clusters: int) -> sparse.csr_array:
    """Return the (K, N) matrix with a one where a point is in a cluster: its products sum over each cluster."""
    cells = (np.ones(len(cluster_N)), (cluster_N, np.arange(len(cluster_N))))
    return sparse.csr_array(cells, shape=(num_clusters, len(cluster_N)))
