"""Numbers that are none end a run with a report, and are never saved."""

import pytest
from helpers.tiny_run import tiny_network, tiny_run, tiny_tree


@pytest.mark.parametrize("rate", [1e30, 1e4])
def test_numbers_that_are_none_end_the_run_with_a_report(tmp_path, rate):
    """At 1e30 the loss explodes at once; what was saved before is finite."""
    with pytest.raises(FloatingPointError, match=r"Stopped at step \d+: .*Last good checkpoint: .*divergence.json"):
        tiny_run(tmp_path, learning_rate=rate, max_grad_norm=1e30, max_steps=2000, warmup_steps=0, save_every=1)
    assert not (tmp_path / "model.safetensors").exists() and (tmp_path / "divergence.json").exists()
    for checkpoint in tmp_path.glob("checkpoint-*"):
        model = type(tiny_network(tiny_tree())).from_pretrained(checkpoint)
        assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_parameters_that_are_none_are_never_saved(tmp_path):
    """The loss of the step was a number, what the step made of the parameters is not."""
    with pytest.raises(FloatingPointError, match="Stopped at step 1: .*parameters no longer finite.*checkpoint: none"):
        tiny_run(tmp_path, learning_rate=1e40, warmup_steps=0, save_every=1)
    assert not list(tmp_path.glob("*checkpoint*"))
