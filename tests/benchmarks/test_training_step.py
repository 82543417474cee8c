"""A step of training: its operations as by hand, and that it trains."""

import pytest
import torch

from benchmarks import matched_models, training_step
from modeling_treediff.building.budget import count_parameters

BATCH, WINDOW = 2, 16


@pytest.mark.parametrize(("contender", "repeated"), [("mdlm", 0), ("mdlm-chunked", 1), ("tdlm-child", 0)])
def test_operations_are_counted_as_by_hand(contender, repeated):
    """Two per weight and position forward, four backward; attention two products forward, five backward."""
    size = matched_models.Size(500, 64, layers=2, heads=2, sequence_length=WINDOW)
    model = matched_models.matched_models((contender,), size)[-1].make()
    step = training_step.training_step(model, training_step.random_batch(model, BATCH, WINDOW), "fp32")
    parts = count_parameters(model.config)
    head = sum(layer.weight.numel() for layer in model.head.levels)
    layers = parts["layers"] - 2 * 2 * model.config.hidden_size  # norms multiply no matrices
    attention = 7 * 2 * BATCH * WINDOW**2 * model.config.hidden_size * model.config.num_hidden_layers
    expected = BATCH * WINDOW * (6 * layers + (6 + 2 * repeated) * head) + attention
    assert training_step.count_flops(step) == expected


def test_a_step_trains_on_always_the_same_batch():
    torch.manual_seed(0)
    size = matched_models.Size(500, 64, layers=2, heads=2, sequence_length=WINDOW)
    (model,) = matched_models.matched_models(("mdlm",), size)
    model = model.make()
    batch = training_step.random_batch(model, BATCH, WINDOW)
    step, before = training_step.training_step(model, batch, "fp32"), model(**batch).loss.item()
    for _ in range(20):
        step()
    assert model(**batch).loss.item() < 0.8 * before
    assert all(parameter.grad is None for parameter in model.parameters())
