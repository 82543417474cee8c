"""What a step takes in resident memory on a CPU, and what was planned."""

import pytest

from benchmarks import matched_models
from benchmarks.memory import peaks


def test_a_step_takes_in_resident_memory_what_is_planned():
    """Where tensors are large against what the process allocates beside them."""
    model = matched_models.matched_models(("mdlm",), matched_models.Size(4000, 128, 2, 2, sequence_length=128))[0]
    case = peaks.Case(model, 16, precision="fp32")
    plan = peaks.plan_case(case)
    measured = peaks.measure(case, plan, "cpu", 1)
    assert measured["resident_bytes"] == pytest.approx(plan.peak, rel=0.05)
