"""Noise of blocks by counts: how many levels of a block are lost, and which ones, instead of each by its own chance.

At a time t every level of every position is lost with some probability, and the weights of the bound grow as t falls:
about 1 / t. In a short block few positions carry them, at random. Over all times the number of losses is uniform, and
given this number all choices of what is lost are equally likely. So a number A, uniform in 1..N of the N levels in a
block, and A of them lost, with the weights of the time A / N, give the loss the bound as its expectation, and it varies
less. A block of one token over a flat tree then always has that token masked, with weight 1: an autoregressive loss.

Shape legend: B windows of a batch, T tokens per window, D depth of the leaves, L levels that are lost in an interval.
"""

import torch

from modeling_treediff.noise_schedules import BinomialSchedule, LevelSchedule, SequentialSchedule

BELOW_1 = 1 - 1e-6  # the end of an interval belongs to it


def levels_per_interval(schedule: LevelSchedule) -> int | None:
    """Return L: 1 if one level is lost after the other, D if all are; None if choices of what is lost are not alike."""
    if isinstance(schedule, BinomialSchedule):
        return schedule.depth
    return 1 if isinstance(schedule, SequentialSchedule) else None


def counted_noise(
    times: torch.Tensor,
    uniforms: torch.Tensor,
    block_numbers: torch.Tensor,
    counted: torch.Tensor,
    schedule: LevelSchedule,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return depths (B, T), and the times (B, T) whose weights go with them.

    Args:
        times: (B, T) of each position's block, in [0, 1]: they say how many levels it has lost.
        uniforms: (B, T, L) numbers from U[0, 1): they say which ones.
        block_numbers: (B, T) of `number_blocks`.
        counted: (B, T) bool; the others, padding and given tokens, lose nothing.
        schedule: one for which `levels_per_interval` is known.

    """
    edges = torch.tensor(schedule.boundaries, dtype=torch.float64)
    interval_BT = (torch.bucketize(times.double(), edges, right=True) - 1).clamp(max=len(edges) - 2)
    start_BT, length_BT = edges[interval_BT], edges[interval_BT + 1] - edges[interval_BT]
    share_BT = ((times.double() - start_BT) / length_BT).clamp(0, BELOW_1)

    levels = uniforms.shape[2]
    all_BN, own_BN = (torch.zeros_like(block_numbers) for _ in range(2))  # positions of each block
    all_BN.scatter_add_(1, block_numbers, torch.ones_like(block_numbers))
    own_BN.scatter_add_(1, block_numbers, counted.long())
    total_BT = levels * own_BN.gather(1, block_numbers)
    lost_BT = (share_BT * total_BT).floor() + 1

    # In the order of blocks, and within a block of the numbers; what is not counted is its end.
    key_BTL = uniforms + (2 * block_numbers + ~counted)[..., None]
    before_BT = (levels * (all_BN.cumsum(dim=1) - all_BN)).gather(1, block_numbers)
    rank_BTL = key_BTL.flatten(1).argsort(dim=1).argsort(dim=1).view(key_BTL.shape) - before_BT[..., None]
    lost_BTL = (rank_BTL < lost_BT[..., None]) & counted[..., None]
    depth_BT = schedule.depth - interval_BT * levels - lost_BTL.sum(dim=2)
    return depth_BT, start_BT + length_BT * (lost_BT / total_BT.clamp(min=1)).clamp(max=BELOW_1)
