"""Generation with perturbed nodes: what is shown wrong on the way is revised, and the law of the texts is kept."""

import pytest
import torch
from helpers.bayes_optimal import chi_square, random_joint
from helpers.models import tiny_model
from helpers.perturbed import INNER, RATE, generator, knowing, shown_law
from scipy.stats import chi2

from modeling_treediff import VocabularyTree
from modeling_treediff.building.balanced import random_tree
from modeling_treediff.constraints import TokenConstraints


@pytest.mark.parametrize(
    ("schedule", "settings"),
    [
        ("binomial", {"unmasking": "first_hitting"}),
        ("sequential", {"unmasking": "first_hitting"}),
        ("poisson", {"unmasking": "random", "num_steps": 400}),
        ("binomial", {"unmasking": "random", "num_steps": 800, "remasking_rate": 1.0}),
    ],
)
@pytest.mark.parametrize("tree", INNER.values(), ids=INNER)
def test_texts_of_the_best_model_follow_the_data(tree, schedule, settings):
    """Two positions, shown perturbed on the way: 4,000 texts pass a chi-square test at 99.9 %."""
    joint = random_joint(5, 5, seed=2)
    model, _ = knowing(tree, joint, schedule=schedule)
    settings = {"num_steps": tree.tree_depth, "max_new_tokens": 2, "num_return_sequences": 4_000} | settings
    texts = model.generate(generator=generator(), **settings)
    assert chi_square(texts, joint) < chi2.ppf(0.999, joint.numel() - 1)


@pytest.mark.parametrize("rate", [0.05, RATE, 0.9])
@pytest.mark.parametrize(
    "settings",
    [
        {"unmasking": "confidence"},
        {"unmasking": "margin"},
        {"unmasking": "entropy"},
        {"unmasking": "first_hitting", "remasking_steps": 6, "remasking_fraction": 1.0},
        {"unmasking": "random", "num_steps": 100, "remasking_rate": 1.0},
        {"unmasking": "confidence", "block_size": 1},
    ],
    ids=str,
)
def test_a_single_position_follows_the_data_in_every_order_and_after_corrections(settings, rate):
    """What is revised has been shown perturbed: 8,000 texts of one token pass a chi-square test at 99.9 %."""
    tree, joint = INNER["uneven"], random_joint(5, seed=2)
    model, _ = knowing(tree, joint, rate=rate, block_size=settings.get("block_size"))
    settings = {"num_steps": 10} | {name: value for name, value in settings.items() if name != "block_size"}
    texts = model.generate(generator=generator(), max_new_tokens=1, num_return_sequences=8_000, **settings)
    assert chi_square(texts, joint) < chi2.ppf(0.999, joint.numel() - 1)


def test_texts_in_blocks_follow_the_data():
    """Two blocks of two positions each; 4,000 texts pass a chi-square test of all four at 99.9 %."""
    joint = random_joint(5, 5, 5, 5, seed=4) ** 0.5
    joint = joint / joint.sum()
    model, _ = knowing(INNER["uneven"], joint, block_size=2)
    settings = {"unmasking": "first_hitting", "use_cache": False, "max_new_tokens": 4, "num_return_sequences": 4_000}
    texts = model.generate(generator=generator(), **settings)
    assert chi_square(texts, joint) < chi2.ppf(0.999, joint.numel() - 1)


def changed(probability, temperature=1.0, top_k=None, top_p=None):
    """What temperature and truncation make of probabilities, written out."""
    power = probability ** (1 / temperature)
    order = power.argsort(descending=True)
    before = (power / power.sum())[order].cumsum(dim=0) - (power / power.sum())[order]
    kept = [index for rank, index in enumerate(order.tolist()) if rank < (top_k or 9) and before[rank] < (top_p or 2)]
    result = torch.zeros_like(power)
    result[kept] = power[kept]
    return result / result.sum()


@pytest.mark.parametrize("rate", [0.05, RATE, 0.9])
@pytest.mark.parametrize("unmasking", ["first_hitting", "confidence"])
@pytest.mark.parametrize(
    "settings",
    [{"temperature": 0.5}, {"temperature": 2.0}, {"top_k": 1}, {"top_p": 0.6}, {"temperature": 0.01}],
    ids=str,
)
def test_temperature_and_truncation_change_what_is_probable_and_not_how_it_is_shown(settings, unmasking, rate):
    """So at any rate a position has the law of a model without perturbation: chi-square of 8,000 texts at 99.9 %."""
    tree, joint = INNER["uneven"], random_joint(5, seed=2)
    model, _ = knowing(tree, joint, rate=rate)
    expected = torch.zeros(5, dtype=torch.float64)
    clusters = tree.ancestors[:, 1]
    cluster_p = changed(torch.stack([joint[clusters == node].sum() for node in tree.children[0]]), **settings)
    for node, probability in zip(tree.children[0], cluster_p, strict=True):
        below = clusters == node
        expected[below] = probability * changed(joint[below], **settings)
    how = {"max_new_tokens": 1, "num_return_sequences": 8_000, "unmasking": unmasking, "num_steps": 2}
    texts = model.generate(generator=generator(), **how, **settings)
    possible = int((expected > 1e-9).sum())
    assert torch.isin(texts, (expected > 1e-9).nonzero()).all()
    assert chi_square(texts, expected) < chi2.ppf(0.999, max(possible - 1, 1))


@pytest.mark.parametrize("rate", [RATE, 0.9])
@pytest.mark.parametrize("allowed", [[0, 3], [0, 1, 3, 4]])
def test_allowed_tokens_have_their_conditional_law(allowed, rate):
    """Nodes may be shown that none of them is below: chi-square of 8,000 texts of one position at 99.9 %."""
    joint = random_joint(5, seed=2)
    model, _ = knowing(INNER["uneven"], joint, rate=rate)
    expected = torch.zeros(5, dtype=torch.float64)
    expected[allowed] = joint[allowed] / joint[allowed].sum()
    how = {"max_new_tokens": 1, "num_return_sequences": 8_000, "unmasking": "first_hitting", "num_steps": 2}
    texts = model.generate(generator=generator(), allowed_tokens=allowed, **how)
    assert chi_square(texts, expected) < chi2.ppf(0.999, len(allowed) - 1)


ORDERS = [
    {"unmasking": "random"},
    {"unmasking": "first_hitting"},
    {"unmasking": "confidence", "remasking_steps": 4},
    {"unmasking": "random", "remasking_rate": 1.0},
]


@pytest.mark.parametrize("settings", ORDERS, ids=str)
@pytest.mark.parametrize("depth", [2, 3])
def test_constraints_are_kept_and_texts_end_where_wrong_nodes_are_shown(settings, depth):
    """Bad words among open neighbours, with a third of the tokens suppressed: every text is finished without one."""
    random = torch.Generator().manual_seed(depth)
    for seed in range(12):
        rate, tree = (0.1, RATE)[seed % 2], random_tree(20, {2: 6, 3: 3}[depth], depth, seed=1)
        model = tiny_model(tree, perturbation=rate, seed=seed)
        words = torch.randint(20, (20, 2), generator=random).tolist()
        suppressed = torch.randperm(20, generator=random)[:6].tolist()
        how = settings | {"num_steps": 8, "suppress_tokens": suppressed, "generator": generator(seed)}
        start = torch.full((8, 8), tree.root_id)
        texts = model.generate(start, constraints=TokenConstraints(bad_words_ids=words), **how)
        pairs = torch.stack([texts[:, :-1], texts[:, 1:]], dim=-1)
        assert not any((pairs == torch.tensor(word)).all(dim=-1).any() for word in words)
        assert (texts < 20).all() and not torch.isin(texts, torch.tensor(suppressed)).any()


def test_constraints_that_hold_all_back_are_an_error():
    class Never(TokenConstraints):
        def may_move(self, draft, after, moving):
            return moving & False

    with pytest.raises(ValueError, match="hold all positions back"):
        tiny_model(INNER["deep"]).generate(max_new_tokens=4, constraints=Never())


# Two clusters, of one token each and of two.
SINGLES, PAIRS = (VocabularyTree.from_paths(paths, 2) for paths in ([[0, 0], [1, 0]], [[0, 0], [0, 1], [1, 0], [1, 1]]))


@pytest.mark.parametrize(
    ("tree", "settings", "passes"),
    [
        (SINGLES, {"unmasking": "confidence", "threshold": 0.9}, {3}),
        (SINGLES, {"unmasking": "confidence", "threshold": 0.6}, {2, 3}),
        (SINGLES, {"unmasking": "margin", "threshold": 0.5}, {3}),
        (SINGLES, {"unmasking": "margin", "threshold": 0.3}, {2}),
        (PAIRS, {"unmasking": "entropy", "threshold": 1.0}, {3}),
        (PAIRS, {"unmasking": "entropy", "threshold": 1.4}, {2}),
    ],
    ids=str,
)
def test_a_position_is_as_sure_as_of_both_its_choices(tree, settings, passes):
    """Two positions, all texts alike: the first pass takes both to clusters, the second both if they are sure.

    A cluster is what is shown with 0.7, a lead of 0.4, 0.61 nats of entropy; its token is certain, or has 0.69 nats.
    """
    size = tree.vocab_size
    model, _ = knowing(tree, torch.full((size, size), 1 / size**2, dtype=torch.float64))
    how = {"num_steps": 3, "max_new_tokens": 2, "return_dict_in_generate": True}
    found = {model.generate(generator=generator(seed), **how, **settings).num_forward_passes for seed in range(12)}
    assert found == passes


def test_what_is_recorded_of_a_choice_is_its_probability_given_what_was_shown():
    tree, joint = INNER["uneven"], random_joint(5, seed=2)
    model, _ = knowing(tree, joint)
    how = {"max_new_tokens": 1, "num_return_sequences": 50, "unmasking": "first_hitting", "output_history": True}
    result = model.generate(generator=generator(), num_steps=2, return_dict_in_generate=True, **how)
    (first,) = (nodes[:, 0] for nodes, depth in zip(result.history, result.depths, strict=True) if (depth == 1).all())
    clusters, representative = tree.ancestors[:, 1], tree.representative
    revised = 0
    for text, (token, shown) in enumerate(zip(result.sequences[:, 0].tolist(), first.tolist(), strict=True)):
        odds = {
            node: float(joint[clusters == node].sum() * shown_law(tree, representative[node], RATE)[1, shown])
            for node in tree.children[0].tolist()
        }
        cluster = int(clusters[token])
        expected = [odds[cluster] / sum(odds.values()), float(joint[token] / joint[clusters == cluster].sum())]
        assert result.log_probs[text, 0].exp().tolist() == pytest.approx(expected)
        revised += cluster != shown
    assert revised > 3


@pytest.mark.parametrize("rate", [0.05, RATE, 0.9])
def test_without_sampling_a_text_is_that_of_a_vanishing_temperature(rate):
    joint = random_joint(5, seed=2)
    model, _ = knowing(INNER["uneven"], joint, rate=rate)
    how = {"max_new_tokens": 1, "num_return_sequences": 100, "unmasking": "first_hitting", "num_steps": 2}
    cold = model.generate(generator=generator(), temperature=1e-6, **how)
    assert torch.equal(cold, model.generate(do_sample=False, **how)) and len(cold.unique()) == 1


def test_exact_constraints_are_refused():
    model = tiny_model(INNER["deep"], perturbation=RATE)
    with pytest.raises(ValueError, match="exact takes inner nodes as true"):
        model.generate(max_new_tokens=2, suppress_tokens=[0], constraints=TokenConstraints(exact=True))


def test_greedy_texts_are_the_same_however_noise_is_drawn():
    model = tiny_model(random_tree(100, branching=5, depth=3, seed=1), perturbation=RATE, initializer_range=0.5)
    settings = {"do_sample": False, "unmasking": "confidence", "num_steps": 12, "remasking_steps": 4}
    texts = [model.generate(generator=generator(seed), max_new_tokens=12, **settings) for seed in (0, 1)]
    assert torch.equal(*texts)


def test_given_nodes_stay_and_wrong_ones_on_the_way_are_revised():
    """Below what is given, and by the likelihood of what is shown: at a small rate, nodes are never revised."""
    tree = random_tree(100, branching=5, depth=3, seed=1)
    start = tree.ancestors[torch.arange(0, 100, 7), 1].expand(8, -1)
    revisions = {}
    for rate in (1e-12, 0.5):
        model = tiny_model(tree, perturbation=rate, initializer_range=0.5)
        for unmasking in ("random", "first_hitting", "confidence"):
            settings = {"unmasking": unmasking, "num_steps": 12, "remasking_steps": 4, "output_history": True}
            result = model.generate(start, generator=generator(), return_dict_in_generate=True, **settings)
            moves = 0
            for nodes, depth in zip(result.history, result.depths, strict=True):
                assert torch.equal(tree.coarsen(nodes, 1), start)
                known = depth == 2
                moves += int((tree.coarsen(result.sequences, 2) != nodes)[known].sum())
            revisions[rate, unmasking] = moves
    assert all((moves > 0) for (rate, _), moves in revisions.items() if rate == 0.5)
    assert revisions[1e-12, "first_hitting"] == 0
