"""Assigning many points to clusters of limited size so that the total score is close to its maximum.

Shape legend: N points, K clusters, C the capacity of each or the rows of a chunk, U points without a cluster yet.
"""

import numpy as np

STEP = 0.05  # the bid increment, as a fraction of a typical spread of scores
PATIENCE = 50  # rounds until the increment doubles
CHUNK = 512  # rows whose values are computed at a time


def auction(score_NK: np.ndarray, capacity: int) -> np.ndarray:
    """Assign points to clusters of limited capacity so that the total score is close to its maximum; return (N,).

    The auction for transportation problems (Bertsekas and Castanon, 1989): every point without a cluster bids for the
    best one at current prices, as much as it gains over its second choice plus an increment; a full cluster keeps its
    highest bids, and its lowest one becomes its price. A cluster with room costs nothing. At the end no point could
    gain more than the increment elsewhere, so the total is within N increments of the optimum. The increment doubles
    after every 50 rounds, which bounds the work when many points want the same few places, but not beyond the largest
    spread of scores: that price drives anyone to a cluster with room, and prices stay exact integers.
    """
    num_points, num_clusters = score_NK.shape
    spread_N = score_NK.max(axis=1) - score_NK.min(axis=1)
    step, largest_step = 1 + int(STEP * np.median(spread_N)), 1 + int(spread_N.max())
    owner_N, bid_N = np.zeros(num_points, dtype=np.int64), np.zeros(num_points)
    price_K = np.zeros(num_clusters)
    member_KC = np.full((num_clusters, min(capacity, num_points)), -1)
    waiting_U, rounds = np.arange(num_points), 0
    while len(waiting_U):
        rounds += 1
        if rounds % PATIENCE == 0:
            step = min(2 * step, largest_step)
        choice_U, margin_U = _best_and_margin(score_NK, price_K, waiting_U)
        owner_N[waiting_U] = choice_U
        bid_N[waiting_U] = price_K[choice_U] + margin_U + step
        wanted = np.unique(choice_U)
        settled = member_KC[wanted]
        member = np.sort(np.concatenate([settled[settled >= 0], waiting_U]))
        member = member[np.lexsort((-bid_N[member], owner_N[member]))]  # stable: equal bids in order of index
        cluster = owner_N[member]
        rank = np.arange(len(member)) - np.searchsorted(cluster, cluster)
        kept = rank < capacity
        member_KC[wanted] = -1
        member_KC[cluster[kept], rank[kept]] = member[kept]
        last_place = rank == capacity - 1
        price_K[cluster[last_place]] = bid_N[member[last_place]]
        waiting_U = np.sort(member[~kept])
    return owner_N


def _best_and_margin(score_NK: np.ndarray, price_K: np.ndarray, row_U: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the best column of each of these rows, less the prices, and by how much it beats the second best."""
    best_U, margin_U = np.zeros(len(row_U), dtype=np.int64), np.zeros(len(row_U))
    if len(price_K) == 1:
        return best_U, margin_U
    for start in range(0, len(row_U), CHUNK):  # small enough for the cache
        part = slice(start, start + CHUNK)
        value_CK = score_NK[row_U[part]]
        value_CK -= price_K
        index_C = np.arange(len(value_CK))
        best_U[part] = value_CK.argmax(axis=1)
        highest_C = value_CK[index_C, best_U[part]]
        value_CK[index_C, best_U[part]] = -np.inf
        margin_U[part] = highest_C - value_CK.max(axis=1)
    return best_U, margin_U
