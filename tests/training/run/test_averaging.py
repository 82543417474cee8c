"""The average of weights is an exponential moving average, and steps aside without a trace."""

import pytest
import torch

from modeling_treediff.training.run.averaging import WeightAverage


def parameters(values):
    return [torch.nn.Parameter(torch.tensor([value])) for value in values]


def test_it_is_the_weighted_sum_of_all_that_was_seen():
    parameter = parameters([5.0])
    average, weights = WeightAverage(parameter, 0.5), []
    for step, value in enumerate([1.0, 2.0, 3.0, 4.0], start=1):
        parameter[0].data.fill_(value)
        average.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        weights = [weight * decay for weight in (weights or [1.0])] + [1 - decay]
    expected = sum(weight * value for weight, value in zip(weights, [5.0, 1.0, 2.0, 3.0, 4.0], strict=True))
    assert sum(weights) == pytest.approx(1) and average.averages[0].item() == pytest.approx(expected)


def test_a_constant_is_its_own_average_and_decay_zero_is_the_last_value():
    constant = parameters([2.0])
    average = WeightAverage(constant, 0.999)
    for step in range(1, 50):
        average.update(step)
    assert average.averages[0].item() == pytest.approx(2.0, rel=1e-6)
    changing = parameters([0.0])
    last = WeightAverage(changing, 0.0)
    changing[0].data.fill_(7.0)
    last.update(1)
    assert last.averages[0].item() == 7.0


def test_it_is_in_place_inside_the_block_and_gone_after_it_whatever_happens():
    parameter = parameters([1 / 3])
    before = parameter[0].detach().clone()
    average = WeightAverage(parameter, 0.9)
    parameter[0].data.fill_(0.1)
    average.update(1)
    kept, ours = average.averages[0].clone(), parameter[0].detach().clone()
    with pytest.raises(RuntimeError), average.applied():
        assert torch.equal(parameter[0].detach(), kept) and not torch.equal(parameter[0].detach(), before)
        raise RuntimeError
    assert torch.equal(parameter[0].detach(), ours) and torch.equal(average.averages[0], kept)
    assert parameter[0].requires_grad
