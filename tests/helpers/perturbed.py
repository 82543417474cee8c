"""Models with perturbed nodes that know the joint distribution of a few positions, and the law of what they show."""

from types import SimpleNamespace

import torch

from helpers.bayes_optimal import TREES
from helpers.models import tiny_model

INNER = {name: TREES[name] for name in ("uneven", "deep")}  # which have nodes between root and tokens
RATE = 0.3


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def token_head(hidden, node_ids, tree):
    """Scores of children from log-weights of tokens (..., V): the logarithm of what lies below each."""
    below = torch.full((*hidden.shape[:-1], tree.max_branching), -torch.inf, dtype=hidden.dtype)
    for slot in range(tree.max_branching):
        child = tree.children[(node_ids - tree.root_id).clamp(min=0), slot]
        is_below = tree.ancestors.T[tree.depth[child.clamp(min=0)]] == child[..., None]
        below[..., slot] = hidden.masked_fill(~is_below, -torch.inf).logsumexp(dim=-1)
    return below


def shown_law(tree, token, rate):
    """(D + 1, N): what is shown at each depth for a token, written out."""
    law = torch.zeros(tree.tree_depth + 1, tree.num_nodes, dtype=torch.float64)
    for depth, node in enumerate(tree.ancestors[token].tolist()):
        family = [one for one in tree.children[tree.parent[node] - tree.root_id].tolist() if one >= 0] if depth else []
        if 0 < depth < tree.tree_depth and len(family) > 1:
            law[depth, family] = rate / (len(family) - 1)
            law[depth, node] = 1 - rate
        else:
            law[depth, node] = 1
    return law


def knowing(tree, joint, rate=RATE, **fields):
    """A model whose hidden states are log-weights of tokens as other positions that it sees have them, enumerated."""
    model = tiny_model(tree, perturbation=rate, max_position_embeddings=joint.ndim, **fields)
    texts = torch.cartesian_prod(*[torch.arange(tree.vocab_size)] * joint.ndim).view(-1, joint.ndim)
    law = torch.stack(
        [shown_law(tree, token, rate).sum(dim=0) for token in range(tree.vocab_size)]
    )  # by token and node

    class Knowing(type(model.model)):
        def forward(self, node_ids, attention_mask=None, *_, **__):
            weight_BO = joint.flatten().expand(len(node_ids), -1)
            seen = range(node_ids.shape[1])
            factor = [law[texts[:, place]][:, node_ids[:, place]].T for place in seen]
            hidden = torch.zeros(*node_ids.shape, tree.vocab_size, dtype=torch.float64)
            for place in seen:
                others = weight_BO.clone()
                for other in seen:
                    others = others * factor[other] if other != place else others
                hidden[:, place].index_add_(1, texts[:, place], others)
            return SimpleNamespace(last_hidden_state=hidden.log())

    class Head(type(model.head)):
        def forward(self, hidden, node_ids, tree):
            return token_head(hidden, node_ids, tree)

    model.model.__class__, model.head.__class__ = Knowing, Head
    return model, texts
