"""Noise that shows wrong nodes: the bound, against the rates of the process itself and against exact posteriors."""

import math

import pytest
import torch
from helpers.bayes_optimal import random_joint
from helpers.models import corrupted, tiny_model
from helpers.perturbed import INNER, RATE, generator, knowing, shown_law, token_head

from modeling_treediff import VocabularyTree, corrupt
from modeling_treediff.building.balanced import random_tree
from modeling_treediff.configuration_treediff import HEADS, SCHEDULES
from modeling_treediff.diffusion_process import perturb, sibling_log_likelihood
from modeling_treediff.node_layers_treediff import perturbed_cross_entropy
from modeling_treediff.training import DiffusionCollator


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


@pytest.mark.parametrize("head", HEADS)
def test_gradients_are_finite_where_a_token_is_shown(head):
    """Also where the children of two siblings have no slot in common, as in trees whose slots have gaps."""
    tree = VocabularyTree.from_paths([[0, 2], [0, 3], [1, 2], [1, 3]], 4)
    model = tiny_model(tree, head=head, perturbation=RATE).train()
    batch = corrupted(model)
    assert (batch.input_ids < tree.vocab_size).any()
    model(**vars(batch)).loss.backward()
    assert all(weight.grad.isfinite().all() for weight in model.parameters() if weight.grad is not None)


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
