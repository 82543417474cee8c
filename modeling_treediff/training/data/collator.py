"""Corruption in the data loader: windows -> batches as the model's `forward` takes them.

Shape legend: B windows of a batch, T tokens per window.
"""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from modeling_treediff.diffusion_process import (
    IGNORED_LABEL,
    CorruptedBatch,
    check_tokens,
    corrupt,
    counted_positions,
    number_blocks,
    perturb,
)
from modeling_treediff.noise_schedules import LevelSchedule
from modeling_treediff.vocabulary_tree import VocabularyTree

from .counted_noise import counted_noise, levels_per_interval
from .options import BLOCK_SAMPLING_EPS, TRAINING_SAMPLING_EPS

GOLDEN_RATIO = 0x9E3779B97F4A7C15  # (sqrt(5) - 1) / 2 in units of 2^-64
FAR = 2**48
FORWARDED = ("attention_mask", "segment_ids", "place")


class DiffusionCollator:
    """Stacks windows and corrupts them in the data loader: the model's forward stays free of randomness.

    All noise of a window depends on the seed and its `position` alone, its number in the whole run: never on the batch
    it comes in, nor on the number of processes or loader workers. Without `position` in the features, as in HF's
    Trainer, torch's global generator draws a start, and processes take turns from there: where all have one seed, as
    the Trainer sets it, the positions of their batches together are consecutive. The Trainer hands on `position` and
    `fixed_mask` only with `remove_unused_columns=False`.
    """

    def __init__(
        self,
        tree: VocabularyTree,
        schedule: LevelSchedule,
        seed: int = 0,
        sampling_eps: float | None = None,
        block_size: int | Sequence[int] | None = None,
    ) -> None:
        """Corrupt along `tree` by `schedule`, at times as `schedule.place_times` puts them with `sampling_eps`.

        The default, 0.1, or 0.25 with blocks, keeps the rare huge weights out of the gradient and nearly clean blocks
        out of the batch; `nelbo` measures without such a limit. Each block of a model that has blocks, of
        `config.block_size` positions, gets a time of its own, and by `counted_noise`, where the schedule allows it, as
        many losses as there are on average. Of several sizes windows take one each, in turn.
        """
        sizes = [block_size] if isinstance(block_size, int) else list(block_size or ())
        if any(size < 1 for size in sizes):
            raise ValueError(f"Sizes of blocks must be at least 1, got {sizes}.")
        self.block_sizes = sizes
        # The loader works on the host, wherever the model's own tree lies.
        self.tree, self.schedule, self.seed = tree.to("cpu"), schedule, seed
        default = BLOCK_SAMPLING_EPS if sizes else TRAINING_SAMPLING_EPS
        self.sampling_eps = default if sampling_eps is None else sampling_eps

    def __call__(self, features: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Return a batch of windows, corrupted.

        Args:
            features: per window `input_ids` (T,), and where the data have them `position`, `attention_mask` (0 at
                padding), `fixed_mask` (1 where a token stays clean and is not counted), `segment_ids` (documents that
                do not see one another), each (T,), and `place` (3,).

        Returns:
            input_ids and labels (B, T), timesteps (B,), or (B, T) for blocks, beside their block_numbers (B, T), and
            attention_mask, segment_ids (B, T) and place (B, 3) where they were given.

        """
        columns = {
            name: torch.from_numpy(np.stack([np.asarray(feature[name], np.int64) for feature in features]))
            for name in ("input_ids", "fixed_mask", *FORWARDED)
            if name in features[0]
        }
        if "position" in features[0]:
            positions = [int(feature["position"]) for feature in features]
        else:
            rank, processes = _process()
            start = int(torch.randint(2**62, ())) + rank
            positions = list(range(start, start + processes * len(features), processes))
        if self.block_sizes:
            columns["block_numbers"] = self._block_numbers(positions, columns)
        batch = self._corrupt(positions, columns)
        forwarded = {name: columns[name] for name in (*FORWARDED, "block_numbers") if name in columns}
        return {"input_ids": batch.input_ids, "labels": batch.labels, "timesteps": batch.timesteps} | forwarded

    def _block_numbers(self, positions: Sequence[int], columns: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return (B, T), by the size that a window's position gives it."""
        masks = columns.get("attention_mask"), columns.get("segment_ids")
        turn_B = torch.tensor([position % len(self.block_sizes) for position in positions])
        number_BT = torch.zeros_like(columns["input_ids"])
        for turn, size in enumerate(self.block_sizes):
            here_B = turn_B == turn
            of_size_BT = number_blocks(columns["input_ids"], *masks, size)
            number_BT[here_B] = of_size_BT[here_B]
        return number_BT

    def _corrupt(self, positions: Sequence[int], columns: dict[str, torch.Tensor]) -> CorruptedBatch:
        token_ids, tree, schedule = columns["input_ids"], self.tree, self.schedule
        mask_BT, fixed_BT = columns.get("attention_mask"), columns.get("fixed_mask")
        number_BT, length = columns.get("block_numbers"), token_ids.shape[1]
        levels = None if number_BT is None else levels_per_interval(schedule)
        times = self._times(positions, number_BT, "segment_ids" in columns)
        if number_BT is None or levels is None:
            depths_BT, siblings_BT = self._noise(positions, length, length)
            numbers = {"uniforms": depths_BT, "sibling_uniforms": siblings_BT}
            return corrupt(token_ids, tree, schedule, times, None, mask_BT, fixed_BT, **numbers)
        check_tokens(token_ids, tree, attention_mask=mask_BT, fixed_mask=fixed_BT)
        counted_BT = counted_positions(token_ids, mask_BT, fixed_BT)
        levels_BX, siblings_BT = self._noise(positions, levels * length, length)
        noise_BTL = levels_BX.reshape(*token_ids.shape, levels)
        depth_BT, times_BT = counted_noise(times, noise_BTL, number_BT, counted_BT, schedule)
        node_ids = tree.ancestors[token_ids, depth_BT]
        if siblings_BT is not None:
            node_ids = perturb(node_ids, tree, schedule.perturbation, siblings_BT)
        node_ids = torch.where(counted_BT, node_ids, token_ids)
        return CorruptedBatch(node_ids, torch.where(counted_BT, token_ids, IGNORED_LABEL), times_BT.float())

    def _noise(self, positions: Sequence[int], losses: int, length: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return (B, losses) numbers that say what is lost, and (B, T) that say what is shown, if it is perturbed."""
        perturbed = length if self.schedule.perturbation else 0
        noise = torch.from_numpy(depth_uniforms(self.seed, positions, losses + perturbed))
        return noise[:, :losses], noise[:, losses:] if perturbed else None

    def _times(self, positions: Sequence[int], number_BT: torch.Tensor | None, in_segments: bool) -> torch.Tensor:
        """Return (B,) times, or (B, T) with one for each block; those of all blocks of a run are spread evenly, too."""
        if number_BT is None:
            uniforms = torch.from_numpy(time_uniforms(self.seed, positions))
            return self.schedule.place_times(uniforms, self.sampling_eps).float()
        length, sizes = number_BT.shape[1], self.block_sizes
        blocks = [length if in_segments else -(-length // size) for size in sizes]  # of a window, at most
        most = max(blocks)
        # Each size has times of its own, as if all windows had it: numbers that are far from those of the others.
        numbered: list[int] = []
        for position in positions:
            turn = position % len(sizes)
            first = turn * FAR + position // len(sizes) * blocks[turn]
            numbered += range(first, first + most)
        uniforms = torch.from_numpy(time_uniforms(self.seed, numbered))
        times = self.schedule.place_times(uniforms, self.sampling_eps).float()
        return times.view(len(positions), most).gather(1, number_BT)


def _process() -> tuple[int, int]:
    """Return this process's number and how many there are, also in a loader's worker that joins no group."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def time_uniforms(seed: int, positions: Sequence[int]) -> np.ndarray:
    """Return (B,) float64 in [0, 1): frac(start of the seed + position x golden ratio), a Kronecker sequence.

    Each is uniform over seeds, and any run of consecutive positions is spread evenly over [0, 1), so the times of an
    optimizer step are, however the step is split. Integers modulo 2^64 keep that exact at any position.
    """
    start = int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0])
    return np.array([((start + position * GOLDEN_RATIO) % 2**64 >> 11) * 2.0**-53 for position in positions])


def depth_uniforms(seed: int, positions: Sequence[int], sequence_length: int) -> np.ndarray:
    """Return (B, T) float64, U[0, 1): the stream of a counter-based generator keyed by (seed, position)."""
    keys = np.array([[seed, position] for position in positions], np.uint64)
    return np.stack([np.random.Generator(np.random.Philox(key=key)).random(sequence_length) for key in keys])
