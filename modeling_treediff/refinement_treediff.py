"""The way of a draft from open nodes down to tokens: steps, and corrections.

Shape legend: B sequences, T positions, n positions among them, D depth of the leaves, K largest fan-out.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from .child_choice_treediff import ChildSampler
from .generation_config_treediff import ORDERED, TreeDiffGenerationConfig
from .token_constraints_treediff import TokenConstraints
from .unmasking_treediff import Noise, Stage, first_hitting_targets, highest, random_targets, surest

Select = Callable[[torch.Tensor], torch.Tensor]


class Refinement:
    """A batch of drafts while they are refined.

    Attributes:
        node_ids: (B, T) the drafts.
        log_probs: (B, T, D) of each level's child when it was drawn; 0 where none was.
        num_forward_passes: passes of the network over the drafts so far.

    """

    def __init__(
        self,
        model: Any,  # noqa: ANN401 -- a TreeDiffForDiffusionLM
        node_ids: torch.Tensor,
        real: torch.Tensor,
        settings: TreeDiffGenerationConfig,
        constraints: TokenConstraints,
        noise: Noise,
        report: Callable[["Refinement", bool], None],
    ) -> None:
        """Start from nodes (B, T), of which those that are not `real` (B, T) are padding.

        `report` is called after each pass, with False, and after each step, with True.

        Raises:
            ValueError: constraints that leave no token for a position.

        """
        self.model, self.tree, self.settings, self.report = model, model.tree, settings, report
        self.constraints, self.noise, self.choose = constraints, noise, ChildSampler(settings, model.tree)
        self.node_ids = node_ids
        self.attention_mask = None if bool(real.all()) else real.long()
        self.given_depth = self.depth
        self.open = real & (self.given_depth < self.tree.tree_depth)
        self.uniform = noise.uniform(self.open, self.tree.tree_depth)
        self.log_probs = torch.zeros_like(self.uniform, dtype=self.choose.dtype)
        self.num_forward_passes = 0
        constraints.check(node_ids, self.open)

    @property
    def depth(self) -> torch.Tensor:
        """(B, T) depths of the nodes."""
        return self.tree.depth[self.node_ids]

    def run(self, stages: list[Stage]) -> None:
        """Refine until all open positions are tokens."""
        for stage in stages:
            if self.settings.unmasking in ORDERED:
                self._descend_in_order(stage)
            else:
                self._descend_to(self._targets(stage))
            self._finish(stage)  # what bad words held back
            for index in range(stage.corrections):
                self._climb(stage, self.settings.remasking_fraction * (1 - index / stage.corrections))
                self._finish(stage)

    def _targets(self, stage: Stage) -> Iterator[torch.Tensor]:
        schedule = self.model.schedule
        if self.settings.unmasking == "first_hitting":
            return first_hitting_targets(schedule, self.depth, stage.depth, self.open, self.noise)
        return random_targets(schedule, stage.times, lambda: self.depth, self.open, self.noise)

    def _all_at(self, depth: int) -> torch.Tensor:
        """(B, T): this depth wherever a position is open."""
        return torch.where(self.open, depth, 0)

    def _finish(self, stage: Stage) -> None:
        """Let all that have not reached the stage's depth descend to it, a level in a pass."""
        while (moving_BT := self.depth < self._all_at(stage.depth)).any():
            self._pass(moving_BT)
            self.report(self, True)

    def _descend_to(self, targets: Iterator[torch.Tensor]) -> None:
        """Let positions descend to each of the depths (B, T) in turn, a level in a pass."""
        for target_BT in targets:
            while (moving_BT := self.depth < target_BT).any():
                self._pass(moving_BT)
            self.report(self, True)

    def _descend_in_order(self, stage: Stage) -> None:
        """Let the surest positions descend first, in the stage's number of passes at most."""
        for passes_left in range(stage.steps, 0, -1):
            left_BT = (self._all_at(stage.depth) - self.depth).clamp(min=0)
            if not left_BT.any():
                return
            select = partial(surest, levels_left_BT=left_BT, passes_left=passes_left, threshold=self.choose.threshold)
            self._pass(left_BT > 0, select)
            self.report(self, True)

    def _pass(self, waiting_BT: torch.Tensor, select: Select | None = None) -> None:
        """Look at the drafts once, draw children where positions wait, and let those descend that are selected."""
        logits_nK = self.model(input_ids=self.node_ids, attention_mask=self.attention_mask).logits[waiting_BT]
        self.num_forward_passes += 1
        level_n = self.depth[waiting_BT]
        log_weight_nK = self.constraints.log_weights(self.node_ids, self.attention_mask, waiting_BT)
        uniform_n = self.uniform[waiting_BT].gather(1, level_n[:, None])[:, 0]
        choice = self.choose(self.node_ids[waiting_BT], logits_nK, uniform_n, log_weight_nK)
        moving_BT = waiting_BT
        if select is not None:
            moving_BT = select(choice.score.new_zeros(waiting_BT.shape).masked_scatter(waiting_BT, choice.score))
        after_BT = self.node_ids.masked_scatter(waiting_BT, choice.child)
        moving_BT = self.constraints.may_move(self.node_ids, after_BT, moving_BT)
        moved_n = moving_BT[waiting_BT]
        text_n, place_n = waiting_BT.nonzero(as_tuple=True)
        self.log_probs[text_n[moved_n], place_n[moved_n], level_n[moved_n]] = choice.log_prob[moved_n]
        self.node_ids = torch.where(moving_BT, after_BT, self.node_ids)
        self.report(self, False)

    def _climb(self, stage: Stage, share: float) -> None:
        """Put a share of the positions some levels up: those whose last levels were the least probable when drawn."""
        target_BT = (stage.depth - stage.climb + torch.zeros_like(self.given_depth)).maximum(self.given_depth)
        may_climb_BT = self.open & (target_BT < self.depth)
        level_D = torch.arange(self.tree.tree_depth, device=target_BT.device)
        undone_BTD = (level_D >= target_BT[..., None]) & (level_D < stage.depth)
        improbable_BT = -(self.log_probs * undone_BTD).sum(dim=-1)
        count_B = (may_climb_BT.sum(dim=1) * share).ceil().long()
        climbing_BT = highest(improbable_BT, may_climb_BT, count_B)
        above_BT = self.tree.ancestors[self.tree.representative[self.node_ids], target_BT]
        self.node_ids = torch.where(climbing_BT, above_BT, self.node_ids)
        fresh_BTD = self.noise.uniform(self.open, self.tree.tree_depth)
        self.uniform = torch.where((climbing_BT[..., None] & undone_BTD), fresh_BTD, self.uniform)
        self.report(self, False)
