"""The bound by level of the tree, for a model of that tree and for a flat one.

A flat model charges a masked token -log p(token). With p(node) the sum of p over the tokens below a node, and a_k the
token's ancestor of depth k,

    -log p(token) = sum_k -log (p(a_k) / p(a_{k-1})),

level k's term being the nats for the way from depth k-1 to k: what HDLM's leaf head makes of the same scores. Each look
counts with its weight in the bound, so the terms of a model's looks add up to its bound.

Shape legend: W windows, T positions, N counted tokens of all windows in their order, D depth of the tree, V tokens,
I internal nodes, K largest fan-out, n positions looked at.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from modeling_treediff import NelboStep, TreeDiffForDiffusionLM, VocabularyTree
from modeling_treediff.node_layers_treediff import mix_uniform, subtree_logsumexp

from .perplexity import estimate_windows
from .windows import EvaluationWindows

POSITIONS_AT_ONCE = 1024  # whose scores of all nodes are held


@dataclass(frozen=True)
class Looks:
    """All choices of a child that a model scored; arrays (n,).

    Attributes:
        window: where it was.
        level: of the child, 1..D.
        child: the true child, a node of the tree.
        best: the most probable child of the same parent.
        probability: of the true child.
        weight: in the bound; for each level the expected sum over all looks is the number of tokens.

    """

    window: np.ndarray
    level: np.ndarray
    child: np.ndarray
    best: np.ndarray
    probability: np.ndarray
    weight: np.ndarray


@dataclass(frozen=True)
class LevelTerms:
    """A model's bound on a text, by token and level.

    Attributes:
        nats: (N, D) float64; its sum over N is the bound, in nats per token.
        looks: the choices behind it.

    """

    nats: np.ndarray
    looks: Looks


def measure_levels(
    model: TreeDiffForDiffusionLM,
    tree: VocabularyTree,
    windows: EvaluationWindows,
    *,
    num_samples: int,
    batch_size: int = 32,
    seed: int = 0,
    progress: bool = False,
) -> LevelTerms:
    """Measure a model's bound as `evaluate_texts` does, and split it by the levels of a tree.

    Args:
        model: of this very tree, or of the flat tree over the same tokens.
        tree: on the model's device.
        windows: what to measure.
        num_samples: corruptions per window.
        batch_size: windows per forward pass.
        seed: of the corruptions.
        progress: show a bar.

    Raises:
        ValueError: a model of another tree that is not flat, or of another vocabulary.

    """
    check_readable(model, tree)
    collector = _Collector(model, tree, windows.token_ids.shape)
    settings = {"num_samples": num_samples, "batch_size": batch_size}
    estimate_windows(model, windows, settings, seed, progress, collector)
    counted = windows.counted.numpy()
    columns = {name: np.concatenate(parts) for name, parts in collector.columns.items()}
    return LevelTerms(collector.nats_WTD.numpy()[counted], Looks(**columns))


def check_readable(model: TreeDiffForDiffusionLM, tree: VocabularyTree) -> None:
    """Raise ValueError for a model of another vocabulary, or of another tree that is not flat."""
    if model.config.vocab_size != tree.vocab_size:
        raise ValueError(
            f"The models have {tree.vocab_size} and {model.config.vocab_size} tokens: only losses per token of the "
            "same tokenizer compare."
        )
    if model.config.tree_depth > 1 and model.config.tree_sha256 != tree.sha256:
        raise ValueError(
            "The levels of one tree cannot be read off a model of another: compare with a flat model or one of the "
            "same tree."
        )


def _log_probs(model: TreeDiffForDiffusionLM, hidden_nE: torch.Tensor, node_n: torch.Tensor) -> torch.Tensor:
    """Return (n, K) log-probabilities of the nodes' children, as the bound has them; -inf where there is no child."""
    logits_nK = model.head(hidden_nE[None], node_n[None], model.tree)[0]
    log_nK = logits_nK.to(torch.promote_types(logits_nK.dtype, torch.float32)).log_softmax(dim=-1)
    missing_nK = model.tree.children[node_n - model.tree.root_id] < 0
    return mix_uniform(log_nK, node_n, model.tree, model.config.uniform_share).masked_fill(missing_nK, -torch.inf)


class _Collector:
    """Adds up the terms of each forward pass of `nelbo`."""

    def __init__(self, model: TreeDiffForDiffusionLM, tree: VocabularyTree, shape: torch.Size) -> None:
        self.model, self.tree = model, tree
        self.reads_flat = model.config.tree_depth < tree.tree_depth
        self.nats_WTD = torch.zeros(*shape, tree.tree_depth, dtype=torch.float64)
        self.columns: dict[str, list[np.ndarray]] = {name: [] for name in Looks.__dataclass_fields__}

    def __call__(self, step: NelboStep) -> None:
        for part in torch.arange(len(step.weight)).split(POSITIONS_AT_ONCE):
            place = part.to(step.hidden.device)
            token_n = step.token_ids[place]
            for parent_n, logits_nK in self._choices(step.hidden[place], step.node_ids[place], token_n):
                self._add(step, part, token_n, parent_n, logits_nK)

    def _choices(
        self, hidden_nE: torch.Tensor, node_n: torch.Tensor, token_n: torch.Tensor
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield parents (n,) and the scores (n, K) of their children: one choice a position, or one for each level."""
        model, tree = self.model, self.tree
        if not self.reads_flat:
            yield node_n, _log_probs(model, hidden_nE, node_n)
            return
        log_nK = _log_probs(model, hidden_nE, torch.full_like(node_n, model.tree.root_id))
        score_nV = log_nK[:, model.tree.child_slot[: tree.vocab_size]]
        score_nN = torch.cat([score_nV, subtree_logsumexp(score_nV, tree)], dim=1)
        for depth in range(tree.tree_depth):
            parent_n = tree.ancestors[token_n, depth]
            child_nK = tree.children[parent_n - tree.root_id]
            yield parent_n, score_nN.gather(1, child_nK.clamp(min=0)).masked_fill(child_nK < 0, -torch.inf)

    def _add(
        self,
        step: NelboStep,
        part: torch.Tensor,
        token_n: torch.Tensor,
        parent_n: torch.Tensor,
        logits_nK: torch.Tensor,
    ) -> None:
        tree, window, weight = self.tree, step.sequence[part], step.weight[part]
        level_n = tree.depth[parent_n] + 1
        child_n = tree.ancestors[token_n, level_n]
        log_nK = logits_nK.to(torch.promote_types(logits_nK.dtype, torch.float32)).log_softmax(dim=-1)
        log_n = log_nK.gather(1, tree.child_slot[child_n][:, None])[:, 0].cpu().double()
        best_n = tree.children[parent_n - tree.root_id, log_nK.argmax(dim=-1)]
        where = (window, step.position[part], level_n.cpu() - 1)
        self.nats_WTD.index_put_(where, -log_n * weight, accumulate=True)
        values: dict[str, Any] = {
            "window": window,
            "level": level_n,
            "child": child_n,
            "best": best_n,
            "probability": log_n.exp(),
            "weight": weight,
        }
        for name, value in values.items():
            self.columns[name].append(value.cpu().numpy())
