"""A model that knows the joint distribution of a few positions: what samplers are measured against."""

from types import SimpleNamespace

import torch

from helpers.models import tiny_model
from modeling_treediff import VocabularyTree
from modeling_treediff.building.balanced import random_tree

# Of five tokens, few enough to list all texts.
TREES = {
    "flat": VocabularyTree.flat(5),
    "uneven": VocabularyTree.from_paths([[0, 0], [0, 1], [0, 2], [1, 0], [2, 0]], 3),
    "deep": random_tree(5, 2, 3, seed=3),
}


def bayes_optimal(tree: VocabularyTree, joint: torch.Tensor, **fields):
    """Return a model that scores children by the exact posterior of each position's child, given all nodes.

    `joint` has one axis of V for each position. Sequences of another length are answered from the first position's
    marginal, all positions independent.
    """
    model = tiny_model(tree, max_position_embeddings=joint.ndim, **fields)

    class Posterior(type(model.model)):
        def forward(self, node_ids, attention_mask=None, *_, **__):
            below_BTV = tree.ancestors.T[tree.depth[node_ids]] == node_ids[..., None]
            if node_ids.shape[1] == joint.ndim:
                texts_OT = torch.cartesian_prod(*[torch.arange(tree.vocab_size)] * joint.ndim).view(-1, joint.ndim)
                weight_BO = joint.flatten().expand(len(node_ids), -1).clone()
                for position in range(joint.ndim):
                    weight_BO *= below_BTV[:, position, texts_OT[:, position]]
                token_BTV = torch.zeros(below_BTV.shape, dtype=torch.float64)
                for position in range(joint.ndim):
                    token_BTV[:, position].index_add_(1, texts_OT[:, position], weight_BO)
            else:
                token_BTV = below_BTV * joint.sum(dim=tuple(range(1, joint.ndim)))
            return SimpleNamespace(last_hidden_state=token_BTV.double())

    class Head(type(model.head)):
        def forward(self, hidden, node_ids, tree):
            node_nV = tree.ancestors.T[(tree.depth[node_ids] + 1).clamp(max=tree.tree_depth)]
            below_nV = tree.ancestors.T[tree.depth[node_ids]] == node_ids[..., None]
            child_nK = torch.zeros(*node_ids.shape, tree.max_branching, dtype=torch.float64)
            return child_nK.scatter_add_(-1, tree.child_slot[node_nV], hidden * below_nV).log()

    model.model.__class__, model.head.__class__ = Posterior, Head
    return model


def random_joint(*shape: int, seed: int = 0) -> torch.Tensor:
    """Return a joint distribution with strong dependences."""
    weights = torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) ** 4 + 0.002
    return weights / weights.sum()


def chi_square(texts: torch.Tensor, expected: torch.Tensor) -> float:
    """Pearson's statistic of texts (n, T) against probabilities with T axes; inf if something impossible occurs."""
    index = torch.zeros(len(texts), dtype=torch.long)
    for position, size in enumerate(expected.shape):
        index = index * size + texts[:, position]
    observed = torch.bincount(index, minlength=expected.numel()).double()
    count = len(texts) * expected.flatten()
    if observed[count == 0].any():
        return float("inf")
    return float(((observed - count) ** 2 / count)[count > 0].sum())
