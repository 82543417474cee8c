"""Which child a node becomes: weights, temperature, truncation, and the draw itself.

Shape legend: n positions, D depth of the leaves, K largest fan-out.
"""

from dataclasses import dataclass
from typing import Any

import torch
from transformers.generation import LogitsProcessorList, TopKLogitsWarper, TopPLogitsWarper

from .generation_config_treediff import TreeDiffGenerationConfig


@dataclass(frozen=True)
class Choice:
    """The children drawn for n positions.

    Attributes:
        child: (n,) node ids.
        log_prob: (n,) of the child among its siblings, given the constraints; before temperature and truncation.
        score: (n,) how sure the position is, in the measure that the unmasking goes by.

    """

    child: torch.Tensor
    log_prob: torch.Tensor
    score: torch.Tensor


class ChildSampler:
    """Draws children from logits, as the generation config says."""

    def __init__(self, settings: TreeDiffGenerationConfig, tree: Any) -> None:  # noqa: ANN401 -- a VocabularyTree
        """Prepare; ValueError if there are temperatures for another number of levels than the tree's."""
        self.settings, self.tree = settings, tree
        device = tree.depth.device
        self.dtype = sampling_dtype(settings, device)
        temperature = settings.temperature
        if isinstance(temperature, list | tuple) and len(temperature) != tree.tree_depth:
            raise ValueError(f"temperature has {len(temperature)} numbers, the tree {tree.tree_depth} levels.")
        # At least the smallest number above 0: 1e-50 is none in single precision.
        above_0 = torch.finfo(self.dtype).tiny
        self.temperature_D = torch.tensor(temperature, dtype=self.dtype, device=device).clamp(min=above_0)
        self.temperature_D = self.temperature_D.expand(tree.tree_depth)
        self.warpers = LogitsProcessorList()
        if settings.top_k is not None:
            self.warpers.append(TopKLogitsWarper(settings.top_k))
        if settings.top_p is not None:
            self.warpers.append(TopPLogitsWarper(float(settings.top_p)))

    def children(self, node_n: torch.Tensor) -> torch.Tensor:
        """Return (n, K): the children of internal nodes, -1 where there is none."""
        return self.tree.children[node_n - self.tree.root_id]

    def __call__(
        self,
        node_n: torch.Tensor,
        logits_nK: torch.Tensor,
        uniform_n: torch.Tensor,
        log_weight_nK: torch.Tensor | None = None,
    ) -> Choice:
        """Choose for internal nodes (n,) by their logits and numbers from U[0, 1).

        A child's probability is proportional to exp(logit + log_weight).

        Raises:
            ValueError: a position has no child to draw, by the weights or because the logits are not numbers.

        """
        children_nK = self.children(node_n)
        # Low-precision sampling silently lowers the entropy of the text: never in half precision.
        scores_nK = logits_nK.to(self.dtype)
        if log_weight_nK is not None:
            scores_nK = scores_nK.log_softmax(dim=-1) + log_weight_nK
        log_prob_nK = scores_nK.log_softmax(dim=-1)
        if (impossible_n := log_prob_nK.isnan().any(dim=-1)).any():
            self._explain(int(impossible_n.sum()), logits_nK)
        if self.settings.do_sample:
            below_best_nK = log_prob_nK - log_prob_nK.amax(dim=-1, keepdim=True)  # however small the temperature
            warped_nK = below_best_nK / self.temperature_D[self.tree.depth[node_n]][:, None]
            slot_n = draw_slots(self.warpers(None, warped_nK).softmax(dim=-1), uniform_n)  # type: ignore[arg-type]
        else:
            slot_n = log_prob_nK.argmax(dim=-1)
        chosen_n1 = slot_n[:, None]
        log_prob_n = log_prob_nK.gather(1, chosen_n1)[:, 0]
        return Choice(children_nK.gather(1, chosen_n1)[:, 0], log_prob_n, self._score(log_prob_nK, log_prob_n))

    def _explain(self, count: int, logits_nK: torch.Tensor) -> None:
        if logits_nK.isnan().any() or not logits_nK.isfinite().any(dim=-1).all():
            raise ValueError(
                f"The model gives scores that are not numbers at {count} positions: its weights are damaged, or too "
                f"large for {logits_nK.dtype}."
            )
        raise ValueError(
            f"The logits_processor, together with the other constraints, leaves {count} positions no token."
        )

    def _score(self, log_prob_nK: torch.Tensor, log_prob_n: torch.Tensor) -> torch.Tensor:
        if self.settings.unmasking == "entropy":
            return torch.special.entr(log_prob_nK.exp()).sum(dim=-1).neg()
        if self.settings.unmasking == "margin":
            best = log_prob_nK.topk(min(2, log_prob_nK.shape[1]), dim=-1).values.exp()
            return best[:, 0] - best[:, 1:].sum(dim=-1)
        return log_prob_n.exp()

    @property
    def threshold(self) -> float | None:
        """The least score that counts as sure."""
        least = self.settings.threshold
        return -least if least is not None and self.settings.unmasking == "entropy" else least


def sampling_dtype(settings: TreeDiffGenerationConfig, device: torch.device) -> torch.dtype:
    """Return the numbers to draw with; single precision on devices that have no other."""
    return torch.float32 if device.type == "mps" else getattr(torch, settings.sampling_dtype)


def draw_slots(probability_nK: torch.Tensor, uniform_n: torch.Tensor) -> torch.Tensor:
    """Return each row's first slot whose cumulative probability exceeds its number; never one of probability 0."""
    cumulative_nK = probability_nK.cumsum(dim=-1)
    total_n1 = cumulative_nK[:, -1:]
    threshold_n1 = uniform_n.to(cumulative_nK.dtype)[:, None] * total_n1
    threshold_n1 = torch.minimum(threshold_n1, torch.nextafter(total_n1, torch.zeros_like(total_n1)))  # if rounded up
    return torch.searchsorted(cumulative_nK, threshold_n1, right=True)[:, 0]
