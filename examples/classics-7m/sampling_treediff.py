"""Sampling: which positions of a draft descend the tree in which step, and to which child.

Shape legend: B sequences, T positions, n positions among them, D depth of the leaves, K largest fan-out.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import torch
from transformers.cache_utils import Cache
from transformers.generation import LogitsProcessorList, TopKLogitsWarper, TopPLogitsWarper

from .backbone_treediff import crop
from .diffusion_process import Generators, number_blocks, perturb, sibling_log_likelihood, uniform_at
from .drafts_treediff import Block, ChildModel, Constraints, Draft
from .generation_config_treediff import ORDERED, TreeDiffGenerationConfig
from .vocabulary_tree import VocabularyTree

Scores = Callable[[torch.Tensor], torch.Tensor]  # (n,) nodes -> (n, K) scores of their children, as a pass saw the text


@dataclass(frozen=True)
class Choice:
    """The children drawn for n positions."""

    child: torch.Tensor  # (n,) node ids
    log_prob: torch.Tensor  # (n,) of the child among its siblings, before temperature and truncation
    score: torch.Tensor  # (n,) how sure the position is, in the measure that the unmasking goes by


class ChildSampler:
    """Draws children from logits, as the generation config says."""

    def __init__(self, settings: TreeDiffGenerationConfig, tree: VocabularyTree) -> None:
        """Prepare; ValueError if there are temperatures for another number of levels than the tree's."""
        self.settings, self.tree = settings, tree
        least, device = settings.threshold, tree.depth.device  # the least score that counts as sure
        self.threshold = -least if least is not None and settings.unmasking == "entropy" else least
        self.dtype = settings.dtype_on(device)
        temperature = settings.temperature
        if isinstance(temperature, list | tuple) and len(temperature) != tree.tree_depth:
            raise ValueError(f"temperature has {len(temperature)} numbers, the tree {tree.tree_depth} levels.")
        above_0 = torch.finfo(self.dtype).tiny  # 1e-50 is none in single precision
        self.temperature_D = torch.tensor(temperature, dtype=self.dtype, device=device).clamp(min=above_0)
        self.temperature_D = self.temperature_D.expand(tree.tree_depth)
        self.warpers = LogitsProcessorList()
        if settings.top_k is not None:
            self.warpers.append(TopKLogitsWarper(settings.top_k))
        if settings.top_p is not None:
            self.warpers.append(TopPLogitsWarper(float(settings.top_p)))

    def __call__(
        self,
        node_n: torch.Tensor,
        logits_nK: torch.Tensor,
        uniform_n: torch.Tensor,
        log_weight_nK: torch.Tensor | None,
        log_likelihood_nK: torch.Tensor | None = None,
    ) -> Choice:
        """Choose for internal nodes (n,) by numbers from U[0, 1): p(child) is proportional to exp(logit + log_weight).

        The likelihood of what is shown is a further factor, which temperature and truncation leave as it is. Raises
        ValueError where a position has no child to draw, by the weights or because logits are not numbers.
        """
        # Low-precision sampling silently lowers the entropy of the text: never in half precision.
        scores_nK = logits_nK.to(self.dtype)
        if log_weight_nK is not None:
            scores_nK = scores_nK.log_softmax(dim=-1) + log_weight_nK
        log_prob_nK = scores_nK.log_softmax(dim=-1)
        if (impossible := int(log_prob_nK.isnan().any(dim=-1).sum())) and not logits_nK.amax(dim=-1).isfinite().all():
            where = f"at {impossible} positions: its weights are damaged, or too large for {logits_nK.dtype}"
            raise ValueError(f"The model gives scores that are not numbers {where}.")
        if impossible:
            raise ValueError(f"The constraints together leave {impossible} positions no token: allow more.")
        below_best_nK = log_prob_nK - log_prob_nK.amax(dim=-1, keepdim=True)  # however small the temperature
        if log_likelihood_nK is not None:
            log_prob_nK = (log_prob_nK + log_likelihood_nK).log_softmax(dim=-1)
        if self.settings.do_sample:
            warped_nK = below_best_nK / self.temperature_D[self.tree.depth[node_n]][:, None]
            probability_nK = self.warpers(None, warped_nK).softmax(dim=-1)  # type: ignore[arg-type]
            if log_likelihood_nK is not None:
                probability_nK = probability_nK * log_likelihood_nK.exp()
            slot_n = draw_slots(probability_nK, uniform_n)
        else:
            slot_n = below_best_nK.argmax(dim=-1)  # as a vanishing temperature has it
        log_prob_n = log_prob_nK.gather(1, slot_n[:, None])[:, 0]
        child_n = self.tree.children[node_n - self.tree.root_id, slot_n]
        return Choice(child_n, log_prob_n, self._score(log_prob_nK, log_prob_n))

    def _score(self, log_prob_nK: torch.Tensor, log_prob_n: torch.Tensor) -> torch.Tensor:
        if self.settings.unmasking == "entropy":
            return torch.special.entr(log_prob_nK.exp()).sum(dim=-1).neg()
        if self.settings.unmasking == "margin":
            best = log_prob_nK.topk(min(2, log_prob_nK.shape[1]), dim=-1).values.exp()
            return best[:, 0] - best[:, 1:].sum(dim=-1)
        return log_prob_n.exp()


def draw_slots(probability_nK: torch.Tensor, uniform_n: torch.Tensor) -> torch.Tensor:
    """Return each row's first slot whose cumulative probability exceeds its number; never one of probability 0."""
    cumulative_nK = probability_nK.cumsum(dim=-1)
    total_n1 = cumulative_nK[:, -1:]
    threshold_n1 = uniform_n.to(cumulative_nK.dtype)[:, None] * total_n1
    threshold_n1 = torch.minimum(threshold_n1, torch.nextafter(total_n1, torch.zeros_like(total_n1)))  # if rounded up
    return torch.searchsorted(cumulative_nK, threshold_n1, right=True)[:, 0]


@dataclass(frozen=True)
class Stage:
    """A part of the way down that all positions finish before any goes on: one level, or with some schedules all."""

    depth: int  # what every position reaches
    times: torch.Tensor  # (steps + 1,) float64, falling: what the steps lie between
    corrections: int  # times that some positions are remasked after it
    climb: int  # levels that they climb then


def surest(
    score_BT: torch.Tensor,
    levels_left_BT: torch.Tensor,
    passes_left: int,
    threshold: float | None = None,
    entropy_bound: float | None = None,
) -> torch.Tensor:
    """Choose who descends a level in this pass: (B, T) bool, the highest scores of each text.

    As many as finish all levels (B, T) that are left in passes_left equal passes, this one included, and all whose
    score reaches the threshold, or whose entropies, the scores below 0, keep the bound; those who have as many levels
    left as passes must go.
    """
    waiting_BT = levels_left_BT > 0
    count_B = (levels_left_BT.sum(dim=1) + passes_left - 1) // passes_left
    must_BT = levels_left_BT >= passes_left
    chosen_BT = must_BT | highest(score_BT, waiting_BT & ~must_BT, count_B - must_BT.sum(dim=1))
    if threshold is not None:
        chosen_BT |= waiting_BT & (score_BT >= threshold)
    if entropy_bound is not None:
        entropy_BT, order_BT = score_BT.round(decimals=4).neg().masked_fill(~waiting_BT, torch.inf).sort(stable=True)
        kept_BT = entropy_BT.cumsum(dim=1) - entropy_BT <= entropy_bound  # they rise: the last is the greatest
        chosen_BT |= waiting_BT & kept_BT.scatter(1, order_BT, kept_BT)
    return chosen_BT


def highest(score_BT: torch.Tensor, among_BT: torch.Tensor, count_B: torch.Tensor) -> torch.Tensor:
    """(B, T) bool: the `count_B` highest scores of each row among some; of equal ones the first.

    To four decimals, so that rounding errors, which a text has in a batch and not alone, do not tell equals apart.
    """
    ranked_BT = score_BT.round(decimals=4).masked_fill(~among_BT, -torch.inf)
    rank_BT = ranked_BT.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return among_BT & (rank_BT < count_B[:, None])


class Denoiser:
    """Takes a draft from open nodes down to tokens: steps, and corrections by remasking.

    The loop, for each block of positions and each stage of the way down: look at the draft, draw a child for every
    position that waits, let those descend that the order of unmasking selects.
    """

    def __init__(
        self,
        model: ChildModel,
        draft: Draft,
        settings: TreeDiffGenerationConfig,
        constraints: Constraints,
        generator: Generators,
        cache: Cache | None = None,
    ) -> None:
        """Take over a draft that was laid out; ValueError for settings that do not fit the tree, or no token left.

        A cache keeps what the network has computed for what stands before a block.
        """
        self.cache, self.num_final = cache, 0
        self.model, self.tree, self.settings, self.constraints = model, model.tree, settings, constraints
        self.generator, self.sampler = generator, ChildSampler(settings, model.tree)
        self.draft, self.num_passes, self.rate = draft, 0, model.schedule.perturbation
        self.wrong_rate = self.rate if settings.do_sample else 0.0  # at which what was drawn is shown as another node
        # How sure a position is of two choices: entropies add up, else it is as sure as of the less sure one.
        self.of_both = torch.add if settings.unmasking == "entropy" else torch.minimum
        self.given_tokens = draft.real & (draft.node_ids < model.tree.vocab_size)
        self.written = torch.zeros_like(draft.real)  # positions, but those behind an end of text
        draft.log_probs = draft.log_probs.to(self.sampler.dtype)
        constraints.begin(model, settings)
        draft.num_forward_passes = constraints.num_forward_passes

    def denoise(self, blocks: Sequence[Block], stages: Sequence[Stage]) -> Iterator[Draft]:
        """Fill the draft block by block; yield it after every forward pass, remasking, step and block."""
        draft = self.draft
        for block in blocks:
            self._begin_block(block)
            for stage in stages:
                yield from self._descend(stage)
                unchanged_B = torch.zeros_like(draft.node_ids[:, 0])
                for index in range(stage.corrections):
                    before, going_on = draft.node_ids, unchanged_B < (self.settings.stability_threshold or math.inf)
                    if not going_on.any():
                        break
                    share = self.settings.remasking_fraction * (1 - index / stage.corrections)
                    self._remask(stage, share, self.open & going_on[:, None])
                    yield draft
                    yield from self._finish(stage)
                    least = -math.inf if (sure := self.settings.confidence_threshold) is None else math.log(sure)
                    unsure_B = ((draft.log_probs.amin(dim=2) < least) & self.open).any(dim=1)
                    settled_B = (draft.node_ids == before).all(dim=1) & ~unsure_B
                    unchanged_B = torch.where(settled_B, unchanged_B + 1, 0)
            self._pad_behind_end()
            draft.num_blocks += 1
            yield draft
            if not (draft.node_ids[draft.real] >= self.tree.vocab_size).any():
                return

    def _begin_block(self, block: Block) -> None:
        start = None if self.settings.approximate_cache else self.draft.columns.start
        if self.cache is not None and block.columns.start != start:
            crop(self.cache, 0)
        self.draft.columns, self.draft.visible, self.num_final = block.columns, block.visible, block.num_final
        self.given_depth = self._depth()
        self.open = self.draft.real & block.positions & (self.given_depth < self.tree.tree_depth)
        self.written = self.written | self.open
        self.uniform = self._draws(self.open)
        self.constraints.check(self.draft, self.open)

    def _draws(self, where_BT: torch.Tensor) -> torch.Tensor:
        """(B, T, D, 1) numbers from U[0, 1) for the child at each level; 3 for each where nodes are perturbed."""
        kinds = 3 if self.rate else 1
        return uniform_at(where_BT, self.generator, self.tree.tree_depth * kinds).unflatten(-1, (-1, kinds))

    def _depth(self) -> torch.Tensor:
        """(B, T) depths of the nodes."""
        return self.tree.depth[self.draft.node_ids]

    def _levels_left(self, stage: Stage) -> torch.Tensor:
        """(B, T) levels from here to the stage's depth; 0 where no position is open."""
        return torch.where(self.open, stage.depth - self._depth(), 0).clamp(min=0)

    def _descend(self, stage: Stage) -> Iterator[Draft]:
        """Let all open positions descend to the stage's depth, in the order of unmasking."""
        if self.settings.unmasking in ORDERED:
            yield from self._descend_surest_first(stage)
        elif self.settings.unmasking == "first_hitting":
            for target_BT in self._first_hitting_targets(stage):
                yield from self._descend_to(target_BT)
                yield self._end_step()
        else:
            yield from self._descend_at_random(stage)
        yield from self._finish(stage)  # those that constraints held back

    def _descend_at_random(self, stage: Stage) -> Iterator[Draft]:
        """Descend as the reverse process has it; with remasking, each step goes too far and the forward one returns."""
        times, schedule, given = stage.times.tolist(), self.model.schedule, range(self.tree.tree_depth + 1)
        begin = 0 if len(schedule.boundaries) == 2 else stage.depth - 1  # where the stage before has led
        law = torch.eye(len(given), dtype=torch.float64)[[max(depth, begin) for depth in given]]  # by the depth given
        for start, end in pairwise(times):
            step, further = schedule.reverse_step(start, end), end - self.settings.remasking_rate * (start - end)
            law, further = law @ step, max(further, times[-1])
            beyond = step @ schedule.reverse_step(end, further) if further < end else step
            yield from self._descend_to(self._drawn_depth(beyond[None]))
            if further < end:
                self._climb(self._drawn_depth(schedule.forward_step(further, end, law)), self.open)
                yield self.draft
            yield self._end_step()

    def _drawn_depth(self, step: torch.Tensor) -> torch.Tensor:
        """(1 or D+1, D+1, D+1) probabilities of depths, by the depth given and the present one -> (B, T) drawn ones."""
        drawn_BT1, depth_BT = uniform_at(self.open, self.generator)[..., None], self._depth()
        below = step.cumsum(dim=-1)[..., :-1].to(drawn_BT1)[self.given_depth.clamp(max=len(step) - 1), depth_BT]
        return torch.where(self.open, (drawn_BT1 >= below).sum(dim=-1), depth_BT)

    def _first_hitting_targets(self, stage: Stage) -> Iterator[torch.Tensor]:
        """Yield the depths (B, T) to reach, for a single position and level of each text after the other.

        The order is that of the times at which the reverse process reaches them (arXiv 2409.02908).
        """
        depth_BT, schedule = self._depth(), self.model.schedule
        uniform_nD = uniform_at(self.open, self.generator, schedule.depth).flatten(0, 1)
        time_nD = schedule.hitting_times(depth_BT.flatten(), uniform_nD)
        level_D = torch.arange(1, schedule.depth + 1, device=depth_BT.device)
        ahead_BTD = (level_D > depth_BT[..., None]) & (level_D <= stage.depth) & self.open[..., None]
        time_BTD = time_nD.view(ahead_BTD.shape).masked_fill(~ahead_BTD, -torch.inf)
        # Equal times, if ever, keep the order of the levels: sorting is stable, levels of a position lie side by side.
        rank_BP = time_BTD.flatten(1).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        for count in range(1, int(ahead_BTD.sum(dim=(1, 2)).max()) + 1):
            yield depth_BT + (ahead_BTD & (rank_BP.view(ahead_BTD.shape) < count)).sum(dim=-1)

    def _descend_to(self, target_BT: torch.Tensor) -> Iterator[Draft]:
        """Let positions descend to depths (B, T), a level in a pass."""
        while (moving_BT := self._depth() < target_BT).any():
            yield self._pass(moving_BT)

    def _descend_surest_first(self, stage: Stage) -> Iterator[Draft]:
        """Let the surest positions descend first, in the stage's number of passes at most."""
        for passes_left in range(len(stage.times) - 1, 0, -1):
            left_BT = self._levels_left(stage)
            if not left_BT.any():
                return
            sure = partial(surest, threshold=self.sampler.threshold, entropy_bound=self.settings.entropy_bound)
            yield self._pass(left_BT > 0, partial(sure, levels_left_BT=left_BT, passes_left=passes_left))
            yield self._end_step()

    def _finish(self, stage: Stage) -> Iterator[Draft]:
        """Let all that have not reached the stage's depth descend to it, a level in a pass."""
        while (moving_BT := self._levels_left(stage) > 0).any():
            yield self._pass(moving_BT)
            yield self._end_step()

    def _end_step(self) -> Draft:
        self.draft.num_steps += 1
        return self.draft

    def _pass(self, waiting_BT: torch.Tensor, select: Callable[[torch.Tensor], torch.Tensor] | None = None) -> Draft:
        """Look at the draft once, draw children where positions wait, and let those descend that are selected."""
        scores = self._child_scores(waiting_BT[:, self.draft.columns])
        self.num_passes += 1
        level_n = self._depth()[waiting_BT]
        uniform_n1 = self.uniform[waiting_BT, level_n]
        certain = self._certain()
        unsure_BT = waiting_BT & (certain.node_ids != self.draft.node_ids)
        revised = self._revised(certain, waiting_BT, unsure_BT, scores, uniform_n1)
        weights_nK = self.constraints.log_weights(certain, waiting_BT, revised.child)
        choice = self.sampler(revised.child, scores(revised.child), uniform_n1[:, 0], weights_nK)
        score_n = self.of_both(choice.score, revised.score)
        score_BT = score_n.new_zeros(waiting_BT.shape).masked_scatter(waiting_BT, score_n)
        moving_BT = waiting_BT if select is None else select(score_BT)
        shown_n = certain_n = choice.child
        if self.rate:  # an inner child may be revised: it is judged at its parent
            certain_n = revised.child.where(certain_n >= self.tree.root_id, certain_n)
        if self.wrong_rate:
            shown_n = perturb(shown_n, self.tree, self.wrong_rate, uniform_n1[:, 2])
        judged_BT = certain.node_ids.masked_scatter(waiting_BT, certain_n)
        if not (moving_BT := self.constraints.may_move(certain, judged_BT, moving_BT)).any():
            raise ValueError("The constraints hold all positions back, without end: their may_move must let one go.")
        after_BT, moved_n = self.draft.node_ids.masked_scatter(waiting_BT, shown_n), moving_BT[waiting_BT]
        text_n, place_n = waiting_BT.nonzero(as_tuple=True)
        self.draft.log_probs[text_n[moved_n], place_n[moved_n], level_n[moved_n]] = choice.log_prob[moved_n]
        changed_n = moved_n & unsure_BT[waiting_BT]
        of_changed = revised.log_prob[changed_n]
        self.draft.log_probs[text_n[changed_n], place_n[changed_n], level_n[changed_n] - 1] = of_changed
        self.draft.node_ids = torch.where(moving_BT, after_BT, self.draft.node_ids)
        self.draft.num_forward_passes = self.num_passes + self.constraints.num_forward_passes
        return self.draft

    def _certain(self) -> Draft:
        """Return the draft as constraints judge it: nodes that may turn out to be siblings are put at their parents."""
        if not self.rate:
            return self.draft
        depth_BT = self._depth()
        unsure_BT = self.open & (depth_BT > self.given_depth) & (depth_BT < self.tree.tree_depth)
        above_BT = self.tree.ancestors[self.tree.representative[self.draft.node_ids], depth_BT - unsure_BT.long()]
        return replace(self.draft, node_ids=above_BT)

    def _revised(
        self, certain: Draft, waiting: torch.Tensor, unsure: torch.Tensor, scores: Scores, uniform_n1: torch.Tensor
    ) -> Choice:
        """Draw which nodes the unsure of the waiting positions (B, T) stand for; the others are what they show."""
        node_n, unsure_n = self.draft.node_ids[waiting], unsure[waiting]
        zero_n = self.sampler.temperature_D.new_zeros(node_n.shape)
        parts = (node_n, zero_n, zero_n + (0 if self.of_both is torch.add else torch.inf))  # as sure as can be
        if not unsure_n.any():
            return Choice(*parts)
        above_n = certain.node_ids[waiting]
        weights_nK = self.constraints.log_weights(certain, unsure, above_n[unsure_n])
        like_nK = sibling_log_likelihood(node_n[unsure_n], self.tree, self.rate).to(self.sampler.dtype)
        uniform_n, odds_nK = uniform_n1[unsure_n, 1], scores(above_n)[unsure_n]
        drawn = self.sampler(above_n[unsure_n], odds_nK, uniform_n, weights_nK, like_nK)
        new = (drawn.child, drawn.log_prob, drawn.score)
        return Choice(*(all_n.masked_scatter(unsure_n, some) for all_n, some in zip(parts, new, strict=True)))

    def _child_scores(self, waiting_BT: torch.Tensor) -> Scores:
        """Look at the draft; return what gives (n,) nodes at the waiting positions, of what is seen, (n, K) scores."""
        nodes, mask = self.draft.seen, self.draft.attention_mask
        done = 0 if self.cache is None else int(self.cache.get_seq_length())
        given = self._look(nodes[:, done:], mask, self.cache, waiting_BT[:, done:])
        if self.cache is not None:
            crop(self.cache, self.num_final)
        if (scale := self.settings.guidance_scale) is None:
            return given
        self.num_passes += 1
        hidden, visible = (some[:, self.draft.columns] for some in (self.given_tokens, self.draft.visible))
        if (size := self.model.config.block_size) is not None:  # which sees tokens alone in the blocks before
            number = number_blocks(nodes, mask, None, size)
            written = torch.zeros_like(number).scatter_add(1, number, (visible & ~hidden).long()).gather(1, number) > 0
            mask = written.long() if mask is None else mask * written
            hidden = hidden & (number == number.masked_fill(~waiting_BT, 0).amax(dim=1, keepdim=True))
        alone = self._look(nodes.masked_fill(hidden, self.tree.root_id), mask, None, waiting_BT)

        def guided(node_n: torch.Tensor) -> torch.Tensor:
            with_nK, without_nK = (look(node_n).to(self.sampler.dtype).log_softmax(dim=-1) for look in (given, alone))
            return torch.where(with_nK.isneginf(), with_nK, without_nK + scale * (with_nK - without_nK))

        return guided

    def _look(
        self, node_ids: torch.Tensor, mask: torch.Tensor | None, cache: Cache | None, waiting: torch.Tensor
    ) -> Scores:
        hidden_BTE = self.model.model(node_ids, mask, past_key_values=cache).last_hidden_state
        hidden_nE = hidden_BTE.to(waiting.device)[waiting]  # the last layers may be kept on another device
        return lambda node_n: self.model.head(hidden_nE, node_n, self.tree).to(node_n.device)

    def _remask(self, stage: Stage, share: float, among: torch.Tensor) -> None:
        """Put a share of some positions (B, T) levels up: those whose last levels were least probable when drawn."""
        target_BT = (stage.depth - stage.climb + torch.zeros_like(self.given_depth)).maximum(self.given_depth)
        may_climb_BT = among & (target_BT < self._depth())
        level_D = torch.arange(self.tree.tree_depth, device=target_BT.device)
        undone_BTD = (level_D >= target_BT[..., None]) & (level_D < stage.depth)
        improbable_BT = -(self.draft.log_probs * undone_BTD).sum(dim=-1)
        count_B = (may_climb_BT.sum(dim=1) * share).ceil().long()
        climbing_BT = highest(improbable_BT, may_climb_BT, count_B)
        self._climb(torch.where(climbing_BT, target_BT, self._depth()), among)

    def _climb(self, target_BT: torch.Tensor, among: torch.Tensor) -> None:
        """Put positions among some at depths (B, T) above theirs, to be drawn anew; nodes there are shown perturbed."""
        depth_BT = self._depth()
        target_BT = torch.minimum(target_BT.maximum(self.given_depth), depth_BT)
        level_D = torch.arange(self.tree.tree_depth, device=target_BT.device)
        undone_BTD = (level_D >= target_BT[..., None]) & (level_D < depth_BT[..., None])
        node_BT = self.tree.ancestors[self.tree.representative[self.draft.node_ids], target_BT]
        if self.wrong_rate:
            shown_BT = (target_BT < depth_BT) & (target_BT > self.given_depth)
            uniform_BT = uniform_at(shown_BT, self.generator)
            node_BT = torch.where(shown_BT, perturb(node_BT, self.tree, self.wrong_rate, uniform_BT), node_BT)
        self.draft.node_ids = node_BT
        self.uniform = torch.where(undone_BTD[..., None], self._draws(among), self.uniform)

    def _pad_behind_end(self) -> None:
        """Put padding, or ends of text if there is none, behind the first new end of text."""
        settings, new = self.settings, slice(self.draft.node_ids.shape[1] - self.draft.num_new, None)
        if settings.eos_token_id is None or not self.draft.num_new or not settings.eos_early_stop:
            return
        end_ids = torch.tensor(settings.eos_token_id, device=self.draft.node_ids.device).view(-1)
        behind_BT = torch.zeros_like(self.draft.real)
        ends = torch.isin(self.draft.node_ids[:, new], end_ids).long()
        behind_BT[:, new] = ends.cumsum(dim=1) - ends > 0
        padding = settings.pad_token_id if settings.pad_token_id is not None else int(end_ids[0])
        self.draft.node_ids = self.draft.node_ids.masked_fill(behind_BT, padding)
        self.draft.log_probs = self.draft.log_probs.masked_fill(behind_BT[..., None], 0)
        self.written = self.written & ~behind_BT
