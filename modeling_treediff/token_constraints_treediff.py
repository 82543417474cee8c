"""What the tokens of a generated text may be, as weights of the children that its positions may become.

Drawing a token with weights w means p'(x) proportional to p(x) w(x). On the way down the tree each child c then has
p'(c) proportional to p(c) E[w(x) | x below c], so that exactly p' results and no choice leads to a dead end; closing
the nodes without an allowed token, and normalising over the others, would give whole clusters' probability to the one
allowed token in them. The expectation needs the model's distribution below c: by default as it sees c alone, without
the rest of the text, one pass for the whole tree, exact where positions are independent; with `exact_constraints` as it
sees c in the text as it stands.

Shape legend: B sequences, T positions, R rows (1 or B), V tokens, N nodes, I internal nodes, M nodes of one level, D
depth of the leaves, K largest fan-out, A symbols (tokens of bad words), n positions that wait, m nodes put at some of
them.
"""

from typing import Any

import torch
from transformers.generation import LogitsProcessorList

from .bad_words_treediff import BadWords
from .canvas_treediff import Canvas
from .child_choice_treediff import sampling_dtype
from .generation_config_treediff import TreeDiffGenerationConfig
from .masked_lm_treediff import SEQUENCES_PER_PASS

NODES_PER_PASS = 1024


class TokenConstraints:
    """What the tokens of a text may be.

    Attributes:
        num_forward_passes: passes spent on the weights so far.

    """

    def __init__(
        self,
        model: Any,  # noqa: ANN401 -- a TreeDiffForDiffusionLM
        settings: TreeDiffGenerationConfig,
        logits_processor: LogitsProcessorList | None,
    ) -> None:
        """Prepare; ValueError for tokens outside the vocabulary, or if none is left."""
        self.model, self.tree, self.processor = model, model.tree, logits_processor
        self.exact = settings.exact_constraints
        self.num_forward_passes = 0
        vocab_size = self.tree.vocab_size
        words = settings.bad_words_ids or []
        named = {
            "allowed_tokens": settings.allowed_tokens or [],
            "suppress_tokens": settings.suppress_tokens or [],
            "bad_words_ids": [token for word in words for token in word],
        }
        for name, tokens in named.items():
            if outside := [token for token in tokens if token >= vocab_size]:
                raise ValueError(f"{name} has {outside[0]}: the vocabulary has tokens 0..{vocab_size - 1}.")
        closed = named["suppress_tokens"] + [word[0] for word in words if len(word) == 1]
        allowed_V = torch.full((vocab_size,), settings.allowed_tokens is None, device=self.tree.depth.device)
        allowed_V[torch.tensor(named["allowed_tokens"], dtype=torch.long)] = True
        allowed_V[torch.tensor(closed, dtype=torch.long)] = False
        if not allowed_V.any():
            raise ValueError("allowed_tokens, suppress_tokens and bad_words_ids leave no token at all.")
        dtype = sampling_dtype(settings, allowed_V.device)
        self.log_weight_1V = torch.zeros(1, vocab_size, dtype=dtype, device=allowed_V.device)
        self.log_weight_1V.masked_fill_(~allowed_V, -torch.inf)
        longer = [word for word in words if len(word) > 1]
        self.bad_words = BadWords(longer, self.tree, allowed_V) if longer else None
        self.none = bool(allowed_V.all()) and not logits_processor and not longer
        self.alone_IK: torch.Tensor | None = None
        self.constant_1N: torch.Tensor | None = None
        if logits_processor:
            _check_additive(logits_processor, self.log_weight_1V)
        elif not self.none:
            self.constant_1N = self._known(self.log_weight_1V)

    def look_at(self, canvas: Canvas, columns: slice) -> None:
        """Say where the drafts are from now on: in these columns of the canvas. Bad words may reach out of them."""
        self.canvas, self.columns = canvas, columns

    def check(self, node_ids: torch.Tensor, open_positions: torch.Tensor) -> None:
        """Raise ValueError if an open position of the drafts (B, T) has no token left."""
        if self.none:
            return
        # The root, whose weight nobody needs, has 0: there is a token.
        log_weight_BN = self._known_for(node_ids).expand(len(node_ids), -1)
        closed_BT = open_positions & log_weight_BN.gather(1, node_ids).isneginf()
        if closed_BT.any():
            text, position = closed_BT.nonzero()[0].tolist()
            raise ValueError(
                f"None of the tokens below node {int(node_ids[text, position])}, given for text {text}, is "
                "allowed: allow one of them, or give another node."
            )
        if self.bad_words is not None:
            self.bad_words.check(self._on_canvas(node_ids), self.canvas.real)

    def log_weights(
        self, node_ids: torch.Tensor, attention_mask: torch.Tensor | None, waiting: torch.Tensor
    ) -> torch.Tensor | None:
        """Return (n, K) logarithms of the weights of the children of the n waiting positions; None if all are 1.

        Args:
            node_ids: (B, T) the drafts.
            attention_mask: (B, T), 0 at padding, or None.
            waiting: (B, T) bool, the n positions, all at internal nodes.

        """
        if self.none:
            return None
        closed_nA = None
        if self.bad_words is not None:
            canvas = self._on_canvas(node_ids), self.canvas.real
            closed_nA = self.bad_words.closed_symbols(*canvas, self._on_canvas(waiting))
        below = _Below(self, self._known_for(node_ids), node_ids, attention_mask)
        text_n, place_n = waiting.nonzero(as_tuple=True)
        return below.log_weights(node_ids[waiting], text_n, place_n, closed_nA)

    def may_move(self, before: torch.Tensor, after: torch.Tensor, moving: torch.Tensor) -> torch.Tensor:
        """Return which of the positions (B, T) that descend in one pass may do so without a bad word."""
        if self.bad_words is None:
            return moving
        drafts = before, torch.where(moving, after, before), moving
        before, after, moved = (self._on_canvas(draft) for draft in drafts)
        held_back = self.bad_words.held_back(before, after, moved, self.canvas.real)
        return moving & ~held_back[:, self.columns]

    def _on_canvas(self, draft: torch.Tensor) -> torch.Tensor:
        """Return nodes, or a mask, of the drafts in their place on the canvas; a mask is False around them."""
        is_mask = draft.dtype == torch.bool
        whole = torch.zeros_like(self.canvas.real) if is_mask else self.canvas.node_ids.clone()
        whole[:, self.columns] = draft
        return whole

    def _known_for(self, node_ids: torch.Tensor) -> torch.Tensor:
        if self.constant_1N is not None:
            return self.constant_1N
        scores_BV = self.log_weight_1V.repeat(len(node_ids), 1)
        added_BV = self.processor(node_ids.clone(), scores_BV)  # type: ignore[misc, arg-type]
        return self._known(added_BV.to(scores_BV.dtype))

    def _known(self, log_weight_RV: torch.Tensor) -> torch.Tensor:
        """Return (R, N): the logarithm of the mean weight of the tokens below each node, NaN where the text tells."""
        if self.exact:
            return _certain_log_weights(log_weight_RV, self.tree)
        return _node_log_weights(log_weight_RV, self.child_log_probs_alone(), self.tree)

    def child_log_probs_alone(self) -> torch.Tensor:
        """Return (I, K): the model's distribution at every internal node on its own, without other positions."""
        if self.alone_IK is None:
            if self.tree.tree_depth == 1:  # the root's is the text's own
                self.alone_IK = self.log_weight_1V.new_zeros(1, self.tree.max_branching)
            else:
                node_I1 = torch.arange(self.tree.root_id, self.tree.num_nodes, device=self.tree.depth.device)[:, None]
                parts = node_I1.split(NODES_PER_PASS)
                self.num_forward_passes += len(parts)
                logits_IK = torch.cat([self.model(input_ids=part).logits[:, 0] for part in parts])
                self.alone_IK = logits_IK.to(self.log_weight_1V.dtype).log_softmax(dim=-1)
        return self.alone_IK


class _Below:
    """Weights of what lies below nodes at positions of drafts (B, T), during one pass."""

    def __init__(
        self,
        constraints: TokenConstraints,
        known_RN: torch.Tensor,
        node_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
    ) -> None:
        self.constraints, self.tree, self.known_RN = constraints, constraints.tree, known_RN
        self.node_ids, self.attention_mask = node_ids, attention_mask

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
            own, place, text = torch.arange(len(index), device=index.device), place_m[index], text_m[index]
            nodes = self.node_ids[text].index_put((own, place), node_m[index])
            mask = None if self.attention_mask is None else self.attention_mask[text]
            parts.append(constraints.model(input_ids=nodes, attention_mask=mask).logits[own, place])
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
            "A logits_processor may only add to the scores of tokens, or set them to -inf: that has a meaning "
            "at every level of the tree. Temperature, top_k and top_p are settings of generate."
        )


def _node_log_weights(log_weight_RV: torch.Tensor, child_log_prob_IK: torch.Tensor, tree: Any) -> torch.Tensor:  # noqa: ANN401
    """Return (R, N): the logarithm of the mean weight of the tokens below each node, -inf if all are excluded.

    Args:
        log_weight_RV: logarithms of the tokens' weights; -inf excludes a token.
        child_log_prob_IK: how probable each internal node makes its children, for the mean; -inf where there is none.
        tree: the vocabulary tree.

    """
    weight_RN = log_weight_RV.new_zeros(len(log_weight_RV), tree.num_nodes)
    weight_RN[:, : tree.vocab_size] = log_weight_RV
    for level in range(tree.tree_depth - 1, 0, -1):
        node_M = (tree.depth == level).nonzero()[:, 0]
        row_M = node_M - tree.root_id
        below_RMK = weight_RN[:, tree.children[row_M].clamp(min=0)] + child_log_prob_IK[row_M].to(weight_RN.dtype)
        weight_RN[:, node_M] = below_RMK.logsumexp(dim=-1)
    return weight_RN


def _certain_log_weights(log_weight_RV: torch.Tensor, tree: Any) -> torch.Tensor:  # noqa: ANN401
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
