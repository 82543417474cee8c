"""Attention on a CPU, by implementation, precision and window."""

import pytest
import torch
from torch.autograd import grad

from benchmarks.speed import attention


def test_the_implementations_that_are_timed_take_the_same_gradients(monkeypatch):
    monkeypatch.setattr(attention, "POSITIONS", 64)
    taken = []

    def kept(*arguments):
        taken.append(grad(*arguments))
        return taken[-1]

    monkeypatch.setattr(torch.autograd, "grad", kept)
    for implementation in attention.IMPLEMENTATIONS:
        attention.attention_step("fp32", implementation, 16)()
    torch.testing.assert_close(*taken)


def test_a_line_has_the_times_of_its_implementation(monkeypatch):
    rows = [
        {"precision": precision, "implementation": name, "window": window, "milliseconds": float(window + place)}
        for place, (precision, name) in enumerate((p, n) for p in ("fp32", "bf16") for n in ("sdpa", "eager"))
        for window in attention.WINDOWS
    ]
    sizes = dict.fromkeys(("positions", "heads", "hidden_size", "turns"), 8)
    shown = attention.attention_table({"rows": rows, "device": "a CPU", "commit": "0", **sizes})
    assert "| bf16 | eager | 67.0 | 131.0 | 259.0 | 515.0 |" in shown
    with pytest.raises(KeyError):
        attention.attention_table({"rows": rows[1:], "device": "a CPU", "commit": "0", **sizes})
