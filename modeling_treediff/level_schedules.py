"""When each level of the tree is lost: the schedules; `schedule_base.py` says what their numbers are.

Shape legend: B sequences, D depth of the leaves.

Sources: sequential, Rethinking Token Prediction: Tree-Structured Diffusion Language Model (TDLM, arXiv 2604.03537), on
the flat tree MDLM (arXiv 2406.07524); binomial and poisson, on trees of depth 2, Next Semantic Scale Prediction via
Hierarchical Diffusion Language Models (HDLM) with gamma = 2 and 1; discrete time, Structured Denoising Diffusion Models
in Discrete State-Spaces (D3PM, arXiv 2107.03006).
"""

import math
from collections.abc import Sequence
from typing import Any

import torch

from .lost_levels import each_level_back, poisson_tail, poisson_terms
from .schedule_base import SAMPLING_EPS, LevelSchedule, precise

DEEPEST_POISSON = 8


class SequentialSchedule(LevelSchedule):
    """One level after the other: level k is lost linearly while t crosses its window, level 1 in the last one.

    With u in (0, 1] the fraction of the window crossed and w its length: alpha_k = 1 - u, flux 1 / w, weight
    1 / (w u) = 1 / (t - start of the window). On the flat tree this is MDLM's log-linear schedule and its 1/t.
    """

    def __init__(self, depth: int, level_durations: Sequence[float] | None = None) -> None:
        """Give every level a window: `level_durations`, level 1 first, are relative; by default all are equal."""
        super().__init__(depth)
        lengths = level_durations if level_durations is not None else [1.0] * depth
        if len(lengths) != depth or min(lengths) <= 0 or not math.isfinite(sum(lengths)):
            raise ValueError(f"level_durations must be {depth} positive numbers, one per level, got {list(lengths)}.")
        past = [sum(lengths[index:]) / sum(lengths) for index in range(depth, -1, -1)]
        self.boundaries = (*past[:-1], 1.0)

    def alpha(self, timesteps: torch.Tensor) -> torch.Tensor:  # noqa: D102 -- documented in the base class
        crossed_BD = self._crossed(timesteps).clamp(0, 1)
        return torch.cat([torch.ones_like(crossed_BD[:, :1]), 1 - crossed_BD], dim=1)

    def flux(self, timesteps: torch.Tensor) -> torch.Tensor:  # noqa: D102
        crossed_BD = self._crossed(timesteps)
        return torch.where((crossed_BD > 0) & (crossed_BD <= 1), 1 / self._windows(timesteps)[1], 0.0)

    def weight(self, timesteps: torch.Tensor) -> torch.Tensor:  # noqa: D102
        flux_BD = self.flux(timesteps)
        return flux_BD / torch.where(flux_BD > 0, self._crossed(timesteps), 1.0)

    def reverse_step(self, start: float, end: float) -> torch.Tensor:  # noqa: D102
        before_D, after_D = self._crossed(torch.tensor([start, end], dtype=torch.float64)).clamp(0, 1)
        # Level k comes back with this probability; a position still above a window that lies behind moves at once.
        back_D = 1 - torch.where(before_D > 0, after_D / before_D.clamp(min=1e-300), 0.0)
        back = [*back_D.tolist(), 0.0]
        step = torch.zeros(self.depth + 1, self.depth + 1, dtype=torch.float64)
        for depth in range(self.depth + 1):
            for reached in range(depth, self.depth + 1):
                step[depth, reached] = math.prod(back[depth:reached]) * (1 - back[reached])
        return step

    def deepest_beside(self, depth: int) -> int:  # noqa: D102 -- no two levels are half lost at once
        return min(depth + 1, self.depth)

    def hitting_times(self, depth: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:  # noqa: D102
        start_D, length_D = self._windows(uniform)
        return (start_D + length_D * uniform).masked_fill(_reached(depth, uniform), torch.inf)

    def _windows(self, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return start and length (D,) of each level's window; level 1 has the last one."""
        edge = torch.tensor(self.boundaries, dtype=like.dtype, device=like.device).flip(0)
        return edge[1:], edge[:-1] - edge[1:]

    def _crossed(self, timesteps: torch.Tensor) -> torch.Tensor:
        """(B,) -> (B, D): where t stands in each level's window, 0 at its start and 1 at its end."""
        start_D, length_D = self._windows(timesteps)
        return (timesteps[:, None] - start_D) / length_D


class BinomialSchedule(LevelSchedule):
    """Every level is lost at a time of its own, uniform in [0, 1]: the depth is Binomial(D, 1 - t).

    Weight (D - k + 1) / t. Depth 2 is HDLM with gamma = 2.
    """

    def alpha(self, timesteps: torch.Tensor) -> torch.Tensor:  # noqa: D102
        pi_BD = self._binomial(self.depth, timesteps)
        return pi_BD.flip(1).cumsum(dim=1).flip(1).clamp(max=1)

    def flux(self, timesteps: torch.Tensor) -> torch.Tensor:  # noqa: D102
        return self.depth * self._binomial(self.depth - 1, timesteps)

    def weight(self, timesteps: torch.Tensor) -> torch.Tensor:  # noqa: D102
        above_D = torch.arange(self.depth, 0, -1, dtype=timesteps.dtype, device=timesteps.device)
        time_B1 = timesteps[:, None]
        return torch.where(time_B1 > 0, above_D / torch.where(time_B1 > 0, time_B1, 1.0), 0.0)

    def reverse_step(self, start: float, end: float) -> torch.Tensor:  # noqa: D102
        return each_level_back(self.depth, end / start)

    def hitting_times(self, depth: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:  # noqa: D102
        reached = _reached(depth, uniform)
        return _first_of_lost(uniform).masked_fill(reached, 1.0).cumprod(dim=1).masked_fill(reached, torch.inf)

    @staticmethod
    def _binomial(trials: int, timesteps: torch.Tensor) -> torch.Tensor:
        """(B,) -> (B, trials+1): probability that so many of the levels are not lost."""
        kept = torch.arange(trials + 1, dtype=timesteps.dtype, device=timesteps.device)
        ways = torch.tensor([math.comb(trials, k) for k in range(trials + 1)], dtype=timesteps.dtype)
        time_B1 = timesteps[:, None]
        return ways.to(timesteps.device) * (1 - time_B1) ** kept * time_B1 ** (trials - kept)


class PoissonSchedule(LevelSchedule):
    """Every loss has the same hazard 1 / (1 - t): with L = -log(1 - t), Poisson(L) levels are lost, at most D.

    P(l levels lost) = (1 - t) L^l / l! for l < D, the rest is at the root. Depth 2 is HDLM with gamma = 1. The deeper
    the tree, the closer to t = 1 is the root left: beyond depth 8, closer than numbers in single precision tell.
    """

    def __init__(self, depth: int) -> None:
        """Make the schedule of a tree of depth 1 to 8; ValueError for more."""
        super().__init__(depth)
        if depth > DEEPEST_POISSON:
            raise ValueError(
                f"The poisson schedule is for trees of depth up to {DEEPEST_POISSON}, got {depth}: take binomial."
            )

    def alpha(self, timesteps: torch.Tensor) -> torch.Tensor:  # noqa: D102
        number_BD = (1 - timesteps)[:, None] * self._powers(timesteps)
        return torch.cat([torch.ones_like(number_BD[:, :1]), number_BD.cumsum(dim=1).flip(1)], dim=1)

    def flux(self, timesteps: torch.Tensor) -> torch.Tensor:  # noqa: D102
        return self._powers(timesteps).flip(1)

    def weight(self, timesteps: torch.Tensor) -> torch.Tensor:  # noqa: D102
        losses_B1 = self._losses(precise(timesteps))[:, None]
        moving_B1 = losses_B1 > 0
        losses_B1 = torch.where(moving_B1, losses_B1, 1.0)
        above_D = torch.arange(self.depth - 1, 0, -1, dtype=losses_B1.dtype, device=timesteps.device)
        below_root_BD = above_D / ((-losses_B1).exp() * losses_B1)
        leaving_B1 = poisson_terms(torch.tensor([self.depth - 1], device=timesteps.device), losses_B1[:, 0])
        root_B1 = leaving_B1 / poisson_tail(self.depth, losses_B1)
        return torch.where(moving_B1, torch.cat([root_B1, below_root_BD], dim=1), 0.0).to(timesteps.dtype)

    def reverse_step(self, start: float, end: float) -> torch.Tensor:  # noqa: D102
        before, after = (-math.log1p(-time) if time < 1 else math.inf for time in (start, end))
        # At t = 1 all positions are at the root; nodes given as constraints go on from there as if t were L.
        step = each_level_back(self.depth, end if math.isinf(before) else after / before)
        # At the root D losses or more lie behind, a Poisson number; `lost` of them lie before `end`, the others after.
        tail = {
            (count, mean): float(poisson_tail(count, torch.tensor(mean, dtype=torch.float64)))
            for count, mean in [(self.depth, before), *((back, before - after) for back in range(1, self.depth + 1))]
        }
        for lost in range(self.depth):
            since = tail[self.depth - lost, before - after] / tail[self.depth, before]
            step[0, self.depth - lost] = math.exp(-after) * after**lost / math.factorial(lost) * since
        step[0, 0] = 1 - step[0, 1:].sum()
        return step.clamp(min=0)

    def hitting_times(self, depth: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:  # noqa: D102
        # The root is left at t with P(still there) = pi_0(t). Below it m losses lie before t, each at an L uniform up
        # to L(t). At t = 1 that is infinite: nodes given as constraints go on from there as if t were L.
        given = depth > 0
        leaving = self.loss_times(torch.ones_like(depth), uniform[:, 0])
        losses_n1 = torch.where(given, 1.0, self._losses(leaving))[:, None]
        reached = _reached(depth, uniform)
        factor = _first_of_lost(uniform).masked_fill(reached, 1.0)
        factor[:, 0] = 1.0
        losses_nD = losses_n1 * factor.cumprod(dim=1)
        return torch.where(given[:, None], losses_nD, -torch.expm1(-losses_nD)).masked_fill(reached, torch.inf)

    @staticmethod
    def _losses(timesteps: torch.Tensor) -> torch.Tensor:
        """(B,) -> (B,): L, finite also at t = 1."""
        return -torch.log1p(-timesteps.clamp(max=1 - torch.finfo(timesteps.dtype).eps / 2))

    def _powers(self, timesteps: torch.Tensor) -> torch.Tensor:
        """(B,) -> (B, D): L^l / l! for l = 0..D-1."""
        return poisson_terms(torch.arange(self.depth, device=timesteps.device), self._losses(timesteps))


class CosineWarp(LevelSchedule):
    """Another schedule with time running as tau(t) = 1 - cos(pi t / 2): on the flat tree alpha_1 = cos(pi t / 2).

    A warp common to all levels does not change the bound of a network that does not see the time; it changes which
    times are drawn in training and where generation makes its steps.
    """

    def __init__(self, schedule: LevelSchedule) -> None:
        """Warp the time of `schedule`."""
        super().__init__(schedule.depth)
        self.schedule = schedule
        self.boundaries = tuple(math.acos(1 - tau) * 2 / math.pi for tau in schedule.boundaries)

    def alpha(self, timesteps: torch.Tensor) -> torch.Tensor:  # noqa: D102
        return self.schedule.alpha(self._warped(timesteps))

    def flux(self, timesteps: torch.Tensor) -> torch.Tensor:  # noqa: D102
        return self.schedule.flux(self._warped(timesteps)) * self._speed(timesteps)

    def weight(self, timesteps: torch.Tensor) -> torch.Tensor:  # noqa: D102
        return self.schedule.weight(self._warped(timesteps)) * self._speed(timesteps)

    def reverse_step(self, start: float, end: float) -> torch.Tensor:  # noqa: D102
        warped = self._warped(torch.tensor([start, end], dtype=torch.float64)).tolist()
        return self.schedule.reverse_step(*warped)

    def hitting_times(self, depth: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:  # noqa: D102
        times = self.schedule.hitting_times(depth, uniform)
        return torch.where(times.isinf(), times, (1 - times.clamp(max=1)).acos() * (2 / math.pi))

    def deepest_beside(self, depth: int) -> int:  # noqa: D102 -- other times, the same nodes
        return self.schedule.deepest_beside(depth)

    @staticmethod
    def _warped(timesteps: torch.Tensor) -> torch.Tensor:
        # 2 sin^2(x / 2) = 1 - cos(x), without its cancellation near 0.
        warped = (2 * torch.sin(timesteps * (math.pi / 4)) ** 2).clamp(0, 1)
        return torch.where(timesteps < 1, warped, torch.ones_like(warped))  # exactly: some schedules are singular there

    @staticmethod
    def _speed(timesteps: torch.Tensor) -> torch.Tensor:
        return (torch.sin(timesteps * (math.pi / 2)) * (math.pi / 2))[:, None]


class DiscreteSchedule(LevelSchedule):
    """D3PM with an absorbing state: another schedule looked at only at the times 1/T, 2/T, ..., 1.

    The bound charges a step from s to t = s + 1/T the weight (alpha_k(s) - alpha_k(t)) / pi_{k-1}(t); times T, as times
    are drawn uniformly. It falls to the bound in continuous time as T grows, like 1/T.
    """

    def __init__(self, schedule: LevelSchedule, num_timesteps: int) -> None:
        """Cut the time of `schedule` into num_timesteps = T steps.

        Raises:
            ValueError: T below 1, or a step in which a position could fall by several levels.

        """
        super().__init__(schedule.depth)
        if num_timesteps < 1:
            raise ValueError(f"num_timesteps must be at least 1, got {num_timesteps}.")
        self.schedule, self.num_timesteps = schedule, num_timesteps
        self.boundaries = schedule.boundaries
        # On the CPU by name: models are made on the meta device, which has no values.
        grid = torch.arange(1, num_timesteps + 1, dtype=torch.float64, device="cpu") / num_timesteps
        if ((self.flux(grid) > 1e-9).sum(dim=1) > 1).any():
            raise ValueError(
                f"In one of {num_timesteps} steps a position could fall by several levels. In discrete time use a tree "
                "of depth 1, or the sequential schedule with windows that are multiples of a step and no time warp."
            )

    def alpha(self, timesteps: torch.Tensor) -> torch.Tensor:  # noqa: D102
        return self.schedule.alpha(timesteps)

    def flux(self, timesteps: torch.Tensor) -> torch.Tensor:  # noqa: D102
        return self._flux(precise(timesteps)).to(timesteps.dtype)

    def weight(self, timesteps: torch.Tensor) -> torch.Tensor:  # noqa: D102
        times = precise(timesteps)
        alpha_BD = self.schedule.alpha(times)
        pi_BD = alpha_BD[:, :-1] - alpha_BD[:, 1:]
        return (self._flux(times) / torch.where(pi_BD > 0, pi_BD, 1.0)).to(timesteps.dtype)

    def _flux(self, timesteps: torch.Tensor) -> torch.Tensor:
        before = (timesteps - 1 / self.num_timesteps).clamp(min=0)
        fall_BD = self.schedule.alpha(before) - self.schedule.alpha(timesteps)
        return fall_BD[:, 1:].clamp(min=0) * self.num_timesteps

    def reverse_step(self, start: float, end: float) -> torch.Tensor:  # noqa: D102
        return self.schedule.reverse_step(start, end)

    def hitting_times(self, depth: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:  # noqa: D102
        return self.schedule.hitting_times(depth, uniform)

    def deepest_beside(self, depth: int) -> int:  # noqa: D102 -- fewer times, the same nodes
        return self.schedule.deepest_beside(depth)

    def loss_times(self, level: torch.Tensor, quantile: torch.Tensor) -> torch.Tensor:  # noqa: D102
        return self._on_grid(self.schedule.loss_times(level, quantile))

    def place_times(self, uniform: torch.Tensor, sampling_eps: float = SAMPLING_EPS) -> torch.Tensor:
        """(B,) uniform numbers in [0, 1) -> (B,) times of the grid, all equally often but for those cut off."""
        cut_off = sampling_eps if sampling_eps > SAMPLING_EPS else 0.0  # no weight is unbounded here
        return self._on_grid(self.schedule.place_times(uniform, cut_off)).to(uniform.dtype)

    def _on_grid(self, timesteps: torch.Tensor) -> torch.Tensor:
        """Round up to a time of the grid."""
        return (precise(timesteps) * self.num_timesteps - 1e-9).ceil().clamp(min=1) / self.num_timesteps


def _reached(depth: torch.Tensor, like_nD: torch.Tensor) -> torch.Tensor:
    """(n,) depths -> (n, D) bool: whether level k is not below such a position."""
    return torch.arange(1, like_nD.shape[1] + 1, device=like_nD.device) <= depth[:, None]


def _first_of_lost(uniform_nD: torch.Tensor) -> torch.Tensor:
    """U[0, 1) -> (n, D): of the levels k..D lost at times uniform in [0, 1], when the first to come back does."""
    lost_D = torch.arange(uniform_nD.shape[1], 0, -1, dtype=uniform_nD.dtype, device=uniform_nD.device)
    return uniform_nD ** (1 / lost_D)


SCHEDULES: dict[str, type[LevelSchedule]] = {
    "sequential": SequentialSchedule,
    "binomial": BinomialSchedule,
    "poisson": PoissonSchedule,
}


def make_schedule(config: Any) -> LevelSchedule:  # noqa: ANN401 -- a TreeDiffConfig
    """Return the schedule that a TreeDiffConfig names."""
    schedule = SCHEDULES[config.schedule](config.tree_depth)
    if config.level_durations is not None:
        schedule = SequentialSchedule(config.tree_depth, config.level_durations)
    if config.time_warp == "cosine":
        schedule = CosineWarp(schedule)
    return schedule if config.num_timesteps is None else DiscreteSchedule(schedule, config.num_timesteps)
