"""Distributions of the number of levels that a position has lost: binomial and Poisson.

Shape legend: D depth of the leaves, m numbers of levels.
"""

import math

import torch


def each_level_back(depth: int, still_lost: float) -> torch.Tensor:
    """Return (D+1, D+1): every level above a position comes back on its own, unless with this probability."""
    step = torch.zeros(depth + 1, depth + 1, dtype=torch.float64)
    for start in range(depth + 1):
        lost = depth - start
        for back in range(lost + 1):
            step[start, start + back] = math.comb(lost, back) * (1 - still_lost) ** back * still_lost ** (lost - back)
    return step


def poisson_terms(number: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """(m,) numbers l and means of any shape -> (..., m): mean^l / l!."""
    number = number.to(mean.dtype)
    return mean[..., None] ** number / torch.lgamma(number + 1).exp()


def poisson_tail(at_least: int, mean: torch.Tensor) -> torch.Tensor:
    """P(Poisson(mean) >= at_least), to rounding errors also where it is small; mean may be infinite."""
    number = torch.arange(2 * at_least + 40, device=mean.device)
    small, large = mean.clamp(max=at_least), mean.clamp(at_least, 700.0)
    rising = poisson_terms(number[at_least:], small).sum(dim=-1) * (-small).exp()
    falling = 1 - poisson_terms(number[:at_least], large).sum(dim=-1) * (-large).exp()
    return torch.where(mean < at_least, rising, falling)
