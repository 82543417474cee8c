"""Likelihood: the bound on -log p, estimated with low variance, and the distribution over tokens at every position.

Shape legend: B sequences, T positions, E hidden size, V tokens, D depth of the leaves, K largest fan-out, S corruptions
of a sequence; in `nelbo` R blocks of up to L positions, n of their corruptions, m positions that a pass scores; in
`token_log_probs` n nodes that positions may stand at, m of them scored in a pass.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from .configuration_treediff import TreeDiffConfig, is_of
from .diffusion_process import (
    check_nodes,
    check_tokens,
    child_slots,
    corrupt_level,
    counted_positions,
    number_blocks,
    uniform,
)
from .node_layers_treediff import TreeHead, mix_uniform, perturbed_cross_entropy
from .noise_schedules import LevelSchedule
from .vocabulary_tree import VocabularyTree

SEQUENCES_PER_PASS = 64

Masks = Sequence[torch.Tensor | None]


@dataclass(frozen=True)
class NelboEstimate:
    """An upper bound on the negative log-likelihood, estimated by Monte Carlo; nats per token.

    The standard error is that of the value for these sequences. It errs high, since corruptions are stratified, and is
    infinite where a level was visited less than twice.
    """

    value: float  # the sum of the token losses over num_tokens
    standard_error: float
    level_losses: tuple[float, ...]  # (D,) share of each level in the value, coarsest first
    token_losses: torch.Tensor = field(compare=False, repr=False)  # (B, T) float64 on the CPU, 0 where not counted
    num_tokens: int  # tokens counted

    @property
    def perplexity(self) -> float:
        """exp(value): an upper bound on the perplexity per token."""
        return float(torch.tensor(self.value, dtype=torch.float64).exp())  # inf, no OverflowError


@dataclass(frozen=True)
class NelboStep:
    """One forward pass of `nelbo`: n positions that stand just above a level of the tree.

    Over all passes weight x cross-entropy of the true child adds up to the bound of all sequences, in nats.
    """

    sequence: torch.Tensor  # (n,) the sequence that each is in; this, `position` and `weight` are on the CPU
    position: torch.Tensor  # (n,) its place there
    weight: torch.Tensor  # (n,) float64
    node_ids: torch.Tensor  # (n,) the node that stands there
    token_ids: torch.Tensor  # (n,) the clean token
    hidden: torch.Tensor  # (n, E) hidden state


@dataclass(frozen=True)
class Blocks:
    """The blocks of some sequences that hold a token to count; each sequence is one in a model without blocks."""

    sequence: torch.Tensor  # (R,) that each is in, in order
    place: torch.Tensor  # (R, L) its positions there, -1 behind its last


class TreeDiffLikelihoodMixin:
    """Adds `nelbo` and `token_log_probs` to a model with a tree, a schedule and a head."""

    # What the model class brings along.
    config: TreeDiffConfig
    device: torch.device
    dtype: torch.dtype
    schedule: LevelSchedule
    training: bool
    tree: VocabularyTree
    model: Any  # a TreeDiffModel
    head: TreeHead
    child_cross_entropy: Callable[..., torch.Tensor]

    def bound_nats(self, hidden: torch.Tensor, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """(B, T, E) hidden states, (B, T) nodes, tokens or -100 -> (B, T) nats that the bound weighs, 0 at tokens."""
        if rate := self.schedule.perturbation:
            return perturbed_cross_entropy(self.head, hidden, input_ids, labels, self.tree, rate)
        return self.child_cross_entropy(hidden, input_ids, child_slots(input_ids, labels, self.tree))

    def asked_nats(
        self, hidden: torch.Tensor, input_ids: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return `bound_nats`, and (B, T) nats of what is asked: these alone, or in training with lookahead more.

        That is, `lookahead` times the sum over the levels k from depth + 2 on of -log p(a_k(x) | a_{k-1}(x), the hidden
        state there).
        """
        tree, share, perturbed = self.tree, self.config.lookahead, bool(self.schedule.perturbation)
        if not (self.training and share):
            return (bound_BT := self.bound_nats(hidden, input_ids, labels)), bound_BT
        token_BT, depth_BT = labels.clamp(min=0), tree.depth[input_ids]
        bound_BT = self.bound_nats(hidden, input_ids, labels) if perturbed else torch.zeros((), device=hidden.device)
        deeper_BT = torch.zeros_like(hidden[..., 0], dtype=torch.float32)
        for level in range(perturbed, self.config.tree_depth):
            true_BT = torch.where(depth_BT <= level, tree.ancestors[token_BT, level], token_BT)
            nats_BT = self.child_cross_entropy(hidden, true_BT, child_slots(true_BT, labels, tree), level)
            deeper_BT = deeper_BT + torch.where(depth_BT < level, nats_BT, 0)
            if not perturbed:
                bound_BT = bound_BT + torch.where(depth_BT == level, nats_BT, 0)
        return bound_BT, bound_BT + share * deeper_BT

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
        mean cross-entropy of all positions at depth k-1 is an unbiased estimate of the level's share. No weight is
        unbounded. Levels and times are stratified. With S >= D every sequence sees every level, with fewer by chance.
        The bound of a model with blocks is the sum of theirs, each given the tokens before it: what is said of a
        sequence here is then said of each of its blocks, all of them in one pass.

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
            ValueError: ids outside the vocabulary, a mask of another shape, no token to count in a sequence, or a
                uniform_share where nodes are perturbed.
        """
        tree, depth = self.tree, self.config.tree_depth
        if self.config.uniform_share and self.schedule.perturbation:
            raise ValueError("uniform_share has no meaning where nodes are perturbed: set it to 0.")
        check_tokens(token_ids, tree, attention_mask=attention_mask, fixed_mask=fixed_mask, segment_ids=segment_ids)
        counted = counted_positions(token_ids, attention_mask, fixed_mask).cpu()
        if not all(is_of(count, int) and count >= 1 for count in (num_samples, batch_size)):
            got = f"{num_samples!r} and {batch_size!r}"
            raise ValueError(f"num_samples and batch_size must be whole numbers, at least 1, got {got}.")
        if not (some := counted.any(dim=1)).all():
            raise ValueError(f"There is nothing to measure in sequence {int((~some).nonzero()[0])}: no token to count.")
        blocks = self._blocks(token_ids, attention_mask, segment_ids, counted)
        if (total := len(blocks.place) * num_samples) < depth:
            raise ValueError(f"{total} corruptions cannot visit the tree's {depth} levels: give more num_samples.")
        row, level, quantile = strata(len(blocks.place), num_samples, depth, generator)
        times = self.schedule.loss_times(level, quantile)
        visit = row * depth + level
        # Of each corruption in its level's mean: over its block's, or over those that it could have had.
        share = 1 / torch.bincount(visit)[visit].double()
        if num_samples < depth:
            share = torch.full(row.shape, depth / num_samples, dtype=torch.float64)
        counted_RL = counted[blocks.sequence[:, None], blocks.place.clamp(min=0)] & (blocks.place >= 0)
        nats = torch.zeros(total, dtype=torch.float64)
        token_losses = torch.zeros(token_ids.shape, dtype=torch.float64)
        for part in torch.arange(len(token_ids) * num_samples).split(batch_size):
            sequence, sample = part // num_samples, part % num_samples
            text_n, block_n = (sequence[:, None] == blocks.sequence).nonzero(as_tuple=True)
            drawn_n = block_n * num_samples + sample[text_n]
            tokens = token_ids[sequence].to(self.device).long()
            seen = [None if some is None else some[sequence].to(self.device) for some in (attention_mask, segment_ids)]
            time_dtype = torch.float32 if self.device.type == "mps" else torch.float64
            where = level[drawn_n].to(self.device), times[drawn_n].to(self.device, time_dtype)
            place_nL, mask_nL = blocks.place[block_n].to(self.device), counted_RL[block_n].to(self.device)
            text_nL = text_n.to(self.device)[:, None].expand_as(place_nL)
            clean_nL = tokens[text_nL, place_nL.clamp(min=0)]
            nodes_nL, refined = corrupt_level(clean_nL, mask_nL, *where, tree, self.schedule, generator)
            node_ids = tokens.index_put((text_nL[mask_nL], place_nL[mask_nL]), nodes_nL[mask_nL])
            hidden = self.model(node_ids, *seen, tokens).last_hidden_state
            # The head looks only at the positions that count.
            hidden_mE = hidden[text_nL[refined], place_nL[refined]]
            node_m, token_m = nodes_nL[refined], clean_nL[refined]
            nats_m = self.bound_nats(hidden_mE[None], node_m[None], token_m[None])[0]
            if share_of_all := self.config.uniform_share:
                nats_m = -mix_uniform(-nats_m, node_m, tree, share_of_all)
            weight_n = mask_nL.sum(dim=1).cpu().double() / refined.sum(dim=1).cpu() * share[drawn_n]
            of_m = refined.cpu().nonzero()[:, 0]
            weight_m, position_m = weight_n[of_m], place_nL[refined].cpu()
            loss_m = nats_m.cpu().double() * weight_m
            nats.index_add_(0, drawn_n[of_m], loss_m)
            token_losses.index_put_((sequence[text_n[of_m]], position_m), loss_m, accumulate=True)
            if callback is not None:
                callback(NelboStep(sequence[text_n[of_m]], position_m, weight_m, node_m, token_m, hidden_mE))
        return _estimate(nats, token_losses, share, row, level, counted_RL.sum(dim=1), depth)

    @torch.no_grad()
    def token_log_probs(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        segment_ids: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Log-probability of every token at every position, by descending the tree as the diffusion does; dense.

        log p(x) = sum_k log p(a_k(x) | a_{k-1}(x) at the position, the others): one pass scores the children of the
        open positions' nodes, then each child is put at its position and its own children are scored, down to the
        tokens. All other positions stay, so several open ones get their distributions each on its own; but none, unless
        in a block before, is shown finer than the schedule shows it beside that depth (`LevelSchedule.deepest_beside`).
        It costs a pass for the batch and one sequence for each internal node below each open position. On the flat
        tree this is the softmax of one pass. Inner nodes are taken as true, also where a schedule shows wrong ones.

        Args:
            input_ids: (B, T) node ids; ValueError for ids outside the tree.
            attention_mask: (B, T), 0 at padding.
            segment_ids: (B, T), equal numbers for positions that see one another; None where all do.
            kwargs: what else a tokenizer returns, ignored.

        Returns:
            (B, T, V) in float32 at least, without gradient; -inf for tokens that are not below a position's node, so
            at a token 0 for itself alone.
        """
        tree = self.tree
        check_nodes(input_ids, tree.num_nodes, attention_mask=attention_mask, segment_ids=segment_ids)
        dtype = torch.promote_types(self.dtype, torch.float32)
        log_BTV = torch.full((*input_ids.shape, tree.vocab_size), -torch.inf, dtype=dtype, device=input_ids.device)
        # Nodes of one depth that positions may stand at: the sequence, the place in it, the node, its log-probability.
        row_n, place_n, node_n, log_n = _given_at(0, input_ids, tree, dtype)
        for depth in range(tree.tree_depth):
            deepest = self.schedule.deepest_beside(depth)
            before = input_ids if deepest < tree.tree_depth else None  # in blocks before a position's own
            masks = attention_mask, segment_ids, before
            log_nK = self._log_children(tree.coarsen(input_ids, deepest), masks, row_n, place_n, node_n)
            child_nK = tree.children[node_n - tree.root_id]
            index, slot = (child_nK >= 0).nonzero().unbind(1)
            below = row_n[index], place_n[index], child_nK[index, slot], log_n[index] + log_nK[index, slot]
            given = _given_at(depth + 1, input_ids, tree, dtype)
            row_n, place_n, node_n, log_n = (torch.cat(pair) for pair in zip(below, given, strict=True))
        log_BTV[row_n, place_n, node_n] = log_n
        return log_BTV

    def _blocks(
        self,
        token_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        segment_ids: torch.Tensor | None,
        counted: torch.Tensor,
    ) -> Blocks:
        length = token_ids.shape[1]
        if self.config.block_size is None:
            return Blocks(torch.arange(len(token_ids)), torch.arange(length).expand(len(token_ids), length))
        number_BT = number_blocks(token_ids, attention_mask, segment_ids, self.config.block_size).cpu()
        real_BT = torch.ones_like(counted) if attention_mask is None else (attention_mask != 0).cpu()
        most = int(number_BT.max()) + 1
        text_m, place_m = real_BT.nonzero(as_tuple=True)  # block after block, as they are numbered
        key_R, block_m, size_R = (text_m * most + number_BT[real_BT]).unique_consecutive(
            return_inverse=True, return_counts=True
        )
        place_RL = torch.full((len(key_R), int(size_R.max())), -1)
        place_RL[block_m, torch.arange(len(place_m)) - (size_R.cumsum(0) - size_R)[block_m]] = place_m
        some_R = torch.zeros(len(key_R), dtype=torch.bool).index_put((block_m[counted[real_BT]],), torch.tensor(True))
        return Blocks(key_R[some_R] // most, place_RL[some_R])

    def _log_children(
        self, context_BT: torch.Tensor, masks: Masks, row_n: torch.Tensor, place_n: torch.Tensor, node_n: torch.Tensor
    ) -> torch.Tensor:
        """Return the (n, K) log-probabilities of the children of each node at its place in its sequence."""
        dtype = torch.promote_types(self.dtype, torch.float32)
        log_nK = torch.empty(len(row_n), self.config.max_branching, dtype=dtype, device=node_n.device)
        is_there = context_BT[row_n, place_n] == node_n
        if is_there.any():  # what stands in the text as it is needs no sequence of its own
            log_nK[is_there] = self._log_probs_at(context_BT, masks, row_n[is_there], place_n[is_there])
        elsewhere = (~is_there).nonzero()[:, 0]
        for part in elsewhere.split(SEQUENCES_PER_PASS) if len(elsewhere) else ():
            row_m, place_m, index_m = row_n[part], place_n[part], torch.arange(len(part), device=part.device)
            nodes_mT = context_BT[row_m].index_put((index_m, place_m), node_n[part])
            masks_mT = [None if mask is None else mask[row_m] for mask in masks]
            log_nK[part] = self._log_probs_at(nodes_mT, masks_mT, index_m, place_m)
        return log_nK

    def _log_probs_at(
        self, nodes: torch.Tensor, masks: Masks, row_m: torch.Tensor, place_m: torch.Tensor
    ) -> torch.Tensor:
        """Run sequences once; return (m, K) log-probabilities of the children at some of their positions."""
        hidden_mE, node_m = self.model(nodes, *masks).last_hidden_state[row_m, place_m], nodes[row_m, place_m]
        dtype = torch.promote_types(self.dtype, torch.float32)
        log_mK = self.head(hidden_mE, node_m, self.tree).log_softmax(dim=-1, dtype=dtype)
        return mix_uniform(log_mK, node_m, self.tree, self.config.uniform_share)


def _given_at(
    depth: int, input_ids: torch.Tensor, tree: VocabularyTree, dtype: torch.dtype
) -> tuple[torch.Tensor, ...]:
    """Return sequence, place, node and log-probability 0 of the positions that stand at this depth for certain."""
    row_n, place_n = (tree.depth[input_ids] == depth).nonzero().unbind(1)
    return row_n, place_n, input_ids[row_n, place_n], torch.zeros_like(row_n, dtype=dtype)


def strata(
    num_sequences: int, num_samples: int, depth: int, generator: torch.Generator | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Spread corruptions over levels and times; return sequence, level 1..D and quantile of the time of each, (n,).

    The sequences, in random order, go through the levels in turn, each where the one before stopped. Each divides
    [0, 1] by its corruptions of a level; places within the parts are stratified over all corruptions of that level.
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


def _estimate(
    per_corruption: torch.Tensor,
    token_losses: torch.Tensor,
    share: torch.Tensor,
    row: torch.Tensor,
    level: torch.Tensor,
    counts: torch.Tensor,
    depth: int,
) -> NelboEstimate:
    """Put the corruptions' contributions (n,), of which each is `share` of a mean, together; `counts` are tokens."""
    num_tokens, length = int(counts.sum()), counts[row].double()
    samples = len(row) // len(counts)
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
