"""Drafts: texts during generation, and the constraints on their tokens.

Shape legend: B sequences, T positions of the draft, S of the result, P given positions, V tokens, N nodes, I internal
nodes, M nodes of one level, D depth of the leaves, K largest fan-out, n positions that wait.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch

from .configuration_treediff import TreeDiffConfig
from .generation_config_treediff import TreeDiffGenerationConfig
from .noise_schedules import LevelSchedule
from .vocabulary_tree import VocabularyTree

NODES_PER_PASS = 1024


class ChildModel(Protocol):
    """A model that scores the children of the node at every position."""

    config: TreeDiffConfig
    tree: VocabularyTree
    schedule: LevelSchedule
    model: Any  # hidden states of nodes, and
    head: Any  # scores of any nodes' children from these

    def child_logits(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """(B, T) node ids -> (B, T, K) scores of their children by slot, -inf where there is no child."""


@dataclass
class Draft:
    """Texts during generation, given and new positions together; only the denoiser changes them.

    Texts end together, padding stands before them: so the distances between positions, all that the network sees of
    their places, are those of each text alone.
    """

    node_ids: torch.Tensor  # (B, T)
    real: torch.Tensor  # (B, T) bool, False at padding
    place: torch.Tensor  # (B, T) the column of the result that each position belongs to
    given: torch.Tensor  # (B, S) what was given, in the layout of the result: new positions, still open, at its end
    log_probs: torch.Tensor  # (B, T, D) of each level's child when it was drawn, 0 where none was
    columns: slice  # those that the network sees; the current block ends with them
    visible: torch.Tensor  # (B, T) bool, of these: no padding, and no part of a block that begins before them
    num_new: int  # positions appended to what was given
    num_forward_passes: int = 0  # of the network so far, those for constraints among them
    num_steps: int = 0  # finished so far
    num_blocks: int = 0  # finished so far

    @classmethod
    def lay_out(
        cls, input_ids: torch.Tensor, attention_mask: torch.Tensor, num_new: int, tree: VocabularyTree
    ) -> "Draft":
        """Append num_new open positions to (B, P) nodes, whose mask (B, P) is 0 at padding on either side."""
        real = (attention_mask != 0).long()
        new = real.new_ones(len(real), num_new)
        given = torch.cat([input_ids, new * tree.root_id], dim=1)
        real = torch.cat([real, new], dim=1)
        place = real.argsort(dim=1, stable=True)[:, given.shape[1] - int(real.sum(dim=1).max()) :]  # padding first
        node_ids = given.gather(1, place)
        log_probs = torch.zeros(*node_ids.shape, tree.tree_depth, device=node_ids.device)
        real = real.gather(1, place).bool()
        return cls(node_ids, real, place, given, log_probs, slice(0, node_ids.shape[1]), real, num_new)

    @property
    def seen(self) -> torch.Tensor:
        """The nodes in the columns that the network sees."""
        return self.node_ids[:, self.columns]

    @property
    def attention_mask(self) -> torch.Tensor | None:
        """Of the columns that the network sees: 0 at padding and what else it does not see; None without any."""
        visible = self.visible[:, self.columns]
        return None if bool(visible.all()) else visible.long()

    @property
    def result(self) -> torch.Tensor:
        """(B, S) the nodes in the layout of the result."""
        return self.restore(self.node_ids, self.given)

    def restore(self, values: torch.Tensor, elsewhere: torch.Tensor) -> torch.Tensor:
        """Put values (B, T, ...) over (B, S, ...) in the layout of the result; padding keeps the latter."""
        shape = (*self.place.shape, *[1] * (values.ndim - 2))
        place = self.place.view(shape).expand_as(values)
        return elsewhere.scatter(1, place, torch.where(self.real.view(shape), values, elsewhere.gather(1, place)))


@dataclass(frozen=True)
class Block:
    """Positions of a draft that are written together."""

    columns: slice  # that the network sees meanwhile, from the first one that it sees to the block's end
    positions: torch.Tensor  # (B, T) bool
    visible: torch.Tensor  # (B, T) bool, of these: as in the draft
    num_final: int  # columns before it: what a cache may keep


class Constraints(Protocol):
    """The interface of constraints on tokens: the argument `constraints` of `generate`.

    A draft given here is what the network sees, but in a model with perturbation: there a node that may turn out to be
    a sibling is put at its parent, and a position may go on from there by two levels at once.
    """

    num_forward_passes: int  # of the network, spent on the constraints so far

    def begin(self, model: ChildModel, settings: TreeDiffGenerationConfig) -> None:
        """Prepare for one call of `generate`."""

    def check(self, draft: Draft, open_positions: torch.Tensor) -> None:
        """Raise ValueError if one of the open positions (B, T) has no token left; once for each block."""

    def log_weights(self, draft: Draft, waiting: torch.Tensor, node_ids: torch.Tensor) -> torch.Tensor | None:
        """Return (n, K) logarithms of the weights of the children of nodes (n,), one for each waiting position (B, T).

        None if all are 1. The nodes are the draft's or, with perturbation, perhaps children of these.
        """

    def may_move(self, draft: Draft, after: torch.Tensor, moving: torch.Tensor) -> torch.Tensor:
        """Return which positions (B, T) of those that descend in one pass, to `after`, may do so: at least one."""


class TokenWeights:
    """The constraints `allowed_tokens` and `suppress_tokens`: tokens with weight 1 or 0, the same at all positions.

    Drawing a token with weights w means p'(x) proportional to p(x) w(x). On the way down the tree each child c then
    has p'(c) proportional to p(c) E[w(x) | x below c], so that exactly p' results and no choice is a dead end. The
    expectation is over the model's distribution below c as it sees c alone, without the rest of the text: one pass for
    each 1024 internal nodes, exact where positions are independent.
    """

    def begin(self, model: ChildModel, settings: TreeDiffGenerationConfig) -> None:
        """Take the tokens from the settings; ValueError for tokens outside the vocabulary, or if none is left."""
        self.model, self.tree, self.num_forward_passes = model, model.tree, 0
        self.alone_IK: torch.Tensor | None = None
        device = self.tree.depth.device
        self.dtype = settings.dtype_on(device)
        self.allowed_V = self._allowed(settings).to(device)
        if not self.allowed_V.any():
            raise ValueError("The constraints (allowed_tokens, suppress_tokens) leave no token at all: allow more.")
        zero_1V = torch.zeros(1, self.tree.vocab_size, dtype=self.dtype, device=device)
        self.log_weight_1V = zero_1V.masked_fill(~self.allowed_V, -torch.inf)
        self.weight_RN = None if bool(self.allowed_V.all()) else self.node_log_weights(self.log_weight_1V)

    def _allowed(self, settings: TreeDiffGenerationConfig) -> torch.Tensor:
        """Return which tokens (V,) may be written at all."""
        allowed_V = torch.full((self.tree.vocab_size,), settings.allowed_tokens is None)
        for name, value in (("allowed_tokens", True), ("suppress_tokens", False)):
            tokens = getattr(settings, name) or []
            if outside := [token for token in tokens if token >= self.tree.vocab_size]:
                raise ValueError(f"{name} has {outside[0]}: the vocabulary has tokens 0..{self.tree.vocab_size - 1}.")
            allowed_V[torch.tensor(tokens, dtype=torch.long)] = value
        return allowed_V

    def check(self, draft: Draft, open_positions: torch.Tensor) -> None:
        if self.weight_RN is None:
            return
        closed_BT = open_positions & self.weight_RN.expand(len(draft.node_ids), -1).gather(1, draft.node_ids).isneginf()
        if closed_BT.any():
            text, position = closed_BT.nonzero()[0].tolist()
            node = int(draft.node_ids[text, position])
            raise ValueError(f"None of the tokens below node {node}, given for text {text}, is allowed: allow one.")

    def log_weights(self, draft: Draft, waiting: torch.Tensor, node_ids: torch.Tensor) -> torch.Tensor | None:
        if self.weight_RN is None:
            return None
        children_nK = self.tree.children[node_ids - self.tree.root_id]
        return self.weight_RN[0, children_nK].masked_fill(children_nK < 0, -torch.inf)

    def may_move(self, draft: Draft, after: torch.Tensor, moving: torch.Tensor) -> torch.Tensor:
        return moving  # weights of tokens hold nobody back

    def child_log_probs_alone(self) -> torch.Tensor:
        """Return (I, K): the model's distribution at every internal node on its own, without other positions."""
        if self.alone_IK is None:
            node_I1 = torch.arange(self.tree.root_id, self.tree.num_nodes, device=self.tree.depth.device)[:, None]
            parts = node_I1.split(NODES_PER_PASS)
            self.num_forward_passes += len(parts)
            logits_IK = torch.cat([self.model.child_logits(part)[:, 0] for part in parts])
            self.alone_IK = logits_IK.to(self.dtype).log_softmax(dim=-1)
        return self.alone_IK

    def node_log_weights(self, log_weight_RV: torch.Tensor) -> torch.Tensor:
        """(R, V) logarithms of the tokens' weights -> (R, N) of the mean weight below each node; the root's is 0."""
        weight_RN = log_weight_RV.new_zeros(len(log_weight_RV), self.tree.num_nodes)
        weight_RN[:, : self.tree.vocab_size] = log_weight_RV
        for level in range(self.tree.tree_depth - 1, 0, -1):
            node_M = (self.tree.depth == level).nonzero()[:, 0]
            row_M = node_M - self.tree.root_id
            child_log_prob_MK = self.child_log_probs_alone()[row_M].to(weight_RN.dtype)
            below_RMK = weight_RN[:, self.tree.children[row_M].clamp(min=0)] + child_log_prob_MK
            weight_RN[:, node_M] = below_RMK.logsumexp(dim=-1)
        return weight_RN
