"""What a step takes in resident memory on a CPU, and what was planned."""

from functools import partial

import pytest

from benchmarks import matched_models
from benchmarks.memory import peaks
from benchmarks.memory.resident import resident_bytes


def test_a_step_takes_in_resident_memory_what_is_planned():
    """Where tensors are large against what the process allocates beside them."""
    model = matched_models.matched_models(("mdlm",), matched_models.Size(4000, 128, 2, 2, sequence_length=128))[0]
    case = peaks.Case(model, 16, precision="fp32")
    plan = peaks.plan_case(case)
    measured = peaks.measure(case, plan, "cpu", 1)
    assert measured["resident_bytes"] == pytest.approx(plan.peak, rel=0.05)


def test_a_step_of_gpt2_takes_its_parameters_four_times_and_more():
    """Weights, gradients and AdamW's two moments; it has the budget of the reference."""
    size = matched_models.Size(4000, 128, 2, 2, sequence_length=128)
    gpt2 = matched_models.make_gpt2(size)
    budget = matched_models.matched_models(("mdlm",), size)[0].facts["parameters"]
    assert matched_models.gpt2_facts(gpt2)["parameters"] == pytest.approx(budget, rel=0.01)
    peak = resident_bytes(partial(matched_models.make_gpt2, size), "fp32", (4, 128))
    assert 16 * budget < peak < 16 * budget + 64 * 4 * 128 * 4000
