"""Assigning many points to clusters of limited size so that the total score is close to its maximum.

Shape legend: N points, K clusters, U points without a cluster yet.
"""

import numpy as np

STEP = 0.05  # the bid increment, as a fraction of a typical spread of scores
PATIENCE = 50  # rounds until the increment doubles


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
    waiting_U, rounds = np.arange(num_points), 0
    while len(waiting_U):
        rounds += 1
        if rounds % PATIENCE == 0:
            step = min(2 * step, largest_step)
        choice_U, margin_U = _best_and_margin(score_NK[waiting_U] - price_K)
        owner_N[waiting_U] = choice_U
        bid_N[waiting_U] = price_K[choice_U] + margin_U + step
        size_K = np.bincount(owner_N, minlength=num_clusters)
        contested_K = np.zeros(num_clusters, dtype=bool)
        contested_K[choice_U] = True
        member = np.flatnonzero((contested_K & (size_K >= capacity))[owner_N])
        member = member[np.lexsort((-bid_N[member], owner_N[member]))]  # stable: equal bids in order of index
        cluster = owner_N[member]
        rank = np.arange(len(member)) - np.searchsorted(cluster, cluster)
        last_kept = member[rank == capacity - 1]
        price_K[owner_N[last_kept]] = bid_N[last_kept]
        waiting_U = np.sort(member[rank >= capacity])
    return owner_N


def _best_and_margin(value_UK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return each row's best column and by how much it beats the second best."""
    row_U = np.arange(len(value_UK))
    best_U = value_UK.argmax(axis=1)
    highest_U = value_UK[row_U, best_U]
    if value_UK.shape[1] == 1:
        return best_U, np.zeros(len(value_UK))
    value_UK[row_U, best_U] = -np.inf
    return best_U, highest_U - value_UK.max(axis=1)
