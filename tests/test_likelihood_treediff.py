"""The likelihood bound: against enumeration, against the exact likelihood of the reverse chain, and its errors."""

import itertools
import math

import numpy as np
import pytest
import torch
from helpers.models import SEQUENTIAL, as_likelihoods_have_it, tiny_model
from helpers.quadrature import quadrature
from helpers.untraced import untraced

from modeling_treediff import VocabularyTree, corrupt
from modeling_treediff.building.balanced import random_tree

LENGTH = 2
TREES = {
    "flat": VocabularyTree.flat(4),
    "two levels": random_tree(5, 3, 2, seed=0),
    "three levels": random_tree(4, 2, 3, seed=1),
}
SCHEDULES = {
    "sequential": SEQUENTIAL,
    "uneven": SEQUENTIAL | {"level_durations": "by depth"},
    "cosine": SEQUENTIAL | {"time_warp": "cosine"},
    "binomial": {"schedule": "binomial"},
    "poisson": {"schedule": "poisson"},
}
CASES = [
    pytest.param(tree, fields, id=f"{name} {kind}")
    for name, tree in TREES.items()
    for kind, fields in SCHEDULES.items()
    if kind != "uneven" or tree.tree_depth > 1
]
SHARED = [pytest.param(tree, {"uniform_share": 0.3}, id=f"{name} with a uniform share") for name, tree in TREES.items()]


def make_model(tree, fields, **more):
    if "level_durations" in fields:
        fields = fields | {"level_durations": [4.0**level for level in range(tree.tree_depth)]}
    return tiny_model(tree, **fields, **more).double()


def child_log_probs(model):
    """Log p(child | nodes) of every pattern of two nodes: {nodes: (LENGTH, K)}."""
    tree = model.tree
    nodes = torch.tensor(list(itertools.product(range(tree.num_nodes), repeat=LENGTH)))
    with torch.no_grad():
        log_probs = as_likelihoods_have_it(model, nodes)
    return dict(zip(map(tuple, nodes.tolist()), log_probs, strict=True))


def exact_bound(model, tokens):
    """(D,) nats per level of the bound for one sequence of two tokens, all corruptions enumerated."""
    tree, known = model.tree, child_log_probs(model)
    levels, moments = np.zeros(tree.tree_depth), []
    for time, measure in quadrature(model.schedule):
        now = torch.tensor([time], dtype=torch.float64)
        alpha, weight = model.schedule.alpha(now)[0].numpy(), model.schedule.weight(now)[0].numpy()
        moments.append((measure * weight, np.append(alpha[:-1] - alpha[1:], alpha[-1])))
    for depths in itertools.product(range(tree.tree_depth + 1), repeat=LENGTH):
        nodes = tuple(int(tree.ancestors[token, depth]) for token, depth in zip(tokens, depths, strict=True))
        weights = sum(weight * occupancy[list(depths)].prod() for weight, occupancy in moments)
        for position, (token, depth) in enumerate(zip(tokens, depths, strict=True)):
            if depth < tree.tree_depth:
                slot = tree.child_slot[tree.ancestors[token, depth + 1]]
                levels[depth] -= weights[depth] * float(known[nodes][position, slot])
    return levels


def exact_likelihoods(model, steps=200):
    """{tokens: p_theta(tokens)}: the reverse jump process from the roots, its master equation integrated over time."""
    tree, known = model.tree, child_log_probs(model)
    states = {nodes: index for index, nodes in enumerate(known)}
    jumps = []  # (level, matrix): rates of all jumps from depth level - 1, before the schedule's weight
    for level in range(tree.tree_depth):
        matrix = torch.zeros(len(states), len(states), dtype=torch.float64)
        for nodes, index in states.items():
            for position, node in enumerate(nodes):
                if tree.depth[node] == level:
                    for child in (c for c in tree.children[node - tree.vocab_size].tolist() if c >= 0):
                        after = states[(*nodes[:position], child, *nodes[position + 1 :])]
                        chance = known[nodes][position, tree.child_slot[child]].exp()
                        matrix[index, after] += chance
                        matrix[index, index] -= chance
        jumps.append(matrix)
    occupied = torch.zeros(len(states), dtype=torch.float64)
    occupied[states[(tree.root_id,) * LENGTH]] = 1
    # Within a short step each level's hazard integrates to log of the odds the schedule states; it is exact for one
    # level at a time (sequential), and second-order accurate by symmetric splitting otherwise.
    times = model.schedule.reverse_times(steps * tree.tree_depth).tolist()
    for start, end in itertools.pairwise(times):
        step = model.schedule.reverse_step(start, end)
        for level in [*range(tree.tree_depth), *reversed(range(tree.tree_depth))]:
            stay = max(float(step[level, level]), 1e-30)
            occupied = after_jumps(occupied, jumps[level], -math.log(stay) / 2)
    return {nodes: float(occupied[index]) for nodes, index in states.items() if max(nodes) < tree.vocab_size}


def after_jumps(occupied, rates, time):
    """occupied @ exp(time x rates) by uniformisation: no state is left at a rate above LENGTH."""
    mean, kernel = LENGTH * time, torch.eye(len(occupied), dtype=torch.float64) + rates / LENGTH
    term, total = math.exp(-mean) * occupied, torch.zeros_like(occupied)
    for number in range(1, int(mean + 10 * mean**0.5) + 8 if time else 2):
        total += term
        term = term @ kernel * (mean / number)
    return total


def test_uniformisation_is_the_matrix_exponential():
    rates = torch.rand(9, 9, dtype=torch.float64, generator=seeded(0)).fill_diagonal_(0)
    rates = rates / rates.sum(dim=1, keepdim=True).clamp(min=1) * LENGTH
    rates -= torch.diag(rates.sum(dim=1))
    start = torch.rand(9, dtype=torch.float64, generator=seeded(1))
    for time in (1e-3, 0.7, 35.0):
        torch.testing.assert_close(after_jumps(start, rates, time), start @ torch.linalg.matrix_exp(time * rates))


@pytest.mark.parametrize(("tree", "fields"), CASES + SHARED)
def test_the_estimate_agrees_with_enumeration(tree, fields):
    """Mean of 40 estimates within 4 standard errors of that mean; level by level."""
    model, tokens = make_model(tree, fields), (1, 3)
    exact = exact_bound(model, tokens)
    estimates = [
        model.nelbo(torch.tensor([tokens]), num_samples=24 * tree.tree_depth, batch_size=96, generator=seeded(seed))
        for seed in range(40)
    ]
    levels = torch.tensor([estimate.level_losses for estimate in estimates], dtype=torch.float64) * LENGTH
    error = levels.std(dim=0) / 40**0.5
    assert ((levels.mean(dim=0) - torch.from_numpy(exact)).abs() <= 4 * error + 1e-6).all()
    assert math.isclose(sum(estimates[0].level_losses), estimates[0].value)


@untraced
@pytest.mark.parametrize(("tree", "fields"), CASES)
def test_the_bound_is_above_the_exact_negative_log_likelihood(tree, fields):
    model = make_model(tree, fields)
    likelihoods = exact_likelihoods(model)
    assert math.isclose(sum(likelihoods.values()), 1, rel_tol=1e-4)
    for tokens in [(0, 0), (1, 3), (3, 2)]:
        bound = exact_bound(model, tokens).sum()
        assert bound >= -math.log(likelihoods[tokens]) - 1e-4
        assert bound <= -math.log(likelihoods[tokens]) + 1  # a bound of some use


def test_levels_do_not_depend_on_the_length_of_their_windows_nor_on_a_common_warp():
    tree = TREES["three levels"]
    models = [make_model(tree, SCHEDULES[kind]) for kind in ("sequential", "uneven", "cosine")]
    expected, *others = (exact_bound(model, (2, 1)) for model in models)
    for other in others:
        np.testing.assert_allclose(other, expected, rtol=1e-9)
    plain, warped = (
        exact_bound(make_model(tree, {"schedule": "binomial", "time_warp": warp}), (2, 1))
        for warp in ("linear", "cosine")
    )
    np.testing.assert_allclose(warped, plain, rtol=1e-9)


@pytest.mark.parametrize("fields", SCHEDULES.values(), ids=SCHEDULES)
def test_the_estimator_agrees_with_the_plain_one_within_the_stated_errors(fields):
    """The loss at times drawn uniformly is another estimator of the same bound; 4 joint standard errors."""
    tree = random_tree(30, 6, 2, seed=0)
    model = make_model(tree, fields)
    tokens = torch.randint(0, 30, (8, 12), generator=seeded(0))
    estimate = model.nelbo(tokens, num_samples=60, batch_size=480, generator=seeded(1))
    repeated = tokens.repeat(400, 1)
    batch = corrupt(repeated, tree, model.schedule, generator=seeded(2))
    with torch.no_grad():
        parts = zip(*(part.split(800) for part in (batch.input_ids, batch.labels, batch.timesteps)), strict=True)
        nats = [model(ids, labels=labels, timesteps=times).nelbo for ids, labels, times in parts]
    plain = torch.cat(nats).double() / 12
    error = math.hypot(estimate.standard_error, float(plain.std()) / len(plain) ** 0.5)
    assert abs(estimate.value - float(plain.mean())) < 4 * error + 2e-3 * estimate.value  # the second: times below 1e-3


@untraced
@pytest.mark.parametrize("samples", [1, 12])
def test_stated_errors_are_not_too_small(samples):
    """Uneven lengths, any number of samples: the spread of 200 estimates is at most 1.2 times what they state."""
    tree = random_tree(30, 6, 2, seed=0)
    model = make_model(tree, {})
    tokens, mask = torch.randint(0, 30, (6, 12), generator=seeded(0)), torch.ones(6, 12, dtype=torch.long)
    mask[1:4, 5:] = 0
    estimates = [
        model.nelbo(tokens, mask, num_samples=samples, batch_size=200, generator=seeded(seed)) for seed in range(200)
    ]
    spread = float(torch.tensor([estimate.value for estimate in estimates]).std())
    stated = float(torch.tensor([estimate.standard_error for estimate in estimates]).square().mean().sqrt())
    assert spread < 1.2 * stated  # 200 estimates know their spread to 5 %


@pytest.mark.parametrize("samples", [1, 2, 5])
def test_parts_add_up_to_the_value(samples):
    tree = random_tree(30, 4, 3, seed=0)
    model = make_model(tree, {})
    tokens, mask = torch.randint(0, 30, (7, 9), generator=seeded(0)), torch.ones(7, 9, dtype=torch.long)
    prefix = torch.zeros_like(mask)
    mask[:3, 6:], prefix[2:, :2] = 0, 1
    estimate = model.nelbo(tokens, mask, prefix, num_samples=samples, generator=seeded(0))
    assert estimate.num_tokens == int((mask * (1 - prefix)).sum())
    assert math.isclose(estimate.value, sum(estimate.level_losses))
    assert math.isclose(estimate.value, float(estimate.token_losses.sum()) / estimate.num_tokens)
    assert not estimate.token_losses[(mask == 0) | (prefix == 1)].any()
    assert math.isclose(estimate.perplexity, math.exp(estimate.value))


@pytest.mark.parametrize("head", ["child", "node", "leaf"])
@pytest.mark.parametrize("samples", [1, 3, 7])
def test_what_the_passes_look_at_adds_up_to_the_estimate(head, samples):
    """Cross-entropies computed from the steps alone, by the dense logits."""
    tree = random_tree(30, 4, 3, seed=0)
    model = make_model(tree, {"schedule": "binomial"}, head=head)
    tokens, mask = torch.randint(0, 30, (7, 9), generator=seeded(0)), torch.ones(7, 9, dtype=torch.long)
    mask[:3, 6:] = 0
    nats, steps = torch.zeros(7, 9, 3, dtype=torch.float64), []
    estimate = model.nelbo(tokens, mask, num_samples=samples, batch_size=4, generator=seeded(0), callback=steps.append)
    for step in steps:
        logits = model.head(step.hidden[None], step.node_ids[None], tree)[0].detach()
        depth = tree.depth[step.node_ids]
        assert torch.equal(tokens[step.sequence, step.position], step.token_ids)
        assert torch.equal(tree.ancestors[step.token_ids, depth], step.node_ids)
        slot = tree.child_slot[tree.ancestors[step.token_ids, depth + 1]]
        losses = -logits.log_softmax(-1).gather(1, slot[:, None])[:, 0]
        nats.index_put_((step.sequence, step.position, depth), step.weight * losses, accumulate=True)
    torch.testing.assert_close(nats.sum(dim=2), estimate.token_losses)
    torch.testing.assert_close((nats.sum(dim=(0, 1)) / estimate.num_tokens).tolist(), list(estimate.level_losses))
    assert len(steps) == -(-7 * samples // 4)


def test_given_tokens_are_seen_and_not_counted():
    """With all tokens but one given, each level of it has one context: the tokens beside it and its own ancestor."""
    tree = TREES["two levels"]
    model, known = make_model(tree, {}), None
    known = child_log_probs(model)
    for token in range(5):
        expected = 0.0
        for depth in range(2):
            nodes = (3, int(tree.ancestors[token, depth]))
            expected -= float(known[nodes][1, tree.child_slot[tree.ancestors[token, depth + 1]]])
        estimate = model.nelbo(torch.tensor([[3, token]]), None, torch.tensor([[1, 0]]), num_samples=2)
        assert math.isclose(estimate.value, expected, rel_tol=1e-9)


def test_discrete_time_is_measured_by_its_own_bound():
    """Flat tree, T = 5: the sum over steps of their weights times the cross-entropies, enumerated."""
    tree, steps, tokens = TREES["flat"], 5, (1, 3)
    model = make_model(tree, {"num_timesteps": steps})
    known, exact = child_log_probs(model), 0.0
    for step in range(1, steps + 1):
        masked = step / steps
        weight = (1 / steps) / masked
        for pattern in itertools.product((False, True), repeat=LENGTH):
            chance = math.prod(masked if hidden else 1 - masked for hidden in pattern)
            nodes = tuple(tree.root_id if hidden else token for hidden, token in zip(pattern, tokens, strict=True))
            exact -= chance * weight * sum(float(known[nodes][i, tokens[i]]) for i in range(LENGTH) if pattern[i])
    estimate = model.nelbo(torch.tensor([tokens]), num_samples=4000, batch_size=4000, generator=seeded(0))
    assert abs(estimate.value * LENGTH - exact) < 4 * estimate.standard_error * LENGTH


def test_sequences_measured_together_and_padded_on_either_side_agree_with_each_alone():
    """Over many corruptions: 4 joint standard errors."""
    tree = random_tree(30, 6, 2, seed=0)
    model = make_model(tree, {})
    tokens = torch.randint(0, 30, (3, 7), generator=seeded(0))
    mask = torch.ones_like(tokens)
    mask[0, 4:], mask[1, :3] = 0, 0
    together = model.nelbo(tokens, mask, num_samples=400, batch_size=600, generator=seeded(1)).token_losses
    for row, real in enumerate(mask.bool()):
        alone = model.nelbo(tokens[row][real][None], num_samples=400, batch_size=600, generator=seeded(2))
        error = alone.standard_error * int(real.sum()) * 2**0.5
        assert abs(float(together[row].sum() - alone.token_losses.sum())) < 4 * error


@pytest.fixture(scope="module")
def uneven():
    """A model, six sequences of 1 to 11 tokens with their mask, and an estimate by many corruptions."""
    model = make_model(random_tree(30, 4, 3, seed=0), {})
    tokens, mask = torch.randint(0, 30, (6, 11), generator=seeded(0)), torch.zeros(6, 11, dtype=torch.long)
    for row, length in enumerate((1, 2, 3, 5, 8, 11)):
        mask[row, :length] = 1
    return model, tokens, mask, model.nelbo(tokens, mask, num_samples=3000, batch_size=3000, generator=seeded(0))


@untraced
@pytest.mark.parametrize("samples", [1, 3, 7])
def test_few_corruptions_of_uneven_sequences_are_unbiased_and_know_it(samples, uneven):
    """B = 6, lengths 1 to 11, D = 3: mean of 400 estimates, of the value and of each sequence, within 4.5 errors."""
    model, tokens, mask, truth = uneven
    many = [
        model.nelbo(tokens, mask, num_samples=samples, batch_size=60, generator=seeded(seed)) for seed in range(400)
    ]
    values = torch.tensor([estimate.value for estimate in many], dtype=torch.float64)
    assert abs(float(values.mean()) - truth.value) < 4.5 * float(values.std()) / 20 + 4.5 * truth.standard_error
    rows = torch.stack([estimate.token_losses.sum(dim=1) for estimate in many])
    tolerance = 4.5 * rows.std(dim=0) / 20 + 0.05 * truth.token_losses.sum(dim=1)
    assert ((rows.mean(dim=0) - truth.token_losses.sum(dim=1)).abs() < tolerance).all()
    stated = float(torch.tensor([estimate.standard_error for estimate in many]).square().mean().sqrt())
    assert float(values.std()) < 1.15 * stated  # 400 estimates know their spread to 4 %


def test_what_cannot_be_measured_is_refused():
    model = make_model(TREES["two levels"], {})
    tokens = torch.tensor([[1, 2], [3, 4]])
    for arguments, message in (
        ({"num_samples": 0}, "at least 1, got 0 and 32"),
        ({"batch_size": 0}, "at least 1, got 1 and 0"),
        ({"attention_mask": torch.tensor([[1, 1], [0, 0]])}, "nothing to measure in sequence 1"),
        ({"fixed_mask": torch.ones(2, 3)}, r"fixed_mask \(2, 3\) and token_ids \(2, 2\) differ in shape"),
        ({"num_samples": 2.0}, "whole numbers, at least 1, got 2.0 and 32"),
        ({"num_samples": True}, "whole numbers, at least 1, got True and 32"),
        ({"batch_size": "8"}, "whole numbers, at least 1, got 1 and '8'"),
    ):
        with pytest.raises(ValueError, match=message):
            model.nelbo(tokens, **arguments)
    with pytest.raises(ValueError, match="1 corruptions cannot visit the tree's 2 levels"):
        model.nelbo(tokens[:1])
    with pytest.raises(ValueError, match=r"0\.\.4"):
        model.nelbo(tokens + 1)


def seeded(seed):
    return torch.Generator().manual_seed(seed)
