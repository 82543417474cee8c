"""The distribution over all tokens at every open position: what masked language modelling asks for.

Shape legend: B sequences, T positions, V tokens, D depth of the leaves, K largest fan-out, n nodes that positions may
stand at, m positions that are scored in one pass.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .schedule_base import LevelSchedule
from .vocabulary_tree import VocabularyTree

SEQUENCES_PER_PASS = 64

Masks = Sequence[torch.Tensor | None]


class TreeDiffMaskedLMMixin:
    """Adds `token_log_probs` to a model with a tree, a schedule and a head."""

    # What the model class brings along.
    dtype: torch.dtype
    schedule: LevelSchedule
    tree: Any
    model: Any
    head: Any

    @torch.no_grad()
    def token_log_probs(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        segment_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Log-probability of every token at every position, by descending the tree as the diffusion does; dense.

        log p(x) = sum_k log p(a_k(x) | a_{k-1}(x) at the position, the others): one pass scores the children of the
        open positions' nodes, then each child is put at its position and its own children are scored, down to the
        tokens. All other positions stay, so several open ones get their distributions each on its own; but none is
        shown finer than the schedule shows it beside a position of that depth (`LevelSchedule.deepest_beside`). On the
        flat tree this is the softmax of one pass.

        It costs a pass for the batch and one sequence for each internal node below each open position, K of them where
        D is 2. `leaf_log_probs` approximates it by a single pass; `benchmarks/LOG.md` compares them.

        Args:
            input_ids: (B, T) node ids.
            attention_mask: (B, T), 0 at padding.
            segment_ids: (B, T), equal numbers for positions that see one another; None where all do.

        Returns:
            (B, T, V) in float32 at least, without gradient; -inf for tokens that are not below a position's node, so
            at a token 0 for itself alone.

        Raises:
            ValueError: ids outside the tree.

        """
        tree: VocabularyTree = self.tree
        if input_ids.numel() and not 0 <= int(input_ids.min()) <= int(input_ids.max()) < tree.num_nodes:
            raise ValueError(
                f"input_ids must lie in 0..{tree.num_nodes - 1} (nodes of the tree), got {int(input_ids.min())}.."
                f"{int(input_ids.max())}."
            )
        log_BTV = torch.full(
            (*input_ids.shape, tree.vocab_size),
            -torch.inf,
            dtype=torch.promote_types(self.dtype, torch.float32),
            device=input_ids.device,
        )
        reached = _Reached.given(input_ids, tree, 0, log_BTV.dtype)
        for depth in range(tree.tree_depth):
            context_BT = tree.coarsen(input_ids, self.schedule.deepest_beside(depth))
            log_nK = self._log_children(context_BT, (attention_mask, segment_ids), reached)
            given = _Reached.given(input_ids, tree, depth + 1, log_BTV.dtype)
            reached = reached.children(log_nK, tree).joined(given)
        log_BTV[reached.row_n, reached.place_n, reached.node_n] = reached.log_n
        return log_BTV

    def _log_children(self, context_BT: torch.Tensor, masks: Masks, reached: "_Reached") -> torch.Tensor:
        """Return the (n, K) log-probabilities of the children of each node at its position in its sequence."""
        row_n, place_n, node_n = reached.row_n, reached.place_n, reached.node_n
        log_nK = reached.log_n.new_empty(len(row_n), self.tree.max_branching)
        is_there = context_BT[row_n, place_n] == node_n
        if is_there.any():  # what stands in the text as it is needs no sequence of its own
            log_nK[is_there] = self._score(context_BT, masks, row_n[is_there], place_n[is_there]).to(log_nK.dtype)
        elsewhere = (~is_there).nonzero()[:, 0]
        for first in range(0, len(elsewhere), SEQUENCES_PER_PASS):
            part = elsewhere[first : first + SEQUENCES_PER_PASS]
            row_m, place_m, index_m = row_n[part], place_n[part], torch.arange(len(part), device=part.device)
            nodes_mT = context_BT[row_m].index_put((index_m, place_m), node_n[part])
            masks_mT = [None if mask is None else mask[row_m] for mask in masks]
            log_nK[part] = self._score(nodes_mT, masks_mT, index_m, place_m).to(log_nK.dtype)
        return log_nK

    def _score(self, nodes: torch.Tensor, masks: Masks, row_m: torch.Tensor, place_m: torch.Tensor) -> torch.Tensor:
        """Run sequences once; return (m, K) log-probabilities of the children at some of their positions."""
        hidden_1mE = self.model(nodes, *masks).last_hidden_state[row_m, place_m][None]
        logits_mK = self.head(hidden_1mE, nodes[row_m, place_m][None], self.tree)[0]
        return logits_mK.to(torch.promote_types(logits_mK.dtype, torch.float32)).log_softmax(dim=-1)


@dataclass(frozen=True)
class _Reached:
    """Nodes of one depth that positions may stand at."""

    row_n: torch.Tensor  # the sequence
    place_n: torch.Tensor  # the position
    node_n: torch.Tensor
    log_n: torch.Tensor  # log-probability of the node there

    @classmethod
    def given(cls, input_ids: torch.Tensor, tree: VocabularyTree, depth: int, dtype: torch.dtype) -> "_Reached":
        """Return the positions of (B, T) node ids that stand at this depth, for certain."""
        row_n, place_n = (tree.depth[input_ids] == depth).nonzero().unbind(1)
        return cls(row_n, place_n, input_ids[row_n, place_n], torch.zeros_like(row_n, dtype=dtype))

    def children(self, log_nK: torch.Tensor, tree: VocabularyTree) -> "_Reached":
        """Return all children, given the log-probabilities of each node's by their slots."""
        child_nK = tree.children[self.node_n - tree.root_id]
        index, slot = (child_nK >= 0).nonzero().unbind(1)
        log = self.log_n[index] + log_nK[index, slot]
        return _Reached(self.row_n[index], self.place_n[index], child_nK[index, slot], log)

    def joined(self, other: "_Reached") -> "_Reached":
        """Return these nodes and others of the same depth."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return _Reached(*(torch.cat(pair) for pair in pairs))
