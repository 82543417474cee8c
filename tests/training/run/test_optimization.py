"""Learning rates at the places that define their schedules; what is decayed."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.tiny_run import tiny_network, tiny_tree

from modeling_treediff.training import TrainingConfig
from modeling_treediff.training.run.optimization import (
    make_learning_rate,
    make_optimizer,
    parameter_groups,
    peak_learning_rate,
)


def rates(**settings):
    config = TrainingConfig(Path("x"), **({"max_steps": 100, "learning_rate": 2.0, "warmup_steps": 10} | settings))
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], config.learning_rate)
    schedule, seen = make_learning_rate(optimizer, config), []
    for _ in range(config.max_steps + 1):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return np.array(seen)


@pytest.mark.parametrize("name", ["cosine", "constant", "wsd"])
def test_all_schedules_warm_up_linearly_to_the_peak(name):
    np.testing.assert_allclose(rates(learning_rate_schedule=name)[:11], np.linspace(0, 2, 11), atol=1e-12)


def test_cosine_ends_at_zero_by_way_of_the_half():
    seen = rates()
    assert seen[55] == pytest.approx(1) and seen[100] == pytest.approx(0) and (np.diff(seen[10:]) < 0).all()


def test_constant_stays():
    assert (rates(learning_rate_schedule="constant")[10:] == 2).all()


def test_wsd_is_constant_until_its_decay_which_ends_at_zero():
    """1 - sqrt: a quarter into the decay half of the rate is gone. A tenth of the steps by default."""
    seen = rates(learning_rate_schedule="wsd", decay_steps=40)
    assert (seen[10:61] == 2).all() and seen[70] == pytest.approx(1) and seen[100] == pytest.approx(0)
    seen = rates(learning_rate_schedule="wsd")
    assert (seen[10:91] == 2).all() and seen[91] < 2 and seen[100] == pytest.approx(0)


def test_matrices_decay_and_vectors_do_not():
    model = tiny_network(tiny_tree())
    decayed, free = (group["params"] for group in parameter_groups(model, 0.1))
    assert free and len(decayed) + len(free) == len(list(model.parameters()))
    assert all(value.ndim > 1 for value in decayed)
    assert all(value.ndim == 1 for value in free)
    model.model.embed_nodes.weight.requires_grad_(False)
    assert all(value is not model.model.embed_nodes.weight for value in parameter_groups(model, 0.1)[0]["params"])


def test_the_fused_kernel_takes_the_same_steps():
    gradients = torch.randn(5, 20, generator=torch.Generator().manual_seed(0))
    states = []
    for fused in (True, False):
        model = torch.nn.Linear(20, 1, bias=False)
        model.weight.data.fill_(1.0)
        optimizer = make_optimizer(model, 0.1, 0.0, torch.device("cpu"))
        assert optimizer.defaults["fused"] is True
        if not fused:
            for group in optimizer.param_groups:
                group["fused"] = False
        for gradient in gradients:
            model.weight.grad = gradient[None].clone()
            optimizer.step()
        states.append(model.weight.detach())
    torch.testing.assert_close(*states)


@pytest.mark.parametrize(("width", "published"), [(768, 6e-4), (1536, 2.5e-4), (4096, 1.2e-4), (12288, 0.6e-4)])
def test_learning_rates_by_width_are_near_those_of_gpt3(width, published):
    """arXiv 2005.14165, table 2.1: small, large, 6.7B and 175B."""
    config = TrainingConfig(Path("x"))
    assert published / 1.5 < peak_learning_rate(config, width) < published * 1.5
    assert peak_learning_rate(config, width, is_new=False) == pytest.approx(peak_learning_rate(config, width) / 10)
    assert peak_learning_rate(TrainingConfig(Path("x"), learning_rate=0.25), width) == 0.25
    assert peak_learning_rate(config, 32) == peak_learning_rate(config, 168) == 3e-3
