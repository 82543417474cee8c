"""Terms of the levels against the bound, enumeration of leaves, and perfect models."""

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.bayes_optimal import TREES, random_joint
from helpers.models import tiny_model

from modeling_treediff import VocabularyTree
from modeling_treediff.building.balanced import random_tree
from modeling_treediff.evaluation import WindowProtocol, cut_windows
from modeling_treediff.evaluation.level_terms import measure_levels
from modeling_treediff.evaluation.perplexity import _pool, estimate_windows

TREE = random_tree(30, 4, 3, seed=0)

FLAT = VocabularyTree.flat(30)

SETTINGS = {"num_samples": 4, "batch_size": 5}


def some_windows(window: int = 8, tokens: int = 45):
    token_ids = torch.randint(0, 30, (tokens,), generator=torch.Generator().manual_seed(0)).numpy()
    return token_ids, cut_windows(token_ids, WindowProtocol(window, window // 2))


@pytest.mark.parametrize(
    ("tree", "fields"),
    [
        (TREE, {}),
        (TREE, {"head": "node", "schedule": "binomial"}),
        (TREE, {"head": "leaf", "schedule": "poisson"}),
        (FLAT, {}),
        (FLAT, {"head": "node"}),
        (FLAT, {"head": "leaf"}),
        (TREE, {"uniform_share": 0.2}),
        (FLAT, {"uniform_share": 0.2}),
    ],
)
def test_terms_of_the_levels_add_up_to_the_bound(tree, fields):
    """Of the same corruptions; a model of the tree has the level's losses as its terms."""
    model = tiny_model(tree, **fields).double()
    token_ids, windows = some_windows()
    value, _, levels = _pool(estimate_windows(model, windows, SETTINGS, seed=3, progress=False))
    terms = measure_levels(model, TREE, windows, **SETTINGS, seed=3)
    assert terms.nats.shape == (len(token_ids), 3)
    assert terms.nats.sum() / len(token_ids) == pytest.approx(value, rel=1e-12)
    if tree is TREE:
        assert terms.nats.mean(axis=0) == pytest.approx(levels, rel=1e-12)
    for level in (1, 2, 3):
        chosen = terms.looks.level == level
        assert terms.looks.weight[chosen].sum() == pytest.approx(len(token_ids), rel=1e-12)
        nats = -terms.looks.weight[chosen] @ np.log(terms.looks.probability[chosen])
        assert nats == pytest.approx(terms.nats[:, level - 1].sum(), rel=1e-9)


def test_a_flat_model_is_read_as_enumeration_of_the_leaves_below_each_node_says():
    tree = random_tree(7, 3, 3, seed=2)
    model = tiny_model(VocabularyTree.flat(7), max_position_embeddings=2).double()
    row = np.array([3, 5])
    windows = cut_windows(row, WindowProtocol(2, 2))
    looks = measure_levels(model, tree, windows, num_samples=40).looks
    below = {node: [v for v in range(7) if node in tree.ancestors[v]] for node in range(tree.num_nodes)}
    known = set()
    for nodes in [(7, 7), (7, 5), (3, 7)]:
        with torch.no_grad():
            p_TV = model(torch.tensor([nodes])).logits[0].softmax(dim=-1)[:, model.tree.child_slot[:7]]
        for place, level in itertools.product((0, 1), (1, 2, 3)):
            if nodes[place] == 7:
                p = {node: sum(float(p_TV[place, v]) for v in below[node]) for node in below}
                parent, child = (int(tree.ancestors[row[place], depth]) for depth in (level - 1, level))
                siblings = [node for node in tree.children[parent - 7].tolist() if node >= 0]
                best = max(siblings, key=lambda node, p=p: p[node])
                known.add((level, child, best, round(p[child] / p[parent], 9)))
    found = zip(looks.level, looks.child, looks.best, looks.probability.round(9), strict=True)
    assert {tuple(one.item() for one in look) for look in found} == known


def test_perfect_models_have_the_entropy_and_shift_it_between_levels():
    """8 estimates, 4 standard errors. H(X) for both; level 1: H(clusters) with the tree, less read off the flat one."""
    tree, joint = TREES["uneven"], random_joint(5, 5)
    texts = torch.cartesian_prod(torch.arange(5), torch.arange(5))
    chance_O = joint.flatten()
    cluster_O2 = tree.ancestors[texts, 1]
    clusters = {tuple(pair): 0.0 for pair in cluster_O2.tolist()}
    for pair, chance in zip(cluster_O2.tolist(), chance_O.tolist(), strict=True):
        clusters[tuple(pair)] += chance
    entropy = float(-(chance_O * chance_O.log()).sum())
    of_clusters = -sum(chance * math.log(chance) for chance in clusters.values())
    levels = {}
    for name, its_tree in (("tree", tree), ("flat", TREES["flat"])):
        model = perfect(its_tree, joint)
        windows = cut_windows(texts.flatten().numpy(), WindowProtocol(2, 2))
        runs = [
            measure_levels(model, tree, windows, num_samples=128, batch_size=3200, seed=seed).nats for seed in range(8)
        ]
        levels[name] = np.array([chance_O.repeat_interleave(2).numpy() @ run for run in runs])
        assert near(levels[name].sum(axis=1), entropy)
    assert near(levels["tree"][:, 0], of_clusters)
    assert near(levels["tree"][:, 1], entropy - of_clusters)
    lower = levels["tree"][:, 0].mean() - levels["flat"][:, 0].mean()
    assert lower > 0.01 and lower > 4 * levels["flat"][:, 0].std() / 8**0.5


def near(values: np.ndarray, truth: float) -> bool:
    return abs(values.mean() - truth) < 4 * values.std(ddof=1) / len(values) ** 0.5 + 1e-9


def perfect(tree, joint):
    """A model that knows the joint distribution: hidden states are log-posteriors of tokens, its leaf head copies."""
    model = tiny_model(tree, head="leaf", max_position_embeddings=2).double()
    texts_O2 = torch.cartesian_prod(torch.arange(5), torch.arange(5))

    def posterior(node_ids, *masks):
        possible_B2V = tree.ancestors.T[tree.depth[node_ids]] == node_ids[..., None]
        weight_BO = joint.flatten() * possible_B2V[:, 0, texts_O2[:, 0]] * possible_B2V[:, 1, texts_O2[:, 1]]
        token_B2V = torch.stack([weight_BO @ torch.eye(5, dtype=torch.float64)[texts_O2[:, i]] for i in (0, 1)], dim=1)
        return SimpleNamespace(last_hidden_state=token_B2V.clamp(min=1e-30).log())

    model.model.forward = posterior
    model.head.tokens = torch.nn.Linear(5, 5).double()
    torch.nn.init.zeros_(model.head.tokens.bias)
    torch.nn.init.eye_(model.head.tokens.weight)
    return model


def test_models_of_another_vocabulary_or_tree_are_refused():
    _, windows = some_windows()
    for tree, message in ((VocabularyTree.flat(31), "30 and 31 tokens"), (random_tree(30, 6, 2), "flat")):
        with pytest.raises(ValueError, match=message):
            measure_levels(tiny_model(tree), TREE, windows, num_samples=3)
