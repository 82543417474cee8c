"""The forward process and its bound, against enumeration, quadrature and MDLM's formula."""

import functools
import itertools
import math

import numpy as np
import pytest
import torch
from helpers.quadrature import quadrature
from helpers.schedules import DEPTHS, SCHEDULES
from helpers.untraced import untraced
from torch.nn import functional as F

from modeling_treediff import VocabularyTree, corrupt
from modeling_treediff.building.balanced import random_tree
from modeling_treediff.diffusion_process import child_slots, corrupt_level, nelbo_terms
from modeling_treediff.noise_schedules import (
    BinomialSchedule,
    CosineWarp,
    DiscreteSchedule,
    PoissonSchedule,
    SequentialSchedule,
)


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("kind", [SequentialSchedule, BinomialSchedule, PoissonSchedule])
def test_corruption_gives_ancestors_with_the_schedules_frequencies(depth, kind):
    tree = random_tree(30, 30 if depth == 1 else 6, depth, seed=0)
    schedule = kind(depth)
    tokens = torch.arange(30).repeat(8, 500)
    times = torch.linspace(0.05, 0.95, 8, dtype=torch.float64)
    batch = corrupt(tokens, tree, schedule, times, torch.Generator().manual_seed(0))
    reached = tree.depth[batch.input_ids]
    assert torch.equal(batch.input_ids, tree.ancestors[tokens, reached])
    assert torch.equal(batch.labels, tokens)
    alpha = schedule.alpha(times)
    for level in range(1, depth + 1):
        share = (reached >= level).double().mean(dim=1)
        # 15,000 positions per time: 5 standard deviations of a proportion.
        bound = 5 * (alpha[:, level] * (1 - alpha[:, level]) / tokens.shape[1]).sqrt() + 1e-12
        assert ((share - alpha[:, level]).abs() <= bound).all()


@pytest.mark.parametrize("depth", DEPTHS)
def test_time_zero_keeps_tokens_and_time_one_gives_the_root(depth):
    tree = random_tree(16, 16 if depth == 1 else 4, depth)
    tokens = torch.arange(16).repeat(2, 10)
    for dtype in (torch.float32, torch.float64):
        batch = corrupt(tokens, tree, SequentialSchedule(depth), torch.tensor([0.0, 1.0], dtype=dtype))
        assert torch.equal(batch.input_ids[0], tokens[0])
        assert (batch.input_ids[1] == tree.root_id).all()


def test_padding_and_fixed_positions_stay_clean_and_uncounted(tree):
    tokens = torch.randint(0, 100, (4, 12), generator=torch.Generator().manual_seed(0))
    attention, fixed = torch.ones_like(tokens), torch.zeros_like(tokens)
    attention[:, 9:], fixed[:, :4] = 0, 1
    batch = corrupt(tokens, tree, SequentialSchedule(3), torch.ones(4), None, attention, fixed)
    still = (attention == 0) | (fixed == 1)
    assert torch.equal(batch.input_ids[still], tokens[still]) and (batch.labels[still] == -100).all()
    assert (batch.input_ids[~still] == tree.root_id).all() and torch.equal(batch.labels[~still], tokens[~still])


@pytest.mark.parametrize("bad", [-1, 100])
def test_tokens_outside_the_vocabulary_are_refused(tree, bad):
    with pytest.raises(ValueError, match=r"0\.\.99"):
        corrupt(torch.tensor([[0, bad]]), tree, SequentialSchedule(3))


def test_times_outside_the_unit_interval_are_refused(tree):
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        corrupt(torch.tensor([[0]]), tree, SequentialSchedule(3), torch.tensor([1.5]))


@pytest.mark.parametrize("cosine", [False, True])
def test_depth_one_is_mdlms_weighted_masked_cross_entropy(cosine):
    """MDLM (arXiv 2406.07524, eq. 11): -alpha'/(1 - alpha) sum over masked positions of -log p(x_i), by a loop."""
    vocab_size, generator = 11, torch.Generator().manual_seed(0)
    tree = VocabularyTree.flat(vocab_size)
    schedule = CosineWarp(SequentialSchedule(1)) if cosine else SequentialSchedule(1)
    tokens = torch.randint(0, vocab_size, (6, 9), generator=generator)
    times = torch.rand(6, dtype=torch.float64, generator=generator)
    batch = corrupt(tokens, tree, schedule, times, generator)
    logits = torch.randn(6, 9, vocab_size, dtype=torch.float64, generator=generator)
    ours = terms_of(logits, batch.input_ids, batch.labels, times, tree, schedule).sum(dim=(1, 2))
    for row in range(6):
        time = float(times[row])
        alpha, slope = (
            (math.cos(time * math.pi / 2), math.sin(time * math.pi / 2) * math.pi / 2) if cosine else (1 - time, 1)
        )
        reference = 0.0
        for position in range(9):
            if batch.input_ids[row, position] == vocab_size:
                scores = logits[row, position].tolist()
                log_normaliser = math.log(sum(math.exp(score) for score in scores))
                reference += (log_normaliser - scores[tokens[row, position]]) * slope / (1 - alpha)
        assert math.isclose(float(ours[row]), reference, rel_tol=1e-12)


def terms_of(logits, input_ids, labels, timesteps, tree, schedule):
    """The bound's terms (B, T, D) from child logits (B, T, K)."""
    slots = child_slots(input_ids, labels, tree)
    nats = F.cross_entropy(logits.flatten(0, 1), slots.flatten(), reduction="none").view_as(slots)
    return nelbo_terms(nats, input_ids, timesteps, tree, schedule)


def bayes_logits(nodes, joint, tree):
    """(T,) nodes -> (T, K) log p(child | nodes) under the (V,)*T joint distribution, by enumeration."""
    length = len(nodes)
    below = [(tree.ancestors == node).any(dim=1).double().numpy() for node in nodes]
    posterior = joint * functools.reduce(np.multiply.outer, below)
    logits = np.full((length, tree.max_branching), -np.inf)
    for position, node in enumerate(nodes):
        if node < tree.vocab_size:
            logits[position] = 0
            continue
        marginal = posterior.sum(axis=tuple(axis for axis in range(length) if axis != position))
        for slot, child in enumerate(tree.children[node - tree.vocab_size].tolist()):
            if child >= 0:
                inside = (tree.ancestors == child).any(dim=1).numpy()
                with np.errstate(divide="ignore"):
                    logits[position, slot] = np.log(marginal[inside].sum())
    return torch.from_numpy(logits)


@pytest.mark.parametrize(
    "tree",
    [
        VocabularyTree.flat(4),
        random_tree(4, 2, 2, seed=0),
        VocabularyTree.from_paths(np.array([[0, 0], [0, 1], [0, 2], [1, 0]]), 3),
        random_tree(4, 2, 3, seed=1),
        random_tree(5, 2, 4, seed=2),
    ],
    ids=["flat", "balanced", "lopsided", "chains", "deep"],
)
@pytest.mark.parametrize("kind", SCHEDULES)
def test_bound_of_the_bayes_optimal_model_is_the_entropy(tree, kind):
    """DESIGN fact: with p_theta = the true child posterior, the NELBO is the data entropy, whatever the schedule."""
    length, schedule = 2, SCHEDULES[kind](tree.tree_depth)
    joint = (
        np.random.default_rng(7).dirichlet(np.full(tree.vocab_size**length, 0.5)).reshape((tree.vocab_size,) * length)
    )
    entropy = -(joint * np.log(joint)).sum()
    # Cross-entropies of all tokens at all depths, once; the time only weighs them.
    patterns, known = [], {}
    for depths in itertools.product(range(tree.tree_depth + 1), repeat=length):
        nats = np.zeros(length)
        for tokens in itertools.product(range(tree.vocab_size), repeat=length):
            nodes = tuple(int(tree.ancestors[token, depth]) for token, depth in zip(tokens, depths, strict=True))
            if nodes not in known:
                known[nodes] = bayes_logits(nodes, joint, tree)
            slots = child_slots(torch.tensor([nodes]), torch.tensor([tokens]), tree)[0]
            nats += joint[tokens] * F.cross_entropy(known[nodes], slots, reduction="none").numpy()
        patterns.append((depths, nats))
    bound = 0.0
    for time, measure in quadrature(schedule):
        alpha, weight = (
            f(torch.tensor([time], dtype=torch.float64))[0].numpy() for f in (schedule.alpha, schedule.weight)
        )
        occupancy = np.append(alpha[:-1] - alpha[1:], alpha[-1])
        for depths, nats in patterns:
            charge = sum(weight[depth] * n for depth, n in zip(depths, nats, strict=True) if depth < tree.tree_depth)
            bound += measure * np.prod(occupancy[list(depths)]) * charge
    assert math.isclose(bound, entropy, rel_tol=1e-6)


@untraced
@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_level_corruption_reweighs_the_forward_process_as_stated(kind, depth):
    """Patterns of two positions at a level: q of the pattern x m / (N pi), integrated over times from the flux."""
    schedule, draws = SCHEDULES[kind](depth), 40_000
    tree = random_tree(9, 9 if depth == 1 else 3, depth, seed=0)
    tokens = torch.tensor([[2, 7, 5]]).repeat(draws, 1)
    counted = torch.tensor([[True, True, False]]).repeat(draws, 1)
    generator = torch.Generator().manual_seed(1)
    moments = []
    for time, measure in quadrature(schedule):
        now = torch.tensor([time], dtype=torch.float64)
        alpha, weight = schedule.alpha(now)[0], schedule.weight(now)[0]
        moments.append((measure * weight.numpy(), torch.cat([alpha[:-1] - alpha[1:], alpha[-1:]]).numpy()))
    for level in range(1, depth + 1):
        chosen = torch.full((draws,), level)
        times = schedule.loss_times(chosen, torch.rand(draws, generator=generator, dtype=torch.float64))
        nodes, refined = corrupt_level(tokens, counted, chosen, times, tree, schedule, generator)
        reached = tree.depth[nodes]
        assert (nodes[:, 2] == 5).all() and not refined[:, 2].any() and refined.any(dim=1).all()
        assert torch.equal(refined, (reached == level - 1) & counted)
        for pattern in itertools.product(range(depth + 1), repeat=2):
            above = pattern.count(level - 1)
            terms = [weight[level - 1] * occupancy[list(pattern)].prod() for weight, occupancy in moments]
            expected = float(sum(terms)) * above / 2
            share = float((reached[:, :2] == torch.tensor(pattern)).all(dim=1).double().mean())
            # 5 standard deviations of a proportion of 40,000 draws.
            assert abs(share - expected) <= 5 * (expected * (1 - expected) / draws) ** 0.5 + 1e-6


def test_d3pms_bound_falls_to_the_continuous_one_like_one_over_the_steps():
    """Bayes-optimal, flat tree: L_T - L = (g(1) - g(0)) / (2 T) + O(1/T^2), g(t) the cross-entropies at mask rate t."""
    joint = np.random.default_rng(3).dirichlet(np.full(16, 0.4)).reshape(4, 4)

    def entropy(p):
        return -(p[p > 0] * np.log(p[p > 0])).sum()

    both = entropy(joint)
    alone, given = (
        entropy(joint.sum(1)) + entropy(joint.sum(0)),
        2 * both - entropy(joint.sum(1)) - entropy(joint.sum(0)),
    )
    bounds = {}
    for steps in (1, 10, 100, 1000):
        schedule = DiscreteSchedule(SequentialSchedule(1), steps)
        grid = torch.arange(1, steps + 1, dtype=torch.float64) / steps
        weight = schedule.weight(grid)[:, 0].numpy() / steps
        masked = 1 - schedule.alpha(grid)[:, 1].numpy()
        # A position is masked with this probability, and so is the other one beside it.
        bounds[steps] = (weight * masked * (masked * alone + (1 - masked) * given)).sum()
    assert math.isclose(bounds[1], alone)
    for steps in (10, 100, 1000):
        assert math.isclose(bounds[steps] - both, (alone - given) / 2 / steps, rel_tol=1e-6)
    assert bounds[1] > bounds[10] > bounds[100] > bounds[1000] > both
