"""The bound of a short answer: as that of `nelbo`, with less noise in as many forward passes.

`nelbo` scores in each pass the positions of a single level, of which an answer of a few tokens has one or two. Here a
pass is made in the same way, for a level k, with a position that stands at depth k-1; but all open positions of the
answer are scored. Each term is divided by the number of passes that show its text in expectation, whichever level
they are made for (multiple importance sampling, balance heuristic): the sum is unbiased, and no weight is unbounded.

With w_k = f_k / pi_{k-1} the weights of the bound, N the tokens of the answer, S_k the passes made for level k and m_k
the positions at depth k-1, a pass for level k has the density q(z | t) w_k(t) m_k / N. So a position at depth k-1 adds
N w_k(t) (-log p) / sum_j S_j w_j(t) m_j.

Shape legend: B passes side by side, S in all, T positions, N tokens of the answer, D depth of the leaves, n scored
positions.
"""

from dataclasses import dataclass

import torch

from modeling_treediff import TreeDiffForDiffusionLM
from modeling_treediff.diffusion_process import check_tokens, child_slots, uniform
from modeling_treediff.likelihood_treediff import strata
from modeling_treediff.node_layers_treediff import mix_uniform

CPU = torch.device("cpu")


@dataclass(frozen=True)
class AnswerBound:
    """An upper bound on -log p(answer | the rest of the text), estimated by Monte Carlo; nats in total.

    The standard error errs high, since times and positions are stratified, and is infinite where a level has one pass.
    """

    nats: float
    standard_error: float


@torch.no_grad()
def answer_bound(
    model: TreeDiffForDiffusionLM,
    token_ids: torch.Tensor,
    fixed_mask: torch.Tensor,
    num_samples: int,
    batch_size: int,
    generator: torch.Generator | None = None,
) -> AnswerBound:
    """Estimate the bound of the answer in one text.

    Args:
        model: the model.
        token_ids: (1, T) clean tokens.
        fixed_mask: (1, T), 0 at the answer's tokens, 1 at the others.
        num_samples: S, forward passes of the text, best D or a multiple; the error falls with its square root.
        batch_size: passes side by side.
        generator: source of the randomness, on any device.

    Raises:
        ValueError: ids outside the vocabulary, a mask of another shape, fewer passes than levels, or a model with
            blocks or perturbed nodes, whose bound is `nelbo`'s alone.

    """
    depth = model.config.tree_depth
    if model.schedule.perturbation:
        raise ValueError("The model has learned perturbed nodes, which are not in this estimate: use nelbo.")
    if model.config.block_size is not None:
        raise ValueError("The answer may lie in several blocks, each given those before it: use nelbo.")
    check_tokens(token_ids, model.tree, fixed_mask=fixed_mask)
    if num_samples < depth:
        raise ValueError(f"{num_samples} corruptions cannot visit the tree's {depth} levels: give more num_samples.")
    place_N = (fixed_mask[0] == 0).nonzero()[:, 0].cpu()
    _, level, quantile = strata(1, num_samples, depth, generator)
    times, places = model.schedule.loss_times(level, quantile), _places(level, place_N, generator)
    passes_D = torch.bincount(level - 1, minlength=depth)
    nats = []
    for part in torch.arange(num_samples).split(batch_size):
        depth_BN = _depths(model, level[part], times[part], places[part], len(place_N), generator)
        level_BN = depth_BN.clamp(max=depth - 1)
        weight_BN = model.schedule.weight(times[part]).gather(1, level_BN) * (depth_BN < depth)
        expected_B = (weight_BN * passes_D[level_BN]).sum(dim=1) / len(place_N)
        nats_BN = _cross_entropy(model, token_ids, place_N, depth_BN)
        nats.append((weight_BN * nats_BN).sum(dim=1) / expected_B)
    return _estimate(torch.cat(nats), level - 1, passes_D)


def _places(level_S: torch.Tensor, place_N: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    """Return (S,) which of the answer's tokens is put just above the pass's level; each level takes them in turns."""
    index_S = torch.zeros_like(level_S)
    for level in level_S.unique():
        same = (level_S == level).nonzero()[:, 0]
        turns = -(-len(same) // len(place_N))
        index_S[same] = uniform((turns, len(place_N)), generator, CPU).argsort(dim=1).flatten()[: len(same)]
    return index_S


def _depths(
    model: TreeDiffForDiffusionLM,
    level_B: torch.Tensor,
    time_B: torch.Tensor,
    place_B: torch.Tensor,
    length: int,
    generator: torch.Generator | None,
) -> torch.Tensor:
    """Draw the depths (B, N) of the answer's tokens at the times of their passes, one of them just above the level."""
    drawn_BN1 = uniform((len(level_B), length), generator, CPU)[..., None]
    depth_BN = (drawn_BN1 < model.schedule.alpha(time_B)[:, None, 1:]).sum(dim=-1)
    return depth_BN.scatter(1, place_B[:, None], level_B[:, None] - 1)


def _cross_entropy(
    model: TreeDiffForDiffusionLM, token_ids: torch.Tensor, place_N: torch.Tensor, depth_BN: torch.Tensor
) -> torch.Tensor:
    """Return (B, N) float64 nats of the true children of the answer's nodes, 0 at tokens."""
    tree, open_BN = model.tree, depth_BN < model.config.tree_depth
    tokens_BT = token_ids.to(model.device).expand(len(depth_BN), -1)
    answer_BN = tokens_BT[:, place_N]
    nodes_BN = tree.ancestors[answer_BN, depth_BN.to(model.device)]
    nodes_BT = tokens_BT.index_copy(1, place_N.to(model.device), nodes_BN)
    hidden_nE = model.model(nodes_BT).last_hidden_state[:, place_N][open_BN]
    node_n = nodes_BN[open_BN]
    slot_n = child_slots(node_n, answer_BN[open_BN], tree)
    log_n = -model.child_cross_entropy(hidden_nE[None], node_n[None], slot_n[None])[0]
    nats_n = -mix_uniform(log_n, node_n, tree, model.config.uniform_share)
    return torch.zeros(depth_BN.shape, dtype=torch.float64).masked_scatter(open_BN, nats_n.double().cpu())


def _estimate(nats_S: torch.Tensor, stratum_S: torch.Tensor, passes_D: torch.Tensor) -> AnswerBound:
    """Add up the passes' parts, with the error that their spread within levels gives."""
    mean_D = torch.bincount(stratum_S, nats_S, minlength=len(passes_D)) / passes_D
    spread_D = torch.bincount(stratum_S, (nats_S - mean_D[stratum_S]).square(), minlength=len(passes_D))
    variance = (spread_D * passes_D / (passes_D - 1)).sum() if passes_D.min() > 1 else torch.tensor(torch.inf)
    return AnswerBound(float(nats_S.sum()), float(variance.sqrt()))
