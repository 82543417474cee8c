"""Class-based bigram clustering: tokens with the same clusters beside them in a text share a cluster.

The objective is the classical one of class-based language models, the average mutual information of neighbouring
classes (Brown et al., "Class-based n-gram models of natural language", 1992), here with a limit on the size of a class.
All tokens are assigned at once, each to the cluster whose neighbours are likeliest for it, and the clusters' neighbours
are counted anew: k-means with relative entropy as its distance (Dhillon, Mallela and Kumar, "A divisive
information-theoretic feature clustering algorithm for text classification", 2003), balanced by an auction.

Counts are integers and logarithms are rounded to integers, so that sums are exact on every machine.

Shape legend: V tokens, N tokens of a group, K clusters, C context classes, E dimensions of an embedding.
"""

from collections.abc import Callable

import numpy as np
from scipy import sparse

from .auction import auction
from .balanced_kmeans import LENGTH_BITS, centroids, membership

ROUNDS = 15
SMOOTHING = 0.5  # added to every count of a cluster and a context
LOG_UNIT = 64  # logarithms are in 1/64 nat
Neighbours = tuple[sparse.csr_array, sparse.csr_array]


def neighbour_classes(neighbours: Neighbours, class_V: np.ndarray, num_classes: int) -> sparse.csr_array:
    """Count the classes right and left of every token.

    Args:
        neighbours: two (V, V) counts: how often the column's token follows the row's, and how often it precedes it.
        class_V: (V,) classes, 0..C-1.
        num_classes: C.

    Returns:
        (V, 2C), right neighbours in the first C columns.

    """
    member_VC = membership(class_V, num_classes).T.tocsr()
    return sparse.hstack([side_VV @ member_VC for side_VV in neighbours], format="csr")


def cluster_by_neighbours(
    cluster_N: np.ndarray,
    num_clusters: int,
    capacity: int,
    contexts: Callable[[np.ndarray], sparse.csr_array],
    point_NE: np.ndarray,
    advance: Callable[[int], object] = lambda _: None,
) -> np.ndarray:
    """Improve a clustering by the clusters of each token's neighbours in the text.

    Args:
        cluster_N: (N,) cluster of each token, 0..K-1.
        num_clusters: K.
        capacity: the largest size of a cluster.
        contexts: gives (N, 2C) counts of the classes right and left of each token, as `neighbour_classes` does, from
            the clusters so far: they may be the classes themselves.
        point_NE: (N, E) from `quantise`. The squared distance of the longest of them from the origin weighs as much as
            a nat, so tokens that the text has not, or hardly, stay with their like.
        advance: called after every round with N, for a progress bar.

    Returns:
        (N,) cluster of each token.

    """
    for _ in range(ROUNDS):
        score_NK = _log_likelihoods(cluster_N, num_clusters, contexts(cluster_N))
        score_NK += _similarities(cluster_N, num_clusters, point_NE)
        cluster_N = auction(score_NK, capacity)
        advance(len(cluster_N))
    return cluster_N


def _log_likelihoods(cluster_N: np.ndarray, num_clusters: int, context_NC: sparse.csr_array) -> np.ndarray:
    """Return (N, K) integers: log probability, in 1/64 nat, of each token's contexts under each cluster's."""
    count_KC = (membership(cluster_N, num_clusters) @ context_NC).toarray() + SMOOTHING
    sides = np.split(count_KC, 2, axis=1)
    log_KC = np.hstack([np.log(side / side.sum(axis=1, keepdims=True)) for side in sides])
    return context_NC @ np.rint(LOG_UNIT * log_KC).T


def _similarities(cluster_N: np.ndarray, num_clusters: int, point_NE: np.ndarray) -> np.ndarray:
    """Return (N, K) integers: how near, less squared distance, each point is to each cluster's centroid."""
    previous_KE = np.zeros((num_clusters, point_NE.shape[1]))
    centroid_KE = centroids(point_NE, np.ones(len(point_NE)), cluster_N, previous_KE)
    score_NK = point_NE @ (2 * centroid_KE.T)
    score_NK -= (centroid_KE * centroid_KE).sum(axis=1)
    score_NK *= LOG_UNIT / 4**LENGTH_BITS
    return np.rint(score_NK, out=score_NK)
