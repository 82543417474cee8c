"""The forward process and its bound, against enumeration, quadrature and MDLM's formula."""

import functools
import itertools
import math

import numpy as np
import pytest
import torch

from modeling_treediff import VocabularyTree, corrupt
from modeling_treediff.diffusion_process import SequentialSchedule, nelbo_terms

DEPTHS = [1, 2, 3, 4]


@pytest.mark.parametrize("depth", DEPTHS)
def test_endpoints_and_order(depth):
    schedule = SequentialSchedule(depth)
    times = torch.linspace(0, 1, 101, dtype=torch.float64)
    alpha = schedule.alpha(times)
    assert torch.equal(alpha[0], torch.ones(depth + 1).double())
    assert torch.equal(alpha[-1], torch.eye(depth + 1).double()[0])
    assert (alpha.diff(dim=1) <= 0).all() and (alpha.diff(dim=0) <= 0).all()


@pytest.mark.parametrize("depth", DEPTHS)
def test_flux_is_minus_the_derivative_of_alpha(depth):
    schedule = SequentialSchedule(depth)
    times = (torch.rand(50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).requires_grad_()
    for level in range(1, depth + 1):
        (gradient,) = torch.autograd.grad(schedule.alpha(times)[:, level].sum(), times)
        torch.testing.assert_close(schedule.flux(times.detach())[:, level - 1], -gradient, rtol=0, atol=1e-12)


@pytest.mark.parametrize("depth", DEPTHS)
def test_weight_is_flux_over_occupancy_and_totals_one(depth):
    schedule = SequentialSchedule(depth)
    times = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000  # midpoints: the integrand is piecewise constant
    alpha, weight = schedule.alpha(times), schedule.weight(times)
    occupancy = alpha[:, :-1] - alpha[:, 1:]
    torch.testing.assert_close(weight * occupancy, schedule.flux(times), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close((weight * occupancy).mean(dim=0), torch.ones(depth).double(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("depth", DEPTHS)
def test_sampled_times_are_stratified_and_each_uniform(depth):
    schedule = SequentialSchedule(depth)
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([schedule.sample_times(64, generator) for _ in range(2000)])
    assert draws.min() > 0 and draws.max() <= 1
    assert ((draws.sort(dim=1).values - torch.arange(64) / 64).abs() < 1 / 64 + 1e-3).all()
    # Uniform for a fixed place in the batch: mean 1/2 within 5 standard errors of 2000 draws.
    assert (draws.mean(dim=0) - 0.5).abs().max() < 5 * math.sqrt(1 / 12 / 2000) + 1e-3


@pytest.mark.parametrize("depth", DEPTHS)
def test_corruption_gives_ancestors_with_the_schedules_frequencies(depth):
    tree = VocabularyTree.random(30, 30 if depth == 1 else 6, depth, seed=0)
    schedule = SequentialSchedule(depth)
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
    tree = VocabularyTree.random(16, 16 if depth == 1 else 4, depth)
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


def test_depth_one_is_mdlms_weighted_masked_cross_entropy():
    """MDLM (arXiv 2406.07524, eq. 11), log-linear schedule: (1/t) sum over masked positions of -log p(x_i)."""
    vocab_size, generator = 11, torch.Generator().manual_seed(0)
    tree = VocabularyTree.flat(vocab_size)
    schedule = SequentialSchedule(1)
    tokens = torch.randint(0, vocab_size, (6, 9), generator=generator)
    times = torch.rand(6, dtype=torch.float64, generator=generator)
    batch = corrupt(tokens, tree, schedule, times, generator)
    logits = torch.randn(6, 9, vocab_size, dtype=torch.float64, generator=generator)
    ours = nelbo_terms(logits, batch.input_ids, batch.labels, times, tree, schedule).sum(dim=(1, 2))
    for row in range(6):
        reference = 0.0
        for position in range(9):
            if batch.input_ids[row, position] == vocab_size:
                scores = logits[row, position].tolist()
                log_normaliser = math.log(sum(math.exp(score) for score in scores))
                reference += (log_normaliser - scores[tokens[row, position]]) / float(times[row])
        assert math.isclose(float(ours[row]), reference, rel_tol=1e-12)


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
        VocabularyTree.random(4, 2, 2, seed=0),
        VocabularyTree.from_paths(np.array([[0, 0], [0, 1], [0, 2], [1, 0]]), 3),
        VocabularyTree.random(4, 2, 3, seed=1),
        VocabularyTree.random(5, 2, 4, seed=2),
    ],
    ids=["flat", "balanced", "lopsided", "chains", "deep"],
)
def test_bound_of_the_bayes_optimal_model_is_the_entropy(tree):
    """DESIGN fact: with p_theta = the true child posterior, the NELBO equals the data entropy, for every tree."""
    length, schedule = 2, SequentialSchedule(tree.tree_depth)
    joint = (
        np.random.default_rng(7).dirichlet(np.full(tree.vocab_size**length, 0.5)).reshape((tree.vocab_size,) * length)
    )
    entropy = -(joint * np.log(joint)).sum()
    # Gauss-Legendre in each window: the expectation is a polynomial of degree < length in u, so 4 nodes are exact.
    points, weights = np.polynomial.legendre.leggauss(4)
    bound, known = 0.0, {}
    for window in range(tree.tree_depth):
        for point, weight in zip(points, weights, strict=True):
            time = torch.tensor([(window + (point + 1) / 2) / tree.tree_depth], dtype=torch.float64)
            alpha = schedule.alpha(time)[0]
            occupancy = torch.cat([alpha[:-1] - alpha[1:], alpha[-1:]])
            for depths in itertools.product(range(tree.tree_depth + 1), repeat=length):
                chance = float(np.prod([float(occupancy[depth]) for depth in depths]))
                if chance == 0:
                    continue
                for tokens in itertools.product(range(tree.vocab_size), repeat=length):
                    nodes = [int(tree.ancestors[token, depth]) for token, depth in zip(tokens, depths, strict=True)]
                    if tuple(nodes) not in known:
                        known[tuple(nodes)] = bayes_logits(nodes, joint, tree)
                    logits = known[tuple(nodes)]
                    terms = nelbo_terms(
                        logits[None], torch.tensor([nodes]), torch.tensor([tokens]), time, tree, schedule
                    )
                    bound += weight / 2 / tree.tree_depth * chance * joint[tokens] * float(terms.sum())
    assert math.isclose(bound, entropy, rel_tol=1e-9)


@pytest.mark.parametrize(("depth", "steps"), [(1, 1), (1, 7), (2, 2), (2, 7), (3, 10), (4, 4)])
def test_reverse_steps_undo_the_forward_process(depth, steps):
    """From the root at t=1, the steps' probabilities reproduce alpha at every intermediate time and end in tokens."""
    schedule = SequentialSchedule(depth)
    times = schedule.reverse_times(steps)
    assert len(times) == steps + 1 and times[0] == 1 and times[-1] == 0 and (times.diff() < 0).all()
    for boundary in range(depth + 1):  # each window's edge is hit, so that no step crosses it
        assert (times - boundary / depth).abs().min() < 1e-12
    at_depth = torch.eye(depth + 1, dtype=torch.float64)[0]
    for start, end in itertools.pairwise(times):
        moved = at_depth[:-1] * schedule.refine_probability(start, end)
        at_depth = at_depth - torch.cat([moved, moved.new_zeros(1)]) + torch.cat([moved.new_zeros(1), moved])
        alpha = schedule.alpha(end[None])[0]
        torch.testing.assert_close(at_depth.flip(0).cumsum(0).flip(0), alpha, rtol=0, atol=1e-12)


def test_fewer_steps_than_levels_are_refused():
    with pytest.raises(ValueError, match="num_steps=2 .* 3 levels"):
        SequentialSchedule(3).reverse_times(2)
