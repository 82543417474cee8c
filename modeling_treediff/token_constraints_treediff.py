"""What the tokens of a generated text may be, as weights of all nodes of the tree.

Shape legend: B sequences, T positions, R rows (1 or B), V tokens, N nodes, I internal nodes, M nodes of one level, D
depth of the leaves, K largest fan-out.
"""

from typing import Any

import torch
from transformers.generation import LogitsProcessorList

from .bad_words_treediff import BadWords
from .child_choice_treediff import sampling_dtype
from .generation_config_treediff import TreeDiffGenerationConfig

NODES_PER_PASS = 1024


class TokenConstraints:
    """What the tokens of a text may be, as weights of all nodes of the tree.

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
        self.constant = None
        self.child_log_prob_IK: torch.Tensor | None = None
        if logits_processor:
            _check_additive(logits_processor, self.log_weight_1V)
        elif not allowed_V.all():
            self.constant = self._node_weights(self.log_weight_1V)
        longer = [word for word in words if len(word) > 1]
        self.bad_words = BadWords(longer, self.tree, allowed_V) if longer else None

    def check(self, node_ids: torch.Tensor, real: torch.Tensor, open_positions: torch.Tensor) -> None:
        """Raise ValueError if an open position of the drafts (B, T) has no token left."""
        weight_RN = self._weights_for(node_ids)
        if weight_RN is not None:
            # The root, whose weight nobody needs, has 0: there is a token.
            closed_BT = open_positions & weight_RN.expand(len(node_ids), -1).gather(1, node_ids).isneginf()
            if closed_BT.any():
                text, position = closed_BT.nonzero()[0].tolist()
                raise ValueError(
                    f"None of the tokens below node {int(node_ids[text, position])}, given for text {text}, is "
                    "allowed: allow one of them, or give another node."
                )
        if self.bad_words is not None:
            self.bad_words.check(node_ids, real)

    def log_weights(
        self, children_nK: torch.Tensor, node_ids: torch.Tensor, real: torch.Tensor, waiting: torch.Tensor
    ) -> torch.Tensor | None:
        """Return (n, K) logarithms of the weights of the children of the n waiting positions; None if all are 1."""
        weight_RN, log_weight_nK = self._weights_for(node_ids), None
        if weight_RN is not None:
            text_n1 = waiting.nonzero()[:, :1] % len(weight_RN)
            log_weight_nK = weight_RN[text_n1, children_nK].masked_fill(children_nK < 0, -torch.inf)
            if self.processor and log_weight_nK.isneginf().all(dim=1).any():
                raise ValueError("The logits_processor leaves a position no token below its node.")
        if self.bad_words is not None:
            closed_nK = self.bad_words.closed(node_ids, real, waiting)
            if log_weight_nK is None:
                log_weight_nK = torch.zeros_like(closed_nK, dtype=self.log_weight_1V.dtype)
            log_weight_nK = log_weight_nK.masked_fill(closed_nK, -torch.inf)
        return log_weight_nK

    def may_move(
        self, before: torch.Tensor, after: torch.Tensor, moving: torch.Tensor, real: torch.Tensor
    ) -> torch.Tensor:
        """Return which of the positions (B, T) that descend in one pass may do so without a bad word."""
        if self.bad_words is None:
            return moving
        return moving & ~self.bad_words.held_back(before, torch.where(moving, after, before), moving, real)

    def _weights_for(self, node_ids: torch.Tensor) -> torch.Tensor | None:
        if not self.processor:
            return self.constant
        log_weight_BV = self.processor(node_ids, self.log_weight_1V.repeat(len(node_ids), 1))  # type: ignore[arg-type]
        return self._node_weights(log_weight_BV)

    def _node_weights(self, log_weight_RV: torch.Tensor) -> torch.Tensor:
        if self.child_log_prob_IK is None:
            self.child_log_prob_IK = self._child_log_probs()
        return node_log_weights(log_weight_RV, self.child_log_prob_IK, self.tree)

    def _child_log_probs(self) -> torch.Tensor:
        """Return (I, K): the model's distribution at every internal node on its own, without other positions."""
        if self.tree.tree_depth == 1:  # the root's is the text's own
            return self.log_weight_1V.new_zeros(1, self.tree.max_branching)
        node_I1 = torch.arange(self.tree.root_id, self.tree.num_nodes, device=self.tree.depth.device)[:, None]
        parts = node_I1.split(NODES_PER_PASS)
        self.num_forward_passes += len(parts)
        logits_IK = torch.cat([self.model(input_ids=part).logits[:, 0] for part in parts])
        return logits_IK.to(self.log_weight_1V.dtype).log_softmax(dim=-1)


def _check_additive(processor: LogitsProcessorList, log_weight_1V: torch.Tensor) -> None:
    """Raise ValueError for processors that do more than add to the tokens' scores: they have no meaning for nodes."""
    text = torch.zeros(1, 1, dtype=torch.long, device=log_weight_1V.device)
    other_1V = torch.linspace(-1, 1, log_weight_1V.shape[1], device=text.device, dtype=log_weight_1V.dtype)[None]
    zero_1V = torch.zeros_like(other_1V)
    added, added_to_other = processor(text, zero_1V.clone()), processor(text, other_1V.clone()) - other_1V  # type: ignore[arg-type]
    if not torch.allclose(added, added_to_other, atol=1e-4):
        raise ValueError(
            "A logits_processor may only add to the scores of tokens, or set them to -inf: that has a meaning "
            "at every level of the tree. Temperature, top_k and top_p are settings of generate."
        )


def node_log_weights(log_weight_RV: torch.Tensor, child_log_prob_IK: torch.Tensor, tree: Any) -> torch.Tensor:  # noqa: ANN401
    """Return (R, N): the logarithm of the mean weight of the tokens below each node, -inf if all are excluded.

    Drawing a token with weights w means p'(x) proportional to p(x) w(x). On the way down the tree each child c then
    has p'(c) proportional to p(c) E[w(x) | x below c], so that exactly p' results and no choice leads to a dead end;
    closing the nodes without an allowed token, and normalising over the others, would give whole clusters' probability
    to the one allowed token in them.

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
