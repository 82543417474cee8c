"""Constraints that weigh tokens in the text as it stands: bad words, logits processors, exact weights.

`TokenWeights` in `drafts_treediff.py` says how weights of tokens become weights of nodes. There a node's weight is that
in the model's distribution at the node alone; with `exact` it is taken in the text as it stands.

Shape legend: B sequences, T positions, R rows (1 or B), V tokens, N nodes, D depth of the leaves, K largest fan-out, A
symbols (tokens of bad words), n positions that wait, m nodes put at some of them.
"""

from collections.abc import Sequence

import torch
from transformers.generation import LogitsProcessor, LogitsProcessorList

from modeling_treediff.drafts_treediff import ChildModel, Draft, TokenWeights
from modeling_treediff.generation_config_treediff import TreeDiffGenerationConfig
from modeling_treediff.likelihood_treediff import SEQUENCES_PER_PASS
from modeling_treediff.vocabulary_tree import VocabularyTree

from .bad_words import BadWords


class TokenConstraints(TokenWeights):
    """Bad words and logits processors, for `generate(constraints=...)`.

    The settings allowed_tokens and suppress_tokens hold as well.

    Example: `model.generate(constraints=TokenConstraints(bad_words_ids=[[17, 4]]))`.
    """

    def __init__(
        self,
        bad_words_ids: Sequence[Sequence[int]] = (),
        logits_processor: Sequence[LogitsProcessor] = (),
        exact: bool = False,
    ) -> None:
        """Keep what is wanted; `generate` prepares it for the model.

        Args:
            bad_words_ids: sequences of token ids, none of which the result contains unless it was given.
            logits_processor: each may add to the scores of tokens, or exclude them by -inf. Called in each pass with
                the nodes of the drafts and scores (B, V) of 0, it says by how much the tokens' log-probabilities
                change, at all open positions of a text alike. What is excluded in every text belongs into
                suppress_tokens instead: bad words of several tokens are planned with that alone.
            exact: weigh what may be written below a child in the text as it stands, not as the model sees it at the
                child alone. Then every position has its conditional distribution whatever stands beside it; it costs a
                sequence for each internal node that some but not all tokens are allowed below, at each waiting
                position, in each pass.

        Raises:
            ValueError: a bad word that is empty or holds something else than token ids.

        """
        super().__init__()
        words = [list(word) for word in bad_words_ids]
        for word in words:
            if not word or not all(isinstance(token, int) and token >= 0 for token in word):
                raise ValueError(f"bad_words_ids must be lists of token ids, none empty, got {word!r}.")
        self.words, self.exact = words, exact
        self.processor = LogitsProcessorList(logits_processor)

    def begin(self, model: ChildModel, settings: TreeDiffGenerationConfig) -> None:
        """Prepare for one call of `generate`.

        ValueError for tokens outside the vocabulary, if none is left, and for `exact` where nodes are perturbed.
        """
        if self.exact and model.schedule.perturbation:
            raise ValueError("exact takes inner nodes as true, and this model shows wrong ones: leave it out.")
        super().begin(model, settings)
        longer = [word for word in self.words if len(word) > 1]
        self.bad_words = BadWords(longer, self.tree, self.allowed_V) if longer else None
        self.none = bool(self.allowed_V.all()) and not self.processor and not longer
        if self.processor:
            _check_additive(self.processor, self.log_weight_1V)
        elif longer and self.weight_RN is None:
            self.weight_RN = self.node_log_weights(self.log_weight_1V)

    def _allowed(self, settings: TreeDiffGenerationConfig) -> torch.Tensor:
        """Return which tokens (V,) may be written at all: not those that are bad words by themselves."""
        if outside := [token for word in self.words for token in word if token >= self.tree.vocab_size]:
            raise ValueError(
                f"bad_words_ids has {outside[0]}: the vocabulary has tokens 0..{self.tree.vocab_size - 1}."
            )
        single = torch.tensor([word[0] for word in self.words if len(word) == 1], dtype=torch.long)
        return super()._allowed(settings).index_fill(0, single, False)

    def node_log_weights(self, log_weight_RV: torch.Tensor) -> torch.Tensor:
        """(R, V) -> (R, N) as in the base class; with `exact`, NaN at nodes whose weight depends on the text."""
        return _certain_log_weights(log_weight_RV, self.tree) if self.exact else super().node_log_weights(log_weight_RV)

    def check(self, draft: Draft, open_positions: torch.Tensor) -> None:
        """Raise ValueError if one of the open positions (B, T) has no token left."""
        if self.none:
            return
        weight_RN, self.weight_RN = self.weight_RN, self._known_for(draft)
        super().check(draft, open_positions)
        self.weight_RN = weight_RN
        if self.bad_words is not None:
            self.bad_words.check(draft.node_ids, draft.real)

    def log_weights(self, draft: Draft, waiting: torch.Tensor, node_ids: torch.Tensor) -> torch.Tensor | None:
        """Return (n, K) logarithms of the weights of the children of nodes (n,) at waiting positions; None if all 1."""
        if self.none:
            return None
        closed_nA = None
        if self.bad_words is not None:
            closed_nA = self.bad_words.closed_symbols(draft.node_ids, draft.real, waiting)
        text_n, place_n = waiting.nonzero(as_tuple=True)
        return _Below(self, self._known_for(draft), draft).log_weights(node_ids, text_n, place_n, closed_nA)

    def may_move(self, draft: Draft, after: torch.Tensor, moving: torch.Tensor) -> torch.Tensor:
        """Return which of the positions (B, T) that descend in one pass may do so without a bad word."""
        if self.bad_words is None:
            return moving
        after = torch.where(moving, after, draft.node_ids)
        return moving & ~self.bad_words.held_back(draft.node_ids, after, moving, draft.real)

    def _known_for(self, draft: Draft) -> torch.Tensor:
        """Return (R, N) the logarithms of the nodes' weights, NaN where they depend on the text."""
        if not self.processor and self.weight_RN is not None:
            return self.weight_RN
        scores_BV = self.log_weight_1V.repeat(len(draft.node_ids), 1)
        added_BV = self.processor(draft.seen.clone(), scores_BV)  # type: ignore[arg-type]
        return self.node_log_weights(added_BV.to(scores_BV.dtype))


class _Below:
    """Weights of what lies below nodes at positions of drafts (B, T), during one pass."""

    def __init__(self, constraints: TokenConstraints, known_RN: torch.Tensor, draft: Draft) -> None:
        self.constraints, self.tree, self.known_RN, self.draft = constraints, constraints.tree, known_RN, draft

    def log_weights(
        self, node_n: torch.Tensor, text_n: torch.Tensor, place_n: torch.Tensor, closed_nA: torch.Tensor | None
    ) -> torch.Tensor:
        """Return (n, K) the logarithms of the weights of the children of nodes put at places of texts."""
        children_nK = self.tree.children[node_n - self.tree.root_id]
        log_weight_nK = self.known_RN[text_n[:, None] % len(self.known_RN), children_nK]
        log_weight_nK = log_weight_nK.masked_fill(children_nK < 0, -torch.inf)
        unknown_nK = log_weight_nK.isnan()
        if closed_nA is not None:
            unknown_nK |= self._above_closed(node_n, closed_nA)
        row_m, slot_m = unknown_nK.nonzero(as_tuple=True)
        child_m = children_nK[row_m, slot_m]
        log_weight_m = log_weight_nK.new_full(child_m.shape, -torch.inf)  # of a token: it is closed
        inner_m = child_m >= self.tree.root_id
        if inner_m.any():
            row = row_m[inner_m]
            at = child_m[inner_m], text_n[row], place_n[row]
            further = self.log_weights(*at, None if closed_nA is None else closed_nA[row])
            log_weight_m[inner_m] = (self._child_log_probs(*at) + further).logsumexp(dim=-1)
        return log_weight_nK.index_put((row_m, slot_m), log_weight_m)

    def _above_closed(self, node_n: torch.Tensor, closed_nA: torch.Tensor) -> torch.Tensor:
        """Return the slots (n, K) of the children that a closed symbol lies below, or that are one."""
        row, symbol = closed_nA.nonzero(as_tuple=True)
        token = self.constraints.bad_words.token_A[symbol]  # type: ignore[union-attr]
        depth = self.tree.depth[node_n[row]]
        here = self.tree.ancestors[token, depth] == node_n[row]
        child = self.tree.ancestors[token[here], depth[here] + 1]
        above_nK = torch.zeros(len(node_n), self.tree.max_branching, dtype=torch.bool, device=node_n.device)
        above_nK[row[here], self.tree.child_slot[child]] = True
        return above_nK

    def _child_log_probs(self, node_m: torch.Tensor, text_m: torch.Tensor, place_m: torch.Tensor) -> torch.Tensor:
        """Return (m, K) log-probabilities of the children of nodes put at places of texts."""
        constraints = self.constraints
        if not constraints.exact:
            return constraints.child_log_probs_alone()[node_m - self.tree.root_id]
        parts = []
        for index in torch.arange(len(node_m), device=node_m.device).split(SEQUENCES_PER_PASS):
            own, text = torch.arange(len(index), device=index.device), text_m[index]
            place = place_m[index] - self.draft.columns.start
            nodes = self.draft.seen[text].index_put((own, place), node_m[index])
            mask = None if self.draft.attention_mask is None else self.draft.attention_mask[text]
            parts.append(constraints.model.child_logits(nodes, mask)[own, place])
            constraints.num_forward_passes += 1
        return torch.cat(parts).to(self.known_RN.dtype).log_softmax(dim=-1)


def _check_additive(processor: LogitsProcessorList, log_weight_1V: torch.Tensor) -> None:
    """Raise ValueError for processors that do more than add to the tokens' scores: they have no meaning for nodes."""
    text = torch.zeros(1, 1, dtype=torch.long, device=log_weight_1V.device)
    other_1V = torch.linspace(-1, 1, log_weight_1V.shape[1], device=text.device, dtype=log_weight_1V.dtype)[None]
    zero_1V = torch.zeros_like(other_1V)
    added, added_to_other = processor(text, zero_1V.clone()), processor(text, other_1V.clone()) - other_1V  # type: ignore[arg-type]
    if not torch.allclose(added.to(zero_1V.dtype), added_to_other.to(zero_1V.dtype), atol=1e-4):
        raise ValueError(
            "A logits processor may only add to the scores of tokens, or set them to -inf: that has a meaning "
            "at every level of the tree. Temperature, top_k and top_p are settings of generate."
        )


def _certain_log_weights(log_weight_RV: torch.Tensor, tree: VocabularyTree) -> torch.Tensor:
    """Return (R, N): the same where all tokens below a node have one weight, NaN where it depends on the text."""
    weight_RP = log_weight_RV.repeat_interleave(tree.tree_depth + 1, dim=1)
    node_RP = tree.ancestors.flatten().expand_as(weight_RP)
    zero_RN = log_weight_RV.new_zeros(len(log_weight_RV), tree.num_nodes)
    least_RN, most_RN = (
        zero_RN.scatter_reduce(1, node_RP, weight_RP, reduce, include_self=False) for reduce in ("amin", "amax")
    )
    weight_RN = torch.where(least_RN == most_RN, most_RN, torch.nan)
    weight_RN[:, tree.root_id] = 0
    return weight_RN
