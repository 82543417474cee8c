"""Which positions descend in which step of generation: the random order of the process, or the surest first.

Shape legend: B sequences, T positions, D depth of the leaves.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch

from .diffusion_process import uniform
from .generation_config_treediff import TreeDiffGenerationConfig
from .schedule_base import LevelSchedule
from .vocabulary_tree import VocabularyTree


class Noise:
    """Uniform random numbers for positions, the same for a text alone and in a batch, with padding or without.

    With one generator for each text, its numbers come from that alone; with one for all, from the common stream.
    """

    def __init__(self, generator: torch.Generator | list[torch.Generator] | None, num_texts: int) -> None:
        """Take one generator for all texts, or a list of one for each; ValueError for another number."""
        if isinstance(generator, list | tuple) and len(generator) != num_texts:
            raise ValueError(f"{len(generator)} generators for {num_texts} texts: give one, or one for each text.")
        self.generator = generator

    def uniform(self, where_BT: torch.Tensor, *shape: int) -> torch.Tensor:
        """Return (B, T, *shape) numbers from U[0, 1) where asked for, 0 elsewhere; float64 where the device has it."""
        counts = where_BT.sum(dim=1).tolist()
        sources: list[Any] = [(self.generator, sum(counts))]
        if isinstance(self.generator, list | tuple):
            sources = list(zip(self.generator, counts, strict=True))
        drawn = torch.cat([uniform((count, *shape), source, where_BT.device) for source, count in sources])
        result = drawn.new_zeros(*where_BT.shape, *shape)
        result[where_BT] = drawn
        return result


@dataclass(frozen=True)
class Stage:
    """A part of the way down that all positions finish before any goes on: one level, or with some schedules all.

    Attributes:
        depth: what every position reaches.
        times: (steps + 1,) float64, falling: what the steps lie between.
        corrections: times that some climb again after it.
        climb: levels that they climb.

    """

    depth: int
    times: torch.Tensor
    corrections: int
    climb: int

    @property
    def steps(self) -> int:
        """Steps to the depth."""
        return len(self.times) - 1


def plan_stages(settings: TreeDiffGenerationConfig, schedule: LevelSchedule, tree: VocabularyTree) -> list[Stage]:
    """Divide the steps over the stages.

    Raises:
        ValueError: fewer steps than levels, steps of levels where levels are not apart, or corrections without a pass.

    """
    depths = list(range(1, schedule.depth + 1)) if len(schedule.boundaries) - 1 == schedule.depth else [schedule.depth]
    climbs = [min(settings.remasking_levels, depth) for depth in depths]
    share, extra = divmod(settings.remasking_steps, len(depths))
    corrections = [(share + (index < extra)) // climb for index, climb in enumerate(climbs)]
    spent = sum(rounds * climb for rounds, climb in zip(corrections, climbs, strict=True))
    if settings.remasking_steps and not spent:
        raise ValueError(
            f"remasking_steps={settings.remasking_steps} are too few for one correction: climbing "
            f"{settings.remasking_levels} levels takes as many."
        )
    steps = _divide_steps(settings, schedule, tree, len(depths), spent)
    times = schedule.reverse_times(steps)
    ends = [sum(steps[: index + 1]) for index in range(len(steps))]
    parts = [times[end - count : end + 1] for end, count in zip(ends, steps, strict=True)]
    return [Stage(*stage) for stage in zip(depths, parts, corrections, climbs, strict=True)]


def _divide_steps(
    settings: TreeDiffGenerationConfig,
    schedule: LevelSchedule,
    tree: VocabularyTree,
    num_stages: int,
    corrections: int,
) -> list[int]:
    """Return the steps of each stage, without `corrections` passes that are spent otherwise."""
    given, left = settings.steps_per_level, settings.num_steps - corrections
    if given is not None and num_stages != schedule.depth:
        raise ValueError("steps_per_level needs a schedule that goes through the levels one by one: leave it out.")
    if isinstance(given, list | tuple):
        if len(given) != schedule.depth:
            raise ValueError(f"steps_per_level has {len(given)} numbers, the tree {schedule.depth} levels.")
        return list(given)
    if settings.unmasking == "first_hitting":  # which goes by hitting times alone
        left = max(left, schedule.depth)
    if left < schedule.depth:
        spent = f" of which remasking spends {corrections}" if corrections else ""
        raise ValueError(
            f"num_steps={settings.num_steps}{spent} is too small: each of the tree's {schedule.depth} levels needs one "
            "step."
        )
    if given is None:
        return schedule.split_steps(left)
    nodes = tree.depth.bincount().tolist()
    bits = [math.log2(below / above) for above, below in pairwise(nodes)]
    return _in_proportion(left, bits)


def _in_proportion(total: int, weights: list[float]) -> list[int]:
    """Divide `total` into whole numbers, at least 1, as near as can be to the weights (largest remainders)."""
    left = total - len(weights)
    exact = [left * weight / (sum(weights) or 1) for weight in weights]
    counts = [int(share) for share in exact]
    by_remainder = sorted(range(len(weights)), key=lambda index: counts[index] - exact[index])
    for index in [place % len(weights) for place in range(left - sum(counts))]:
        counts[by_remainder[index]] += 1
    return [1 + count for count in counts]


def random_targets(
    schedule: LevelSchedule,
    times: torch.Tensor,
    depth_of: Callable[[], torch.Tensor],
    open_BT: torch.Tensor,
    noise: Noise,
) -> Iterator[torch.Tensor]:
    """For each step between `times` yield the depths (B, T) to reach, drawn as the reverse process has it.

    `depth_of()` returns the depths (B, T) that the positions have when the step begins.
    """
    for start, end in pairwise(times.tolist()):
        drawn_BT1 = noise.uniform(open_BT)[..., None]
        reached_before = schedule.reverse_step(start, end).cumsum(dim=1)[:, :-1].to(drawn_BT1.device, drawn_BT1.dtype)
        depth_BT = depth_of()
        target_BT = (drawn_BT1 >= reached_before[depth_BT]).sum(dim=-1)
        yield torch.where(open_BT, target_BT, depth_BT)


def first_hitting_targets(
    schedule: LevelSchedule, depth_BT: torch.Tensor, last_depth: int, open_BT: torch.Tensor, noise: Noise
) -> Iterator[torch.Tensor]:
    """Yield the depths (B, T) to reach, for a single position and level of each text after the other.

    The order is that of the times at which the reverse process reaches them (First-Hitting Sampler, arXiv 2409.02908).
    """
    uniform_nD = noise.uniform(open_BT, schedule.depth).flatten(0, 1)
    time_nD = schedule.hitting_times(depth_BT.flatten(), uniform_nD)
    level_D = torch.arange(1, schedule.depth + 1, device=depth_BT.device)
    ahead_BTD = (level_D > depth_BT[..., None]) & (level_D <= last_depth) & open_BT[..., None]
    time_BTD = time_nD.view(ahead_BTD.shape).masked_fill(~ahead_BTD, -torch.inf)
    # Equal times, if ever, keep the order of the levels: sorting is stable, levels of a position lie side by side.
    rank_BTD = time_BTD.flatten(1).argsort(dim=1, descending=True, stable=True).argsort(dim=1).view(ahead_BTD.shape)
    for count in range(1, int(ahead_BTD.sum(dim=(1, 2)).max()) + 1):
        yield depth_BT + (ahead_BTD & (rank_BTD < count)).sum(dim=-1)


def surest(
    score_BT: torch.Tensor, levels_left_BT: torch.Tensor, passes_left: int, threshold: float | None
) -> torch.Tensor:
    """Choose who descends a level in this pass: (B, T) bool, the highest scores of each text.

    As many as finish all levels in passes_left equal passes, and all whose score reaches the threshold; those who have
    as many levels left as passes must go.

    Args:
        score_BT: how sure each position is.
        levels_left_BT: levels that each has to descend; 0 where it does not.
        passes_left: passes for that, this one included.
        threshold: of the score, or None.

    """
    waiting_BT = levels_left_BT > 0
    count_B = (levels_left_BT.sum(dim=1) + passes_left - 1) // passes_left
    must_BT = levels_left_BT >= passes_left
    chosen_BT = must_BT | highest(score_BT, waiting_BT & ~must_BT, count_B - must_BT.sum(dim=1))
    return chosen_BT if threshold is None else chosen_BT | (waiting_BT & (score_BT >= threshold))


def highest(score_BT: torch.Tensor, among_BT: torch.Tensor, count_B: torch.Tensor) -> torch.Tensor:
    """(B, T) bool: the `count_B` highest scores of each row among some; of equal ones the first.

    To four decimals: what looks alike, as open positions do at first, is not to be told apart by the rounding errors
    that a text has in a batch and not alone.
    """
    ranked_BT = score_BT.round(decimals=4).masked_fill(~among_BT, -torch.inf)
    rank_BT = ranked_BT.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return among_BT & (rank_BT < count_B[:, None])
