"""The samplers against the distribution that the Bayes-optimal model stands for.

Chi-square statistics are held below the 99.9 % point of their distribution (scipy.stats.chi2); seeds are fixed.
"""

import pytest
import torch
from helpers.bayes_optimal import TREES, bayes_optimal, chi_square, random_joint
from helpers.models import SEQUENTIAL, generate, tiny_model, tokens_by_enumeration
from scipy.stats import chi2

from modeling_treediff.building.balanced import random_tree

PROCESSES = {
    "sequential": SEQUENTIAL,
    "windows": SEQUENTIAL | {"level_durations": "uneven"},
    "binomial": {"schedule": "binomial"},
    "poisson": {"schedule": "poisson"},
    "cosine": SEQUENTIAL | {"time_warp": "cosine"},
}
DRAWS = 4_000


def draw(model, length: int, draws: int = DRAWS, seed: int = 0, **settings) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return generate(model, max_new_tokens=length, num_return_sequences=draws, generator=generator, **settings)


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
@pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
@pytest.mark.parametrize("settings", [{"unmasking": "first_hitting"}, {"num_steps": 150}], ids=["hitting", "steps"])
def test_exact_samplers_reproduce_the_data(tree, process, settings):
    """Two dependent positions, 25 texts. Of 150 steps, both positions take the same one in less than 1 % of draws."""
    if "level_durations" in process:
        process = process | {"level_durations": [1.0 + level for level in range(tree.tree_depth)]}
    joint = random_joint(5, 5)
    texts = draw(bayes_optimal(tree, joint, **process), 2, **settings)
    assert chi_square(texts, joint) < chi2.ppf(0.999, joint.numel() - 1)


def test_the_test_tells_a_wrong_sampler():
    """All positions of a level in one pass lose the dependences; that exceeds the bound many times over."""
    joint = random_joint(5, 5)
    texts = draw(bayes_optimal(TREES["uneven"], joint), 2, num_steps=2)
    assert chi_square(texts, joint) > 10 * chi2.ppf(0.999, joint.numel() - 1)


@pytest.mark.parametrize("process", [SEQUENTIAL, {"schedule": "binomial"}], ids=["sequential", "binomial"])
def test_the_error_falls_as_steps_grow(process):
    """Total variation over 25 texts, 8,000 draws each: the noise of one is about 0.02."""
    joint = random_joint(5, 5)
    model = bayes_optimal(TREES["uneven"], joint, **process)
    distances = []
    for steps in (2, 6, 18, 90):
        texts = draw(model, 2, draws=8_000, num_steps=steps)
        share = torch.bincount(texts[:, 0] * 5 + texts[:, 1], minlength=25).double() / len(texts)
        distances.append(float((share - joint.flatten()).abs().sum() / 2))
    assert distances[0] > 1.5 * distances[1] > 2 * distances[2] and distances[3] < 0.04


@pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
@pytest.mark.parametrize("unmasking", ["random", "first_hitting", "confidence"])
def test_allowed_tokens_are_drawn_from_the_conditional_distribution(tree, unmasking):
    """Independent positions, so that the conditional is known: p(x) over the allowed ones, not cluster by cluster."""
    marginal = torch.tensor([0.02, 0.5, 0.08, 0.3, 0.1], dtype=torch.float64)
    model = bayes_optimal(tree, marginal[:, None] * marginal)
    for allowed in ([0, 3, 4], [0, 2], [1]):
        texts = draw(model, 2, unmasking=unmasking, num_steps=6, allowed_tokens=allowed)
        conditional = torch.zeros(5, dtype=torch.float64)
        conditional[allowed] = marginal[allowed] / marginal[allowed].sum()
        assert chi_square(texts, conditional[:, None] * conditional) < chi2.ppf(0.999, max(1, len(allowed) ** 2 - 1))
        rest = [token for token in range(5) if token not in allowed]
        same = draw(model, 2, unmasking=unmasking, num_steps=6, suppress_tokens=rest)
        assert torch.equal(texts, same)


def test_dependent_positions_follow_the_chain_of_conditionals():
    """Each position, when its turn comes, has its conditional distribution given what is there: in either order."""
    joint, allowed = random_joint(5, 5, seed=2), [0, 2, 3]
    restricted = torch.zeros_like(joint)
    restricted[allowed] = joint[allowed]
    first = restricted.sum(1) / restricted.sum()
    both = torch.zeros_like(joint)
    both[:, allowed] = restricted[:, allowed]
    chain = first[:, None] * (both / both.sum(1, keepdim=True)).nan_to_num()
    restricted = torch.zeros_like(joint)
    restricted[:, allowed] = joint[:, allowed]
    first = restricted.sum(0) / restricted.sum()
    other = first * (both / both.sum(0, keepdim=True)).nan_to_num()
    texts = draw(bayes_optimal(TREES["flat"], joint), 2, unmasking="first_hitting", allowed_tokens=allowed)
    assert chi_square(texts, (chain + other) / 2) < chi2.ppf(0.999, 8)


@pytest.mark.parametrize("head", ["child", "node", "leaf"])
def test_a_network_alone_at_a_position_is_conditioned_exactly(head):
    """The product of child probabilities along each path, over the allowed tokens; 27 tokens at depth 3."""
    tree = random_tree(27, 4, 3, seed=2)
    model = tiny_model(tree, head=head).double()
    log_p = tokens_by_enumeration(model, torch.tensor([tree.root_id]), 0)
    allowed = torch.arange(0, 27, 4)
    conditional = torch.zeros(27, dtype=torch.float64)
    conditional[allowed] = log_p[allowed].exp() / log_p[allowed].exp().sum()
    texts = draw(model, 1, num_steps=3, allowed_tokens=allowed.tolist())
    assert chi_square(texts, conditional) < chi2.ppf(0.999, len(allowed) - 1)


def test_weights_of_a_logits_processor_tilt_the_distribution_exactly():
    marginal = torch.tensor([0.02, 0.5, 0.08, 0.3, 0.1], dtype=torch.float64)
    bias = torch.tensor([2.0, -1.0, 0.5, 0.0, -torch.inf], dtype=torch.float64)
    texts = draw(
        bayes_optimal(TREES["uneven"], marginal), 1, num_steps=2, logits_processor=lambda ids, scores: scores + bias
    )
    tilted = marginal * bias.exp()
    assert chi_square(texts, tilted / tilted.sum()) < chi2.ppf(0.999, 3)
