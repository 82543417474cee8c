"""Where the time of a training step goes."""

import sys
from types import SimpleNamespace

import pytest

from benchmarks.record_schema import read_record
from benchmarks.speed import step_parts


def test_the_shares_of_every_model_are_all_of_its_time(tmp_path, monkeypatch, capsys):
    command = ["step_parts", "--sizes", "toy", "--steps", "1", "--output", str(tmp_path / "record.json")]
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.setattr(step_parts, "keep_freed_memory", lambda: True)  # other tests are to see memory freed
    step_parts.main()
    shown = capsys.readouterr().out
    (size,) = read_record(tmp_path / "record.json", step_parts.SCHEMA)["sizes"]
    assert len(size["models"]) == len(step_parts.CONTENDERS)
    for row in size["models"]:
        assert sum(row["shares"].values()) == pytest.approx(1) and min(row["shares"].values()) > 0
        assert f"| {row['title']} |" in shown and row["gain"] is None


def test_gains_and_ratios_are_above_1_where_a_step_is_faster(monkeypatch):
    """With times of my own: a second for the first of the actions in turns, half a second for the next, and so on."""
    attentions = []

    def timed(actions, turns, *_):
        return [[2.0**-place] * turns for place in range(len(actions))]

    def step(model, batch, precision):
        attentions.append((precision, model.config._attn_implementation))
        return lambda: None

    monkeypatch.setattr(step_parts, "seconds_in_turns", timed)
    monkeypatch.setattr(step_parts, "training_step", step)
    monkeypatch.setattr(step_parts, "shares", lambda *_: {})
    rows = step_parts.measure("toy", SimpleNamespace(steps=3, compile=False))["models"]
    assert [row["ratio"] for row in rows] == [2.0**place for place in range(len(rows))]
    assert {row["bf16_gain"] for row in rows} == {2.0}
    assert attentions == [("fp32", "sdpa"), ("bf16", "eager")] * len(rows)


@pytest.mark.parametrize(
    ("operation", "part"),
    [
        ("aten::mm", "matrix products"),
        ("aten::baddbmm", "matrix products"),
        ("aten::mm_like", step_parts.OTHERS),
        ("aten::_scaled_dot_product_flash_attention_for_cpu_backward", "attention"),
        ("aten::_log_softmax_backward_data", "softmax and loss"),
        ("aten::_fused_adamw_", "optimizer"),
        ("aten::mul", step_parts.OTHERS),
    ],
)
def test_an_operation_is_counted_by_its_name(operation, part):
    assert step_parts.part_of(operation) == part
