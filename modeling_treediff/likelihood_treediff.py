"""Likelihood: the bound on -log p, estimated with low variance, and the distribution over tokens at every position.

Shape legend: B sequences, T positions, V tokens, D depth of the leaves, S corruptions of a sequence, n = B S.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from .diffusion_process import check_tokens, child_slots, corrupt_level, counted_positions, uniform
from .heads_treediff import child_cross_entropy
from .schedule_base import LevelSchedule


@dataclass(frozen=True)
class NelboEstimate:
    """An upper bound on the negative log-likelihood, estimated by Monte Carlo; nats per token.

    Attributes:
        value: the estimate.
        standard_error: of the value as an estimate for these sequences; infinite where a level was visited less than
            twice. It errs high: corruptions are stratified, and unless every sequence has two of every level, the
            differences between sequences count too.
        level_losses: (D,) share of each level in the value, coarsest first.
        token_losses: (B, T) float64 on the CPU, nats of each position; 0 where not counted. Their sum over
            num_tokens is the value.
        num_tokens: tokens counted.

    """

    value: float
    standard_error: float
    level_losses: tuple[float, ...]
    token_losses: torch.Tensor = field(compare=False, repr=False)
    num_tokens: int

    @property
    def perplexity(self) -> float:
        """exp(value): an upper bound on the perplexity per token."""
        return float(torch.tensor(self.value, dtype=torch.float64).exp())  # inf, no OverflowError

    def bits_per_byte(self, num_bytes: int) -> float:
        """The bound for a text of so many bytes in UTF-8: comparable between tokenizers, unlike a perplexity."""
        return self.value * self.num_tokens / (num_bytes * float(torch.tensor(2.0).double().log()))


@dataclass(frozen=True)
class NelboStep:
    """What one forward pass of `nelbo` looks at: n positions that stand just above a level of the tree.

    Over all passes weight x cross-entropy of the true child adds up to the bound of all sequences, in nats.

    Attributes:
        sequence: (n,) the sequence that each is in; this, `position` and `weight` are on the CPU.
        position: (n,) its place there.
        weight: (n,) float64.
        node_ids: (n,) the node that stands there.
        token_ids: (n,) the clean token.
        hidden: (n, E) hidden state.

    """

    sequence: torch.Tensor
    position: torch.Tensor
    weight: torch.Tensor
    node_ids: torch.Tensor
    token_ids: torch.Tensor
    hidden: torch.Tensor


class TreeDiffLikelihoodMixin:
    """Adds `nelbo` and `leaf_log_probs` to a model with a tree, a schedule and a head."""

    # What the model class brings along.
    config: Any
    device: torch.device
    schedule: LevelSchedule
    tree: Any
    model: Any
    head: Any
    __call__: Callable[..., Any]

    @torch.no_grad()
    def nelbo(
        self,
        token_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        fixed_mask: torch.Tensor | None = None,
        num_samples: int = 1,
        batch_size: int = 32,
        generator: torch.Generator | None = None,
        segment_ids: torch.Tensor | None = None,
        callback: Callable[[NelboStep], None] | None = None,
    ) -> NelboEstimate:
        """Estimate the bound on -log p(tokens), in nats per token.

        Each forward pass sees one level k of one sequence with N tokens: at a time drawn from the flux of that level,
        all positions take depths from the schedule, one of them, drawn evenly, is put at depth k-1, and N times the
        mean cross-entropy of all m positions at depth k-1 is an unbiased estimate of the level's share. For a
        sequential level that is N E_{m ~ U{1..N}} E_{|M| = m} [(1/m) sum_{i in M} CE_i]: no weight is unbounded and
        the number of positions does not fluctuate around its mean, as with weights f_k / pi_{k-1}. Levels and
        times are stratified over the corruptions. With S >= D every sequence sees every level; with fewer, which ones
        is left to chance, so do that only with many sequences of like length.

        Args:
            token_ids: (B, T) clean tokens.
            attention_mask: (B, T), 0 at padding.
            fixed_mask: (B, T), 1 at tokens that are given: the bound is on -log p(the others | these).
            num_samples: S, corruptions per sequence, best D or a multiple; the error falls with its square root.
            batch_size: sequences per forward pass.
            generator: source of the randomness, on any device.
            segment_ids: (B, T), equal numbers for positions that see one another; None where all do.
            callback: called with a NelboStep after each forward pass.

        Raises:
            ValueError: token ids outside the vocabulary, a mask of another shape, no token to count in a sequence,
                fewer corruptions than levels, or num_samples or batch_size below 1.

        """
        tree, depth = self.tree, self.config.tree_depth
        check_tokens(token_ids, tree)
        counted = counted_positions(token_ids, attention_mask, fixed_mask).cpu()
        total = len(token_ids) * num_samples
        if min(num_samples, batch_size) < 1:
            raise ValueError(f"num_samples and batch_size must be at least 1, got {num_samples} and {batch_size}.")
        if not (some := counted.any(dim=1)).all():
            raise ValueError(f"There is nothing to measure in sequence {int((~some).nonzero()[0])}: no token to count.")
        if total < depth:
            raise ValueError(f"{total} corruptions cannot visit the tree's {depth} levels: give more num_samples.")
        row, level, quantile = _strata(len(token_ids), num_samples, depth, generator)
        times = self.schedule.loss_times(level, quantile)
        share = _shares(row, level, num_samples, depth)
        nats = torch.zeros(total, token_ids.shape[1], dtype=torch.float64)
        for part in torch.arange(total).split(batch_size):
            tokens, mask = token_ids[row[part]].to(self.device), counted[row[part]].to(self.device)
            masks = [
                None if given is None else given[row[part]].to(self.device) for given in (attention_mask, segment_ids)
            ]
            time_dtype = torch.float32 if self.device.type == "mps" else torch.float64
            where = level[part].to(self.device), times[part].to(self.device, time_dtype)
            node_ids, refined = corrupt_level(tokens, mask, *where, tree, self.schedule, generator)
            # The head looks only at the positions that count.
            hidden_nE, node_n, token_n = (
                all_BT[refined] for all_BT in (self.model(node_ids, *masks).last_hidden_state, node_ids, tokens)
            )
            nats_1n = child_cross_entropy(
                self.head,
                hidden_nE[None],
                node_n[None],
                child_slots(node_n, token_n, tree)[None],
                tree,
                self.config.loss_chunk_size,
            )
            within, position = refined.cpu().nonzero(as_tuple=True)
            weight = mask.sum(dim=1).cpu().double() / refined.sum(dim=1).cpu() * share[part]
            nats[part[within], position] = nats_1n[0].cpu().double() * weight[within]
            if callback is not None:
                callback(NelboStep(row[part[within]], position, weight[within], node_n, token_n, hidden_nE))
        return _estimate(nats, share, row, level, counted, depth)

    @torch.no_grad()
    def leaf_log_probs(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Log-probability of every token at every position, from one look at the sequence; dense, so large.

        The product of the child probabilities on the way down from each position's node, all from the same hidden
        state. The diffusion refines level by level with a pass for each, so for D > 1 this is not what it samples
        from, but it sums to 1 and ranks all tokens at once. `TreeDiffForMaskedLM` is better and dearer.

        Args:
            input_ids: (B, T) node ids.
            attention_mask: (B, T), 0 at padding.

        Returns:
            (B, T, V) in float32 at least; -inf for tokens that are not below a position's node.

        """
        tree, node_n = self.tree, input_ids.flatten()
        hidden_nE = self.model(input_ids, attention_mask).last_hidden_state.flatten(0, 1)
        log_nV = torch.zeros(len(node_n), tree.vocab_size, device=node_n.device)
        log_nV = log_nV.to(torch.promote_types(hidden_nE.dtype, torch.float32))
        for level in range(1, tree.tree_depth + 1):
            score_nM = self.head.node_scores(hidden_nE, level, tree).to(log_nV.dtype)
            node_V, parent_V = (
                tree.ancestors[:, depth] - tree.ancestors[:, depth].min() for depth in (level, level - 1)
            )
            above_node_n1 = (tree.depth[node_n] < level)[:, None]
            log_nV += torch.where(above_node_n1, _sibling_log_softmax(score_nM, node_V, parent_V)[:, node_V], 0.0)
        elsewhere_nV = tree.ancestors.T[tree.depth[node_n]] != node_n[:, None]
        return log_nV.masked_fill_(elsewhere_nV, -torch.inf).view(*input_ids.shape, -1)


def _strata(
    num_sequences: int, num_samples: int, depth: int, generator: torch.Generator | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Spread corruptions over levels and times; return sequence, level 1..D and quantile of the time of each, (n,).

    The sequences, in random order, go through the levels in turn, each where the one before stopped. Each divides
    [0, 1] into as many parts as it has corruptions of a level; places within the parts are stratified over all
    corruptions of that level.
    """
    options: dict[str, Any] = {"generator": generator, "device": generator.device if generator is not None else "cpu"}
    sample = torch.arange(num_samples).repeat(num_sequences)
    row = torch.arange(num_sequences).repeat_interleave(num_samples)
    turn = torch.randperm(num_sequences, **options).cpu()[row]
    level = (turn * num_samples + sample + int(torch.randint(depth, (1,), **options))) % depth
    parts = (num_samples - sample % depth + depth - 1) // depth
    within = uniform((len(row),), generator, torch.device("cpu"))
    for index in range(depth):
        same = (level == index).nonzero()[:, 0]
        within[same] = (torch.randperm(len(same), **options).cpu() + within[same]) / max(len(same), 1)
    return row, level + 1, (sample // depth + within) / parts


def _shares(row: torch.Tensor, level: torch.Tensor, num_samples: int, depth: int) -> torch.Tensor:
    """Return (n,) the share of each corruption in its level's part of the bound.

    A mean over a sequence's corruptions of a level; where it has not one of each, over those that it could have had.
    """
    if num_samples < depth:
        return torch.full(row.shape, depth / num_samples, dtype=torch.float64)
    visit = row * depth + level
    return 1 / torch.bincount(visit)[visit].double()


def _estimate(
    nats: torch.Tensor, share: torch.Tensor, row: torch.Tensor, level: torch.Tensor, counted: torch.Tensor, depth: int
) -> NelboEstimate:
    """Put the corruptions' contributions (n, T), of which each is `share` of a mean, together."""
    num_tokens, length = int(counted.sum()), counted.sum(dim=1)[row].double()
    samples, per_corruption = len(row) // len(counted), nats.sum(dim=1)
    token_losses = torch.zeros(counted.shape, dtype=torch.float64).index_add_(0, row, nats)
    level_losses = torch.bincount(level - 1, per_corruption, minlength=depth) / num_tokens
    # Spread within a sequence if it has two corruptions of every level, else over all sequences: around the mean rate
    # per token, or around the mean where it is left to chance which sequence a level sees.
    group = (row * depth if samples >= 2 * depth else 0) + level - 1
    unit = length if samples >= depth else torch.ones_like(length)
    size = torch.bincount(group)
    rate = torch.bincount(group, per_corruption / share) / torch.bincount(group, unit)
    spread = torch.bincount(group, ((per_corruption - rate[group] * unit * share) / num_tokens).square())
    several = size > 1
    variance = (spread * size / (size - 1))[several].sum() if (several | (size == 0)).all() else torch.tensor(torch.inf)
    levels = tuple(level_losses.tolist())
    return NelboEstimate(sum(levels), float(variance.sqrt()), levels, token_losses, num_tokens)


def _sibling_log_softmax(score_nM: torch.Tensor, node_V: torch.Tensor, parent_V: torch.Tensor) -> torch.Tensor:
    """Normalise the scores (n, M) of all nodes of one depth among siblings; node_V and parent_V number from 0."""
    parent_M = torch.empty(score_nM.shape[1], dtype=torch.long, device=node_V.device)
    parent_M[node_V] = parent_V
    index_nM = parent_M.expand(len(score_nM), -1)
    largest_nP = score_nM.new_full((len(score_nM), int(parent_V.max()) + 1), -torch.inf)
    largest_nP = largest_nP.scatter_reduce(1, index_nM, score_nM, "amax")
    shifted_nM = score_nM - largest_nP[:, parent_M]
    total_nP = torch.zeros_like(largest_nP).scatter_add(1, index_nM, shifted_nM.exp())
    return shifted_nM - total_nP.log()[:, parent_M]
