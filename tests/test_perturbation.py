"""Noise that shows wrong nodes: the bound, against the rates of the process itself and against exact posteriors."""

import math
from types import SimpleNamespace

import pytest
import torch
from helpers.bayes_optimal import TREES, chi_square, random_joint
from helpers.models import corrupted, tiny_model
from scipy.stats import chi2

from modeling_treediff import VocabularyTree, corrupt
from modeling_treediff.building.balanced import random_tree
from modeling_treediff.configuration_treediff import HEADS, SCHEDULES
from modeling_treediff.constraints import TokenConstraints
from modeling_treediff.diffusion_process import perturb, sibling_log_likelihood
from modeling_treediff.node_layers_treediff import perturbed_cross_entropy
from modeling_treediff.training import DiffusionCollator

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


@pytest.mark.parametrize("tree", INNER.values(), ids=INNER)
def test_nodes_are_shown_as_the_law_says(tree):
    """60,000 draws for every node, within four standard errors; likelihoods are the same law read the other way."""
    draws = 60_000
    uniforms = torch.rand(draws, generator=generator(), dtype=torch.float64)
    for token in range(tree.vocab_size):
        law = shown_law(tree, token, RATE)
        for depth, node in enumerate(tree.ancestors[token].tolist()):
            found = perturb(torch.full((draws,), node), tree, RATE, uniforms).bincount(minlength=tree.num_nodes) / draws
            assert ((found - law[depth]).abs() <= 4 * (law[depth] * (1 - law[depth]) / draws).sqrt()).all()
            if 0 < depth < tree.tree_depth:
                for shown in law[depth].nonzero()[:, 0].tolist():
                    log_likelihood = sibling_log_likelihood(torch.tensor([shown]), tree, RATE)[0, tree.child_slot[node]]
                    assert float(log_likelihood.exp()) == pytest.approx(float(law[depth, shown]))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("tree", INNER.values(), ids=INNER)
def test_the_loss_is_that_of_the_rates_of_the_process(tree, schedule):
    """Of any continuous-time Markov chain: the sum over jumps of B log(B / B') - B + B', B' the model's reverse rate.

    B follows from the forward rates, which know the shown node alone, and from the law of what is shown.
    """
    model = tiny_model(tree, schedule=schedule, perturbation=RATE)
    time = torch.tensor([0.37], dtype=torch.float64)
    alpha, flux = model.schedule.alpha(time)[0], model.schedule.flux(time)[0]
    pi = alpha - torch.cat([alpha[1:], alpha.new_zeros(1)])
    laws = torch.stack([shown_law(tree, token, RATE) for token in range(tree.vocab_size)])
    at_time = (laws * pi[:, None]).sum(dim=1)  # (V, N)
    forward = torch.zeros(tree.num_nodes, tree.num_nodes, dtype=torch.float64)
    for node in range(tree.num_nodes):
        depth = int(tree.depth[node])
        if depth and pi[depth] > 0:
            token = int(tree.representative[node])  # what is below a node has the same law above it
            forward[node] = flux[depth - 1] / pi[depth] * laws[token, depth - 1]
    change = at_time @ forward - at_time * forward.sum(dim=1)
    step = 1e-6
    ends = (model.schedule.alpha(time + sign * step)[0] for sign in (1, -1))
    later, earlier = (((end - torch.cat([end[1:], end.new_zeros(1)]))[:, None] * laws).sum(dim=1) for end in ends)
    torch.testing.assert_close(change, (later - earlier) / (2 * step), rtol=1e-5, atol=1e-8)  # it has this law

    log_weights = torch.randn(tree.vocab_size, generator=generator(), dtype=torch.float64)
    for token in range(tree.vocab_size):
        for shown in (at_time[token] > 0).nonzero()[:, 0].tolist():
            if (depth := int(tree.depth[shown])) == tree.tree_depth:
                continue
            reverse = torch.where(at_time[:, shown, None] > 0, at_time * forward[:, shown] / at_time[:, shown, None], 0)
            posterior = log_weights.exp() * at_time[:, shown]
            ours = (posterior[:, None] * reverse).sum(dim=0) / posterior.sum()
            exact = torch.xlogy(reverse[token], reverse[token] / ours.clamp(min=1e-300)) - reverse[token] + ours
            shown_11, token_11 = torch.tensor([[shown]]), torch.tensor([[token]])
            nats = perturbed_cross_entropy(token_head, log_weights[None, None], shown_11, token_11, tree, RATE)
            found = nats * model.schedule.weight(time)[0, depth]
            torch.testing.assert_close(found[0, 0], exact.sum(), rtol=1e-6, atol=1e-9)


def test_hdlm_with_its_xi_is_the_tree_of_depth_two():
    """The right cluster with xi, the others share the rest; below a cluster, right or wrong, the token by Bayes."""
    tree, xi = INNER["uneven"], 1 - RATE
    cluster_of = tree.ancestors[:, 1] - tree.root_id - 1
    log_weights = torch.randn(5, generator=generator(), dtype=torch.float64)
    token_p = log_weights.softmax(dim=0)
    cluster_p = torch.zeros(3, dtype=torch.float64).index_add(0, cluster_of, token_p)
    shown_p = torch.full((3, 3), (1 - xi) / 2, dtype=torch.float64).fill_diagonal_(xi)  # of true, shown
    for token in range(5):
        mask, labels = torch.tensor([[tree.root_id]]), torch.tensor([[token]])
        nats = perturbed_cross_entropy(token_head, log_weights[None, None], mask, labels, tree, 1 - xi)
        target, predicted = shown_p[cluster_of[token]], cluster_p @ shown_p
        assert float(nats) == pytest.approx(float((target * (target / predicted).log()).sum()))
        for shown in range(3):
            nodes = torch.tensor([[tree.root_id + 1 + shown]])
            nats = perturbed_cross_entropy(token_head, log_weights[None, None], nodes, labels, tree, 1 - xi)
            posterior = token_p * shown_p[cluster_of, shown]
            assert float(nats) == pytest.approx(-float((posterior[token] / posterior.sum()).log()))


@pytest.mark.parametrize("head", HEADS)
def test_without_perturbation_the_loss_is_the_other_one_and_a_small_rate_comes_near(head):
    plain, noisy = (tiny_model(INNER["deep"], head=head, perturbation=rate).double() for rate in (0.0, 1e-9))
    noisy.load_state_dict(plain.state_dict())
    batch = vars(corrupted(plain))
    torch.testing.assert_close(noisy(**batch).loss, plain(**batch).loss, rtol=1e-6, atol=0)
    hidden = torch.randn(4, 10, 32, generator=generator(), dtype=torch.float64)
    nats = perturbed_cross_entropy(plain.head, hidden, batch["input_ids"], batch["labels"], plain.tree, 0.0)
    torch.testing.assert_close(nats, plain.bound_nats(hidden, batch["input_ids"], batch["labels"]))


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


@pytest.mark.parametrize(
    ("schedule", "rate"), [*((name, RATE) for name in SCHEDULES), ("binomial", 0.05), ("binomial", 0.9)]
)
@pytest.mark.parametrize("tree", INNER.values(), ids=INNER)
def test_the_bound_of_the_best_model_is_the_entropy_of_the_data(tree, schedule, rate):
    """Two positions; within four standard errors."""
    joint = random_joint(5, 5)
    model, texts = knowing(tree, joint, rate, schedule=schedule)
    means = []
    for seed in range(40):
        nats = model.nelbo(texts, num_samples=24, batch_size=600, generator=generator(seed)).token_losses.sum(dim=1)
        means.append(float((joint.flatten() * nats).sum()))
    entropy = float(torch.special.entr(joint).sum())
    error = float(torch.tensor(means).std()) / len(means) ** 0.5
    assert abs(sum(means) / len(means) - entropy) < 4 * error < 0.15


def test_the_bound_is_the_mean_of_the_training_loss():
    tree = random_tree(100, branching=5, depth=3, seed=1)
    model = tiny_model(tree, perturbation=RATE).double().eval()
    tokens = torch.randint(0, 100, (3, 16), generator=generator())
    losses = []
    for seed in range(50):
        batch = corrupt(tokens.repeat(40, 1), tree, model.schedule, generator=generator(seed))
        with torch.no_grad():
            losses.append(model(batch.input_ids, labels=batch.labels, timesteps=batch.timesteps).loss)
    loss, bound = torch.stack(losses), model.nelbo(tokens, num_samples=300, generator=generator())
    error = (loss.var() / len(loss) + bound.standard_error**2) ** 0.5
    assert abs(float(loss.mean()) - bound.value) < 4 * error < 0.3


def test_what_cannot_be_perturbed_is_refused():
    with pytest.raises(ValueError, match="nodes between root and tokens"):
        tiny_model(VocabularyTree.flat(5), perturbation=0.1)
    for rate in (-0.1, 1.0):
        with pytest.raises(ValueError, match="perturbation must be at least 0 and less than 1"):
            tiny_model(INNER["deep"], perturbation=rate)
    with pytest.raises(ValueError, match="no uniform_share"):
        tiny_model(INNER["deep"], perturbation=0.1, uniform_share=0.1)
    model = tiny_model(INNER["deep"], perturbation=0.1)
    model.config.uniform_share = 0.1  # as `treediff evaluate --uniform-share` does
    with pytest.raises(ValueError, match="uniform_share has no meaning where nodes are perturbed"):
        model.nelbo(torch.zeros(1, 4, dtype=torch.long))


def test_the_rate_is_that_of_the_schedule():
    """As all that the schedule was made with, whatever becomes of the config."""
    model, tokens = tiny_model(INNER["deep"], perturbation=RATE), torch.arange(5)[None]
    bound = model.nelbo(tokens, num_samples=30, generator=generator()).value
    model.config.perturbation = 0.9
    assert model.nelbo(tokens, num_samples=30, generator=generator()).value == bound


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


def test_greedy_texts_are_the_same_however_noise_is_drawn():
    model = tiny_model(random_tree(100, branching=5, depth=3, seed=1), perturbation=RATE, initializer_range=0.5)
    settings = {"do_sample": False, "unmasking": "confidence", "num_steps": 12, "remasking_steps": 4}
    texts = [model.generate(generator=generator(seed), max_new_tokens=12, **settings) for seed in (0, 1)]
    assert torch.equal(*texts)


def hdlm_loss(mass, clusters, xi):
    """HDLM's loss where each cluster is one token and all are alike: a network that gives what it sees this mass."""
    wrong = (1 - xi) / (clusters - 1)

    def left_out(probability):
        return -math.log(probability + wrong / xi * (1 - probability))

    at_mask = xi * left_out(1 / clusters)
    shown_right = -math.log(mass) - left_out(mass)
    shown_wrong = -math.log((1 - mass) / (clusters - 1))
    return at_mask + xi * shown_right + (1 - xi) * shown_wrong


def exact_bound(mass, clusters, xi):
    """Of the same network, which the shown cluster has given these odds: both choices are charged."""
    wrong = (1 - xi) / (clusters - 1)
    shown = -xi * math.log(xi) - (1 - xi) * math.log(wrong)
    return math.log(clusters) - shown - xi * math.log(mass) - (1 - xi) * math.log((1 - mass) / (clusters - 1))


@pytest.mark.parametrize(("clusters", "xi"), [(64, 0.9), (3, 0.7)])
def test_hdlms_own_loss_can_fall_below_the_entropy_and_is_no_bound(clusters, xi):
    """It leaves out, at a cluster that is shown wrongly, what it takes to show that one."""
    masses = [number / 1000 for number in range(1, 1000)]
    entropy = math.log(clusters)
    assert min(hdlm_loss(mass, clusters, xi) for mass in masses) < entropy - 0.02
    assert min(exact_bound(mass, clusters, xi) for mass in masses) == pytest.approx(entropy, abs=1e-4)


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


def test_the_collator_perturbs_by_position_and_alone_as_in_a_batch():
    tree = random_tree(60, 8, 2, seed=0)
    tokens = torch.randint(0, 60, (40, 12), generator=generator())
    features = [{"input_ids": row, "position": place} for place, row in enumerate(tokens)]
    for block_size in (None, 4):
        model = tiny_model(tree, perturbation=RATE, block_size=block_size)
        collate = DiffusionCollator(model.tree, model.schedule, seed=3, block_size=block_size)
        whole, parts = collate(features), [collate(features[:7]), collate(features[7:])]
        for name, values in whole.items():
            assert torch.equal(values, torch.cat([part[name] for part in parts]))
        nodes = whole["input_ids"]
        inner = nodes > tree.root_id
        wrong = (nodes != tree.ancestors[tokens, 1])[inner].double()
        assert abs(float(wrong.mean()) - RATE) < 4 * (RATE * (1 - RATE) / len(wrong)) ** 0.5
        assert model(**whole).loss.isfinite()
