"""The auction against the optimal assignment."""

import numpy as np
from scipy.optimize import linear_sum_assignment

from modeling_treediff.building.auction import auction


def test_auction_is_near_the_optimum_and_respects_capacity():
    score = np.rint(np.random.default_rng(0).random((60, 6)) * 1e6)
    rows, columns = linear_sum_assignment(np.repeat(score, 10, axis=1), maximize=True)
    best = score[rows, columns // 10].sum()
    owner = auction(score.copy(), 10)
    assert np.bincount(owner, minlength=6).max() == 10
    assert score[np.arange(60), owner].sum() > 0.95 * best
