"""The bound of short answers: that of `nelbo`, without bias and with less noise."""

import math

import pytest
import torch
from helpers.eight_words import BINARY, FLAT, uniform_model
from helpers.models import SEQUENTIAL, TREES, tiny_model

from modeling_treediff import VocabularyTree
from modeling_treediff.evaluation.answer_bound import answer_bound

TEXT, GIVEN = torch.tensor([[3, 7, 1, 12, 9, 5, 2]]), torch.tensor([[1, 1, 0, 0, 1, 0, 1]])
PROCESSES = {
    "binomial": (TREES[2], {"schedule": "binomial"}),
    "poisson": (TREES[1], {"schedule": "poisson", "head": "leaf", "uniform_share": 0.1}),
    "cosine": (TREES[1], {"schedule": "binomial", "time_warp": "cosine"}),
    "sequential": (TREES[2], SEQUENTIAL | {"level_durations": [3.0, 1.0, 2.0]}),
    "discrete": (VocabularyTree.flat(20), {"num_timesteps": 4}),
}


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("process", PROCESSES)
def test_it_is_the_bound_of_nelbo(process):
    """Means of many corruptions: within 4 of their standard errors together, which err high."""
    tree, fields = PROCESSES[process]
    model = tiny_model(tree, **fields)
    expected = model.nelbo(TEXT, fixed_mask=GIVEN, num_samples=4800, batch_size=1600, generator=seeded(0))
    found = answer_bound(model, TEXT, GIVEN, 4800, 1600, seeded(1))
    error = math.hypot(expected.standard_error * expected.num_tokens, found.standard_error)
    assert abs(found.nats - expected.value * expected.num_tokens) < 4 * error < 0.05 * found.nats


@pytest.mark.parametrize("process", ["binomial", "poisson", "cosine"])
def test_it_has_less_noise_in_as_many_passes_and_says_how_much(process):
    """Standard deviations over 60 seeds, themselves known to a tenth."""
    tree, fields = PROCESSES[process]
    model = tiny_model(tree, **fields)
    passes = 8 * tree.tree_depth
    bounds = [model.nelbo(TEXT, None, GIVEN, passes, passes, seeded(seed)) for seed in range(60)]
    found = [answer_bound(model, TEXT, GIVEN, passes, passes, seeded(seed)) for seed in range(60)]
    noise = float(torch.tensor([one.nats for one in found]).std())
    assert noise < 0.9 * float(torch.tensor([one.value * one.num_tokens for one in bounds]).std())
    assert 0.8 * noise < sum(one.standard_error for one in found) / 60 < 3 * noise


def test_the_batch_size_does_not_matter():
    """Noise comes by batches, so only where there is none: of a single token each level has one context."""
    model, given = tiny_model(TREES[2], schedule="binomial").double(), torch.tensor([[1, 1, 1, 0, 1, 1, 1]])
    expected = model.nelbo(TEXT, fixed_mask=given, num_samples=3).value
    for passes, batch_size in ((3, 1), (6, 4), (7, 7)):
        assert answer_bound(model, TEXT, given, passes, batch_size).nats == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("tree", [BINARY, FLAT])
def test_the_uniform_model_is_measured_exactly(tree):
    text, given = torch.tensor([[1, 2, 3, 4]]), torch.tensor([[1, 0, 0, 0]])
    found = answer_bound(uniform_model(tree), text, given, 6, 4, seeded(0))
    assert found.nats == pytest.approx(3 * math.log(8), rel=1e-5) and found.standard_error < 1e-4


def test_errors_say_what_is_wrong():
    model = tiny_model(TREES[2])
    with pytest.raises(ValueError, match="2 corruptions cannot visit the tree's 3 levels"):
        answer_bound(model, TEXT, GIVEN, 2, 2)
    with pytest.raises(ValueError, match=r"fixed_mask \(1, 6\) and token_ids \(1, 7\) differ in shape"):
        answer_bound(model, TEXT, GIVEN[:, 1:], 3, 3)
    assert answer_bound(model, TEXT, GIVEN, 3, 3).standard_error == math.inf
