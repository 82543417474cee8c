"""What every schedule of the forward process is: probabilities, rates, times to draw and times to generate at.

Shape legend: B sequences, D depth of the leaves.

A position loses depth one level at a time while t goes from 0 (token) to 1 (root). alpha_k(t) = P(depth at t >= k), so
pi_k = alpha_k - alpha_{k+1} is the probability of depth k, and the flux f_k = -alpha_k' that of falling from depth k to
k-1 per unit time. The reverse jump rate from depth k-1 to k is f_k / pi_{k-1}, the weight of the bound.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch

SAMPLING_EPS = 1e-3


class LevelSchedule(ABC):
    """Base of all schedules. Column k-1 of a (B, D) result is level k.

    Attributes:
        depth: D.
        boundaries: times from 0 to 1 between which all rates are smooth; generation makes equally many steps in each
            interval, and no time that is drawn lies close to the start of one.

    """

    boundaries: tuple[float, ...] = (0.0, 1.0)

    def __init__(self, depth: int) -> None:
        """Make the schedule of a tree whose leaves have this depth."""
        self.depth = depth

    @staticmethod
    def from_config(config: Any) -> "LevelSchedule":  # noqa: ANN401 -- a TreeDiffConfig
        """Return the schedule that a TreeDiffConfig names."""
        from .level_schedules import make_schedule

        return make_schedule(config)

    @abstractmethod
    def alpha(self, timesteps: torch.Tensor) -> torch.Tensor:
        """(B,) times in [0, 1] -> (B, D+1) probabilities that a position still has depth >= k, k = 0..D."""

    @abstractmethod
    def flux(self, timesteps: torch.Tensor) -> torch.Tensor:
        """(B,) -> (B, D): f_k = -d alpha_k / dt, in 1 / unit time; each integrates to 1 over [0, 1]."""

    @abstractmethod
    def weight(self, timesteps: torch.Tensor) -> torch.Tensor:
        """(B,) -> (B, D): f_k / pi_{k-1}, what the bound charges a position of depth k-1; finite everywhere."""

    @abstractmethod
    def reverse_step(self, start: float, end: float) -> torch.Tensor:
        """Times end < start -> (D+1, D+1) float64: P(depth j at `end` | depth d at `start`), row d, column j."""

    @abstractmethod
    def hitting_times(self, depth: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
        """(n,) depths at time 1 and (n, D) float64 from U[0, 1) -> (n, D): when the reverse process reaches each level.

        Falling along a row; inf for levels that are reached already. Drawn exactly, without time steps.
        """

    def deepest_beside(self, depth: int) -> int:
        """Return the greatest depth at which positions stand beside one of this depth, under this process."""
        return self.depth

    def sample_times(
        self,
        batch_size: int,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        sampling_eps: float = SAMPLING_EPS,
    ) -> torch.Tensor:
        """Draw (B,) times, each uniform on its own, together spread evenly over [0, 1] (low discrepancy).

        No time lies closer than `sampling_eps` of an interval to its start, where the weight is unbounded. A
        larger value trades bias for less variance, proportional to log(1 / sampling_eps): useful for gradients,
        as in the clipped schedules of arXiv 2503.09573, not for measuring. The expected weight of level k becomes
        alpha_k(s) / (1 - s) for binomial and poisson, s the fraction: at 0.1 and depth 2, 1.10 and 0.90 for binomial
        instead of 1 and 1. It stays 1 for sequential, where every level has an interval of its own.
        """
        device = generator.device if generator is not None else device
        # One time in each of batch_size equal strata; which sequence gets which is random, so none is favoured.
        stratum = torch.randperm(batch_size, generator=generator, device=device)
        within = torch.rand(batch_size, generator=generator, device=device)
        return self.place_times((stratum + within) / batch_size, sampling_eps)

    def place_times(self, uniform: torch.Tensor, sampling_eps: float = SAMPLING_EPS) -> torch.Tensor:
        """(B,) uniform numbers in [0, 1) -> (B,) times, uniform where the schedule allows them."""
        edge = torch.tensor(self.boundaries, dtype=uniform.dtype, device=uniform.device)
        interval = (torch.bucketize(uniform, edge, right=True) - 1).clamp(max=len(edge) - 2)
        start, length = edge[interval], edge[interval + 1] - edge[interval]
        fraction = ((uniform - start) / length).clamp(0, 1)
        return start + length * (sampling_eps + (1 - sampling_eps) * fraction)

    def loss_times(self, level: torch.Tensor, quantile: torch.Tensor) -> torch.Tensor:
        """(n,) levels 1..D and (n,) quantiles in [0, 1) -> (n,) float64 times at which that level is lost.

        A quantile drawn uniformly gives a time drawn from the level's flux: the inverse of 1 - alpha_k, by bisection.
        """
        low = torch.zeros(quantile.shape, dtype=torch.float64, device=quantile.device)
        high = torch.ones_like(low)
        for _ in range(60):
            middle = (low + high) / 2
            lost = 1 - self.alpha(middle).gather(1, level[:, None])[:, 0]
            low, high = torch.where(lost < quantile, middle, low), torch.where(lost < quantile, high, middle)
        return high

    def reverse_times(self, num_steps: int | Sequence[int]) -> torch.Tensor:
        """Return the float64 times from 1 down to 0 that generation stops at.

        num_steps are all steps, divided evenly over the intervals, or the steps of each interval, the last one, that of
        the coarsest level, first.
        """
        edge = torch.tensor(self.boundaries, dtype=torch.float64).flip(0)
        counts = self.split_steps(num_steps) if isinstance(num_steps, int) else num_steps
        times = [edge[:1]]
        for index, count in enumerate(counts):
            left = torch.arange(count - 1, -1, -1, dtype=torch.float64) / count
            times.append(edge[index + 1] + (edge[index] - edge[index + 1]) * left)
        return torch.cat(times)

    def split_steps(self, num_steps: int) -> list[int]:
        """Return the steps of each interval, the last one in time first; ValueError if there is not one for each."""
        intervals = len(self.boundaries) - 1
        if num_steps < intervals:
            raise ValueError(
                f"num_steps={num_steps} is too small: each of the tree's {intervals} levels needs one step."
            )
        steps, extra = divmod(num_steps, intervals)
        return [steps + (index < extra) for index in range(intervals)]


def precise(timesteps: torch.Tensor) -> torch.Tensor:
    """Return times in float64, for differences of probabilities; as they are on devices without it."""
    return timesteps if timesteps.device.type == "mps" else timesteps.double()
