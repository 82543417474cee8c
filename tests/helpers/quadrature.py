"""Exact integrals over the times of a schedule."""

import itertools

import numpy as np

from modeling_treediff import LevelSchedule


def quadrature(schedule: LevelSchedule, points: int = 80):
    """Times and measures of Gauss-Legendre quadrature in every interval of a schedule.

    The substitution 1 - (1 - s)^3 tames the logarithms of the poisson schedule at t = 1.
    """
    node, weight = np.polynomial.legendre.leggauss(points)
    for start, end in itertools.pairwise(schedule.boundaries):
        fraction = (node + 1) / 2
        warped, speed = 1 - (1 - fraction) ** 3, 3 * (1 - fraction) ** 2
        for place, factor in zip(warped, speed * weight / 2, strict=True):
            yield start + (end - start) * place, (end - start) * factor
