"""Ratios with standard errors and confidence intervals."""

import math
from typing import Any

import numpy as np

NORMAL_QUANTILE = 1.96  # of a two-sided 95 % interval

Interval = tuple[float, float]


def normal_interval(value: float, error: float) -> Interval:
    """Normal 95 % interval; a code length, or a bound on one, is never below 0."""
    return max(value - NORMAL_QUANTILE * error, 0.0), value + NORMAL_QUANTILE * error


def exponential(value: float) -> float:
    """Return exp(value); infinity in place of an OverflowError."""
    return float(np.exp(np.float64(value)))


def finite(value: Any) -> Any:
    """Replace infinity by None: JSON has none."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def ratio_and_error(numerators: np.ndarray, denominators: np.ndarray) -> tuple[float, float]:
    """Return sum / sum over independent units and its standard error to first order (the delta method)."""
    ratio = numerators.sum() / denominators.sum()
    count = len(numerators)
    if count < 2:
        return float(ratio), math.inf
    spread = np.linalg.norm(numerators - ratio * denominators) * math.sqrt(count / (count - 1))
    return float(ratio), float(spread / denominators.sum())
