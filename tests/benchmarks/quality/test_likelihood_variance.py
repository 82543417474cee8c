"""Estimators of the bound: unbiased beside one another, and how much less one varies."""

import pytest
import torch
from helpers.models import SEQUENTIAL, tiny_model

from benchmarks.quality.likelihood_variance import ESTIMATORS, estimate, summary
from modeling_treediff.building.balanced import random_tree


def test_all_estimators_have_one_mean():
    model = tiny_model(random_tree(20, 6, 2), **SEQUENTIAL)
    windows = torch.randint(0, 20, (8, 8), generator=torch.Generator().manual_seed(0))
    found = {name: [estimate(name, model, windows, 2, seed) for seed in range(200)] for name in ESTIMATORS}
    counts = summary(found["counts"], found["plain"])
    for values in found.values():
        figures = summary(values, found["plain"])
        error = (figures["standard_deviation"] ** 2 + counts["standard_deviation"] ** 2) ** 0.5 / 200**0.5
        assert abs(figures["mean"] - counts["mean"]) < 4 * error
    assert counts["variance_ratio"] > 1


def test_half_the_spread_is_a_quarter_of_the_variance():
    figures = summary([1.0, 2.0, 3.0], [2.0, 4.0, 6.0])
    assert figures == pytest.approx({"mean": 2.0, "standard_deviation": 1.0, "variance_ratio": 4.0})
