"""Noise schedules: when each level of the tree is lost in the forward process, and when it comes back.

Shape legend: B sequences, D depth of the leaves.

A position loses depth one level at a time while t goes from 0 (token) to 1 (root). alpha_k(t) = P(depth at t >= k), so
pi_k = alpha_k - alpha_{k+1} is the probability of depth k, and the flux f_k = -alpha_k' that of falling from depth k to
k-1 per unit time. The reverse jump rate from depth k-1 to k is f_k / pi_{k-1}, the weight of the bound.

Sources: sequential, Tree-Structured Diffusion Language Model (TDLM, arXiv 2604.03537), on the flat tree MDLM (arXiv
2406.07524); binomial and poisson, on trees of depth 2, Hierarchical Diffusion Language Models (HDLM) with gamma = 2
and 1; discrete time, D3PM (arXiv 2107.03006).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch

from .configuration_treediff import TreeDiffConfig

SAMPLING_EPS = 1e-3
DEEPEST_POISSON = 8


class LevelSchedule(ABC):
    """Base of all schedules. Column k-1 of a (B, D) result is level k."""

    perturbation = 0.0  # rate at which inner nodes are shown as another child of their parent
    # Times between which all rates are smooth; generation makes equally many steps in each interval.
    boundaries: tuple[float, ...] = (0.0, 1.0)

    def __init__(self, depth: int) -> None:
        self.depth = depth

    @staticmethod
    def from_config(config: TreeDiffConfig) -> "LevelSchedule":
        """Return the schedule that a config names."""
        durations = {} if config.level_durations is None else {"level_durations": config.level_durations}
        schedule = SCHEDULE_CLASSES[config.schedule](config.tree_depth, **durations)
        if config.time_warp == "cosine":
            schedule = CosineWarp(schedule)
        schedule.perturbation = config.perturbation
        return schedule if config.num_timesteps is None else DiscreteSchedule(schedule, config.num_timesteps)

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

    def forward_step(self, start: float, end: float, law: torch.Tensor) -> torch.Tensor:
        """Times start < end, (G, D+1) laws of depths at `end` -> (G, D+1, D+1): P(depth j at `end` | d at `start`).

        By Bayes from `reverse_step`; row d, column j. Depths that a law does not lead to at `start` stay.
        """
        joint = law[:, None] * self.reverse_step(end, start).T
        total = joint.sum(dim=-1, keepdim=True)
        return torch.where(total > 0, joint / torch.where(total > 0, total, 1.0), torch.eye(self.depth + 1).to(law))

    @abstractmethod
    def hitting_times(self, depth: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
        """(n,) depths at time 1 and (n, D) float64 from U[0, 1) -> (n, D): when the reverse process reaches each level.

        Falling along a row; inf for levels that are reached already. Drawn exactly, without time steps.
        """

    def deepest_beside(self, depth: int) -> int:
        """Return the greatest depth at which positions stand beside one of this depth, under this process."""
        return min(depth + 1, self.depth) if len(self.boundaries) > 2 else self.depth  # one level after the other

    def sample_times(
        self, batch_size: int, generator: torch.Generator | None = None, sampling_eps: float = SAMPLING_EPS
    ) -> torch.Tensor:
        """Draw (B,) times, each uniform on its own, together spread evenly over [0, 1] (low discrepancy).

        No time lies closer than `sampling_eps` of an interval to its start, where the weight is unbounded. A larger
        value trades bias for less variance (arXiv 2503.09573): without a warp, the expected weight of level k becomes
        alpha_k(s) / (1 - s) for binomial and poisson, s = sampling_eps, and stays 1 for sequential.
        """
        device = generator.device if generator is not None else None
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
        """(n,) levels 1..D and (n,) quantiles in [0, 1) -> (n,) `precise` times at which that level is lost.

        A quantile drawn uniformly gives a time drawn from the level's flux: the inverse of 1 - alpha_k, by bisection.
        """
        low = torch.zeros_like(precise(quantile))
        high = torch.ones_like(low)
        for _ in range(60):
            middle = (low + high) / 2
            lost = 1 - self.alpha(middle).gather(1, level[:, None])[:, 0]
            low, high = torch.where(lost < quantile, middle, low), torch.where(lost < quantile, high, middle)
        return high

    def reverse_times(self, num_steps: int | Sequence[int]) -> torch.Tensor:
        """Return the float64 times from 1 down to 0 that generation stops at.

        num_steps are all steps, divided evenly over the intervals, or those of each interval, the last in time first.
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
            raise ValueError(f"num_steps={num_steps} is too small: each of the tree's {intervals} levels needs one.")
        steps, extra = divmod(num_steps, intervals)
        return [steps + (index < extra) for index in range(intervals)]


def precise(timesteps: torch.Tensor) -> torch.Tensor:
    """Return times in float64, for differences of probabilities; as they are on devices without it."""
    return timesteps if timesteps.device.type == "mps" else timesteps.double()


class SequentialSchedule(LevelSchedule):
    """One level after the other: level k is lost linearly while t crosses its interval, level 1 in the last one.

    With u in (0, 1] the fraction of the interval crossed and w its length: alpha_k = 1 - u, flux 1 / w, weight
    1 / (w u) = 1 / (t - start of the interval). On the flat tree this is MDLM's log-linear schedule and its 1/t.
    """

    def __init__(self, depth: int, level_durations: Sequence[float] | None = None) -> None:
        """Take the relative durations of the levels, level 1 first; by default all are equal."""
        super().__init__(depth)
        lengths = level_durations if level_durations is not None else [1.0] * depth
        if len(lengths) != depth or min(lengths) <= 0 or not math.isfinite(sum(lengths)):
            raise ValueError(f"level_durations must be {depth} positive numbers, one per level, got {list(lengths)}.")
        past = [sum(lengths[index:]) / sum(lengths) for index in range(depth, -1, -1)]
        self.boundaries = (*past[:-1], 1.0)

    def alpha(self, timesteps: torch.Tensor) -> torch.Tensor:
        crossed_BD = self._crossed(timesteps).clamp(0, 1)
        return torch.cat([torch.ones_like(crossed_BD[:, :1]), 1 - crossed_BD], dim=1)

    def flux(self, timesteps: torch.Tensor) -> torch.Tensor:
        crossed_BD = self._crossed(timesteps)
        return torch.where((crossed_BD > 0) & (crossed_BD <= 1), 1 / self._intervals(timesteps)[1], 0.0)

    def weight(self, timesteps: torch.Tensor) -> torch.Tensor:
        flux_BD = self.flux(timesteps)
        return flux_BD / torch.where(flux_BD > 0, self._crossed(timesteps), 1.0)

    def reverse_step(self, start: float, end: float) -> torch.Tensor:
        before_D, after_D = self._crossed(torch.tensor([start, end], dtype=torch.float64)).clamp(0, 1)
        # Level k comes back with this probability; a position still above an interval that lies behind moves at once.
        back_D = 1 - torch.where(before_D > 0, after_D / before_D.clamp(min=1e-300), 0.0)
        back = [*back_D.tolist(), 0.0]
        step = torch.zeros(self.depth + 1, self.depth + 1, dtype=torch.float64)
        for depth in range(self.depth + 1):
            for reached in range(depth, self.depth + 1):
                step[depth, reached] = math.prod(back[depth:reached]) * (1 - back[reached])
        return step

    def hitting_times(self, depth: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
        start_D, length_D = self._intervals(uniform)
        return (start_D + length_D * uniform).masked_fill(_reached(depth, uniform), torch.inf)

    def _intervals(self, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return start and length (D,) of each level's interval; level 1 has the last one."""
        edge = torch.tensor(self.boundaries, dtype=like.dtype, device=like.device).flip(0)
        return edge[1:], edge[:-1] - edge[1:]

    def _crossed(self, timesteps: torch.Tensor) -> torch.Tensor:
        """(B,) -> (B, D): where t stands in each level's interval, 0 at its start and 1 at its end."""
        start_D, length_D = self._intervals(timesteps)
        return (timesteps[:, None] - start_D) / length_D


class BinomialSchedule(LevelSchedule):
    """Every level is lost at a time of its own, uniform in [0, 1]: Binomial(D, 1 - t). Depth 2 is HDLM with gamma 2."""

    def alpha(self, timesteps: torch.Tensor) -> torch.Tensor:
        pi_BD = self._binomial(self.depth, timesteps)
        return pi_BD.flip(1).cumsum(dim=1).flip(1).clamp(max=1)

    def flux(self, timesteps: torch.Tensor) -> torch.Tensor:
        return self.depth * self._binomial(self.depth - 1, timesteps)

    def weight(self, timesteps: torch.Tensor) -> torch.Tensor:
        above_D = torch.arange(self.depth, 0, -1, dtype=timesteps.dtype, device=timesteps.device)
        time_B1 = timesteps[:, None]
        return torch.where(time_B1 > 0, above_D / torch.where(time_B1 > 0, time_B1, 1.0), 0.0)

    def reverse_step(self, start: float, end: float) -> torch.Tensor:
        return each_level_back(self.depth, end / start)

    def hitting_times(self, depth: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
        reached = _reached(depth, uniform)
        return _first_of_lost(uniform).masked_fill(reached, 1.0).cumprod(dim=1).masked_fill(reached, torch.inf)

    @staticmethod
    def _binomial(trials: int, timesteps: torch.Tensor) -> torch.Tensor:
        """(B,) -> (B, trials+1): probability that 0, 1, ..., `trials` of the levels are not lost."""
        kept = torch.arange(trials + 1, dtype=timesteps.dtype, device=timesteps.device)
        ways = kept.new_tensor([math.comb(trials, k) for k in range(trials + 1)])
        time_B1 = timesteps[:, None]
        return ways * (1 - time_B1) ** kept * time_B1 ** (trials - kept)


class PoissonSchedule(LevelSchedule):
    """Every loss has the same hazard 1 / (1 - t): with L = -log(1 - t), Poisson(L) levels are lost, at most D.

    P(l levels lost) = (1 - t) L^l / l! for l < D, the rest is at the root. Depth 2 is HDLM with gamma = 1. Beyond
    depth 8 the root is left closer to t = 1 than numbers in single precision tell.
    """

    def __init__(self, depth: int) -> None:
        """Make the schedule of a tree of depth 1 to 8; ValueError for more."""
        super().__init__(depth)
        if depth > DEEPEST_POISSON:
            raise ValueError(f"The poisson schedule is for depths up to {DEEPEST_POISSON}, got {depth}: take binomial.")

    def alpha(self, timesteps: torch.Tensor) -> torch.Tensor:
        number_BD = (1 - timesteps)[:, None] * self._powers(timesteps)
        return torch.cat([torch.ones_like(number_BD[:, :1]), number_BD.cumsum(dim=1).flip(1)], dim=1)

    def flux(self, timesteps: torch.Tensor) -> torch.Tensor:
        return self._powers(timesteps).flip(1)

    def weight(self, timesteps: torch.Tensor) -> torch.Tensor:
        losses_B1 = self._losses(precise(timesteps))[:, None]
        moving_B1 = losses_B1 > 0
        losses_B1 = torch.where(moving_B1, losses_B1, 1.0)
        above_D = torch.arange(self.depth - 1, 0, -1, dtype=losses_B1.dtype, device=timesteps.device)
        below_root_BD = above_D / ((-losses_B1).exp() * losses_B1)
        leaving_B1 = poisson_terms(torch.tensor([self.depth - 1], device=timesteps.device), losses_B1[:, 0])
        root_B1 = leaving_B1 / poisson_tail(self.depth, losses_B1)
        return torch.where(moving_B1, torch.cat([root_B1, below_root_BD], dim=1), 0.0).to(timesteps.dtype)

    def reverse_step(self, start: float, end: float) -> torch.Tensor:
        before, after = (-math.log1p(-time) if time < 1 else math.inf for time in (start, end))
        # At t = 1 all positions are at the root; nodes given as constraints go on from there as if t were L.
        step = each_level_back(self.depth, end if math.isinf(before) else after / before)

        def tail(count: int, mean: float) -> float:
            return float(poisson_tail(count, torch.tensor(mean, dtype=torch.float64)))

        # At the root D losses or more lie behind, a Poisson number; `lost` of them lie before `end`, the others after.
        at_root = tail(self.depth, before)
        for lost in range(self.depth):
            since = tail(self.depth - lost, before - after) / at_root
            step[0, self.depth - lost] = math.exp(-after) * after**lost / math.factorial(lost) * since
        step[0, 0] = 1 - step[0, 1:].sum()
        return step.clamp(min=0)

    def hitting_times(self, depth: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
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
    """Another schedule with time running as 1 - cos(pi t / 2): other times to train and generate at, the same bound."""

    def __init__(self, schedule: LevelSchedule) -> None:
        super().__init__(schedule.depth)
        self.schedule = schedule
        self.boundaries = tuple(math.acos(1 - tau) * 2 / math.pi for tau in schedule.boundaries)

    def alpha(self, timesteps: torch.Tensor) -> torch.Tensor:
        return self.schedule.alpha(self._warped(timesteps))

    def flux(self, timesteps: torch.Tensor) -> torch.Tensor:
        return self.schedule.flux(self._warped(timesteps)) * self._speed(timesteps)

    def weight(self, timesteps: torch.Tensor) -> torch.Tensor:
        return self.schedule.weight(self._warped(timesteps)) * self._speed(timesteps)

    def reverse_step(self, start: float, end: float) -> torch.Tensor:
        warped = self._warped(torch.tensor([start, end], dtype=torch.float64)).tolist()
        return self.schedule.reverse_step(*warped)

    def hitting_times(self, depth: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
        times = self.schedule.hitting_times(depth, uniform)
        return torch.where(times.isinf(), times, (1 - times.clamp(max=1)).acos() * (2 / math.pi))

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
        """Cut the time of `schedule` into T steps; ValueError if a position could fall by several levels in one."""
        super().__init__(schedule.depth)
        self.schedule, self.num_timesteps = schedule, num_timesteps
        self.boundaries = schedule.boundaries
        # On the CPU by name: models are made on the meta device, which has no values.
        grid = torch.arange(1, num_timesteps + 1, dtype=torch.float64, device="cpu") / num_timesteps
        if ((self.flux(grid) > 1e-9).sum(dim=1) > 1).any():
            use = "a flat tree, or the sequential schedule with durations of whole steps and no time warp"
            raise ValueError(f"In one of {num_timesteps} steps a position could fall by several levels: use {use}.")

    def alpha(self, timesteps: torch.Tensor) -> torch.Tensor:
        return self.schedule.alpha(timesteps)

    def flux(self, timesteps: torch.Tensor) -> torch.Tensor:
        times = precise(timesteps)
        before = (times - 1 / self.num_timesteps).clamp(min=0)
        fall_BD = self.schedule.alpha(before) - self.schedule.alpha(times)
        return (fall_BD[:, 1:].clamp(min=0) * self.num_timesteps).to(timesteps.dtype)

    def weight(self, timesteps: torch.Tensor) -> torch.Tensor:
        times = precise(timesteps)
        alpha_BD = self.schedule.alpha(times)
        pi_BD = alpha_BD[:, :-1] - alpha_BD[:, 1:]
        return (self.flux(times) / torch.where(pi_BD > 0, pi_BD, 1.0)).to(timesteps.dtype)

    def reverse_step(self, start: float, end: float) -> torch.Tensor:
        return self.schedule.reverse_step(start, end)

    def hitting_times(self, depth: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
        return self.schedule.hitting_times(depth, uniform)

    def loss_times(self, level: torch.Tensor, quantile: torch.Tensor) -> torch.Tensor:
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


SCHEDULE_CLASSES = {"sequential": SequentialSchedule, "binomial": BinomialSchedule, "poisson": PoissonSchedule}


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
