"""Ratios and their errors against leaving out one unit at a time; intervals; what JSON can hold."""

import math

import numpy as np
import pytest

from modeling_treediff.evaluation.intervals import exponential, finite, normal_interval, ratio_and_error


def test_the_error_of_a_ratio_is_that_of_the_jackknife():
    random = np.random.default_rng(0)
    denominators = random.integers(1, 40, 500).astype(float)
    numerators = denominators * random.gamma(2, 1, 500)
    ratio, error = ratio_and_error(numerators, denominators)
    left_out = (numerators.sum() - numerators) / (denominators.sum() - denominators)
    assert ratio == pytest.approx(numerators.sum() / denominators.sum())
    assert error == pytest.approx(math.sqrt(499 * left_out.var()), rel=0.02)


def test_one_unit_has_a_ratio_and_no_known_error():
    assert ratio_and_error(np.array([3.0]), np.array([2.0])) == (1.5, math.inf)


def test_no_interval_of_a_code_length_is_below_zero():
    assert normal_interval(5.0, 1.0) == pytest.approx((3.04, 6.96))
    assert normal_interval(1.0, 10.0) == pytest.approx((0.0, 20.6))


def test_json_gets_none_for_what_is_too_large():
    assert exponential(1.0) == pytest.approx(math.e)
    with np.errstate(over="ignore"):
        assert exponential(1e6) == math.inf
    assert finite(math.inf) is None and finite(2.5) == 2.5 and finite("inf") == "inf"
