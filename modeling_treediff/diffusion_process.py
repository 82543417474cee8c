"""The forward process (tokens lose depth in the tree) and its exact continuous-time bound.

Source: Rethinking Token Prediction: Tree-Structured Diffusion Language Model (arXiv 2604.03537); on the flat tree,
Simple and Effective Masked Diffusion Language Models (MDLM, arXiv 2406.07524).

Shape legend: B sequences, T positions, V tokens, D depth of the leaves, K largest fan-out.

Positions are independent. With alpha_k(t) = P(depth at t >= k), pi_k = alpha_k - alpha_{k+1} and the flux
f_k = -alpha_k', a token x stands at its ancestor of depth k with probability pi_k(t), and

    NELBO(x) = sum_k int_0^1 dt f_k(t) / pi_{k-1}(t) E_{z_t} sum_i 1[depth_i = k-1] (-log p(a_k(x_i) | z_t, i)).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

IGNORED_LABEL = -100
SMALLEST_FRACTION = 1e-3


class LevelSchedule(ABC):
    """When each level of the tree is lost; times run from 0 (tokens) to 1 (root). Column k-1 of (B, D) is level k."""

    def __init__(self, depth: int) -> None:
        """Make the schedule of a tree whose leaves have this depth."""
        self.depth = depth

    @staticmethod
    def from_config(config: Any) -> "LevelSchedule":  # noqa: ANN401 -- any object with `schedule` and `tree_depth`
        """Return the schedule that a TreeDiffConfig names."""
        if config.schedule not in SCHEDULES:
            raise ValueError(f"Unknown schedule {config.schedule!r}; known: {', '.join(SCHEDULES)}.")
        return SCHEDULES[config.schedule](config.tree_depth)

    @abstractmethod
    def alpha(self, timesteps: torch.Tensor) -> torch.Tensor:
        """(B,) times in [0, 1] -> (B, D+1) probabilities that a position still has depth >= k, k = 0..D."""

    @abstractmethod
    def flux(self, timesteps: torch.Tensor) -> torch.Tensor:
        """(B,) -> (B, D): f_k = -d alpha_k / dt, in 1 / unit time; each integrates to 1 over [0, 1]."""

    @abstractmethod
    def weight(self, timesteps: torch.Tensor) -> torch.Tensor:
        """(B,) -> (B, D): f_k / pi_{k-1}, what the bound charges a position of depth k-1; 0 where f_k is 0."""

    def sample_times(
        self,
        batch_size: int,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        smallest_fraction: float = SMALLEST_FRACTION,
    ) -> torch.Tensor:
        """Draw (B,) times, each uniform on its own, together spread evenly over all levels (low discrepancy).

        No time lies closer than `smallest_fraction` of a level's window to the window's start, where the weight is
        unbounded. At the default the bound so estimated errs by less than 0.1 % of a position's child entropy.
        A larger value trades that bias for less variance, proportional to log(1 / smallest_fraction): useful for
        gradients, as in the clipped schedules of arXiv 2503.09573, not for measuring.
        """
        device = generator.device if generator is not None else device
        # One time in each of batch_size equal strata; which sequence gets which is random, so none is favoured.
        stratum = torch.randperm(batch_size, generator=generator, device=device)
        within = torch.rand(batch_size, generator=generator, device=device)
        return self.place_times((stratum + within) / batch_size, smallest_fraction)

    @abstractmethod
    def place_times(self, uniform: torch.Tensor, smallest_fraction: float) -> torch.Tensor:
        """(B,) numbers in [0, 1), uniform -> (B,) times, uniform where the schedule allows them."""

    @abstractmethod
    def reverse_times(self, num_steps: int) -> torch.Tensor:
        """Return (num_steps + 1,) float64 times from 1 down to 0 for generation, steps split evenly over the levels."""

    @abstractmethod
    def refine_probability(self, start: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
        """(,) times end < start -> (D,): P(a position of depth k-1 at `start` has depth >= k at `end`)."""


class SequentialSchedule(LevelSchedule):
    """One level after the other: level k is lost linearly while t crosses its window [(D-k)/D, (D-k+1)/D].

    With u in (0, 1] the fraction of the window crossed: alpha_k = 1 - u, flux D, weight D / u = 1 / (t - start).
    On the flat tree this is MDLM's log-linear schedule and its 1/t.
    """

    def alpha(self, timesteps: torch.Tensor) -> torch.Tensor:  # noqa: D102 -- documented in the base class
        crossed_BD = self._crossed(timesteps)
        return torch.cat([torch.ones_like(crossed_BD[:, :1]), 1 - crossed_BD], dim=1)

    def flux(self, timesteps: torch.Tensor) -> torch.Tensor:  # noqa: D102
        return self.depth * self._inside(timesteps).to(timesteps.dtype)

    def weight(self, timesteps: torch.Tensor) -> torch.Tensor:  # noqa: D102
        inside_BD = self._inside(timesteps)
        return torch.where(inside_BD, self.depth / torch.where(inside_BD, self._crossed(timesteps), 1.0), 0.0)

    def place_times(self, uniform: torch.Tensor, smallest_fraction: float) -> torch.Tensor:  # noqa: D102
        spread = uniform * self.depth
        window = spread.floor().clamp(max=self.depth - 1)
        crossed = smallest_fraction + (1 - smallest_fraction) * (spread - window)
        return (window + crossed) / self.depth

    def reverse_times(self, num_steps: int) -> torch.Tensor:  # noqa: D102
        if num_steps < self.depth:
            raise ValueError(
                f"num_steps={num_steps} is too small: each of the tree's {self.depth} levels needs one step."
            )
        steps, extra = divmod(num_steps, self.depth)
        times = [torch.ones(1, dtype=torch.float64)]
        for index in range(self.depth):  # the coarsest level first: it has the last window
            count = steps + (index < extra)
            crossed = torch.arange(count - 1, -1, -1, dtype=torch.float64) / count
            times.append((self.depth - 1 - index + crossed) / self.depth)
        return torch.cat(times)

    def refine_probability(self, start: torch.Tensor, end: torch.Tensor) -> torch.Tensor:  # noqa: D102
        before_D, after_D = self._crossed(start[None])[0], self._crossed(end[None])[0]
        # Before a window is entered nothing moves; a position still above a window that lies behind moves at once.
        return 1 - torch.where(before_D > 0, after_D / before_D.clamp(min=1e-12), 0.0)

    def _crossed(self, timesteps: torch.Tensor) -> torch.Tensor:
        """(B,) -> (B, D): the fraction u of each level's window that lies before t; level 1 has the last window."""
        window_D = torch.arange(self.depth - 1, -1, -1, device=timesteps.device, dtype=timesteps.dtype)
        return (timesteps[:, None] * self.depth - window_D).clamp(0, 1)

    def _inside(self, timesteps: torch.Tensor) -> torch.Tensor:
        """(B,) -> (B, D) bool: which level's half-open window (start, end] holds t."""
        window_D = torch.arange(self.depth - 1, -1, -1, device=timesteps.device, dtype=timesteps.dtype)
        crossed = timesteps[:, None] * self.depth - window_D
        return (crossed > 0) & (crossed <= 1)


SCHEDULES: dict[str, type[LevelSchedule]] = {"sequential": SequentialSchedule}


@dataclass
class CorruptedBatch:
    """A batch as the model's `forward` takes it.

    Attributes:
        input_ids: (B, T) node ids: ancestors of the tokens.
        labels: (B, T) the clean token ids; -100 at padding and fixed positions, which the bound does not count.
        timesteps: (B,) the time each sequence was corrupted to.

    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    timesteps: torch.Tensor


def corrupt(
    token_ids: torch.Tensor,
    tree: Any,  # noqa: ANN401 -- a VocabularyTree, or anything with its `ancestors`
    schedule: LevelSchedule,
    timesteps: torch.Tensor | None = None,
    generator: torch.Generator | None = None,
    attention_mask: torch.Tensor | None = None,
    fixed_mask: torch.Tensor | None = None,
) -> CorruptedBatch:
    """Draw z_t ~ q(. | x): each position stands at its token's ancestor of a depth drawn from the schedule.

    Args:
        token_ids: (B, T) clean tokens, 0..V-1.
        tree: the vocabulary tree.
        schedule: the schedule of its levels.
        timesteps: (B,) times in [0, 1]; drawn with low discrepancy if not given.
        generator: source of all randomness, on the tokens' device.
        attention_mask: (B, T); positions with 0 are padding, stay as they are and are not counted.
        fixed_mask: (B, T); positions with 1 (prompts) stay clean and are not counted.

    Raises:
        ValueError: a token id outside 0..V-1 or a time outside [0, 1].

    """
    vocab_size = tree.ancestors.shape[0]
    if token_ids.numel() and not 0 <= int(token_ids.min()) <= int(token_ids.max()) < vocab_size:
        raise ValueError(
            f"Token ids must lie in 0..{vocab_size - 1} (the tree's leaves), got {int(token_ids.min())}.."
            f"{int(token_ids.max())}. Is this the tokenizer the tree was built for?"
        )
    if timesteps is None:
        timesteps = schedule.sample_times(len(token_ids), generator, token_ids.device)
    elif timesteps.numel() and not 0 <= float(timesteps.min()) <= float(timesteps.max()) <= 1:
        raise ValueError("timesteps must lie in [0, 1].")
    alpha_BTD = schedule.alpha(timesteps)[:, None, 1:]
    uniform_BT = torch.rand(token_ids.shape, generator=generator, device=token_ids.device, dtype=timesteps.dtype)
    depth_BT = (uniform_BT[..., None] < alpha_BTD).sum(-1)
    counted_BT = torch.ones_like(token_ids, dtype=torch.bool)
    if attention_mask is not None:
        counted_BT &= attention_mask.bool()
    if fixed_mask is not None:
        counted_BT &= ~fixed_mask.bool()
    corrupted = tree.ancestors[token_ids, depth_BT]
    return CorruptedBatch(
        input_ids=torch.where(counted_BT, corrupted, token_ids),
        labels=torch.where(counted_BT, token_ids, IGNORED_LABEL),
        timesteps=timesteps,
    )


def nelbo_terms(
    logits: torch.Tensor,
    input_ids: torch.Tensor,
    labels: torch.Tensor,
    timesteps: torch.Tensor,
    tree: Any,  # noqa: ANN401 -- a VocabularyTree, or anything with its `ancestors`, `child_slot` and `depth`
    schedule: LevelSchedule,
) -> torch.Tensor:
    """Return each position's term of the bound: weight x cross-entropy of the true child.

    Dense identity: sum over positions = sum_k f_k/pi_{k-1} sum_i 1[depth_i = k-1] (-log softmax(logits_i)[slot of
    a_k(x_i)]). The cross-entropy is computed in fp32 at least.

    Args:
        logits: (B, T, K) scores of the children of each position's node; -inf where there is no child.
        input_ids: (B, T) nodes.
        labels: (B, T) clean tokens, -100 where not counted.
        timesteps: (B,).
        tree: the vocabulary tree, on the logits' device.
        schedule: the schedule that corrupted the batch.

    Returns:
        (B, T, D) nats, non-zero at most at [b, i, depth of node i], so that sums over the last axis are per position
        and sums over the others per level.

    """
    depth_BT = tree.depth[input_ids]
    refinable_BT = (labels >= 0) & (depth_BT < schedule.depth)
    child_BT = tree.ancestors[labels.clamp(min=0), (depth_BT + 1).clamp(max=schedule.depth)]
    slot_BT = torch.where(refinable_BT, tree.child_slot[child_BT], IGNORED_LABEL)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    nats = F.cross_entropy(logits.flatten(0, 1), slot_BT.flatten(), ignore_index=IGNORED_LABEL, reduction="none")
    at_level = F.one_hot(depth_BT.clamp(max=schedule.depth - 1), schedule.depth) * refinable_BT[..., None]
    return nats.view_as(depth_BT)[..., None] * at_level * schedule.weight(timesteps)[:, None, :]
