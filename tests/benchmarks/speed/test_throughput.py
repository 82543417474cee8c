"""Tokens per second of tiny models: who takes turns, and what is counted."""

import sys

import pytest

from benchmarks import matched_models
from benchmarks.speed import tables, throughput


def test_all_contenders_take_turns_with_mdlm(measured, tmp_path):
    record = tables.read_speed(measured)
    (size,) = record["sizes"]
    assert (size["vocab_size"], size["batch_size"], size["turns"], size["calls"]) == (510, 3, 3, 2)
    training, generation = (
        {(row["contender"], *row["matched"]): row for row in size[part]} for part in ("training", "generation")
    )
    names = {name for name, *_ in training}
    assert names == {*matched_models.COMPARED, "ar"}
    assert {name for name, *_ in generation} == names - {"mdlm-chunked", "ar"}
    for rows in (training, generation):
        assert rows["mdlm", "budget", "depth"]["ratio"] == 1
        for row in rows.values():
            assert 0 < row["ratio_lower_quartile"] <= row["ratio"] <= row["ratio_upper_quartile"]
    flops = {name: row["flops"] for name, row in training.items()}
    assert flops["tdlm-child", "depth"] < flops["mdlm", "budget", "depth"] < flops["mdlm-chunked", "budget", "depth"]
    assert all(0 < row["peak_share"] < 1 for row in training.values())
    budget = training["mdlm", "budget", "depth"]["parameters"]
    assert all(abs(row["parameters"] - budget) <= 0.01 * budget for name, row in training.items() if "budget" in name)

    shown = tables.speed_tables(record)
    own = training["tdlm-child", "depth"]
    assert f"| TDLM, child head, same depth | 2 | {own['tokens_per_second']:,.0f} | {own['ratio']:.2f} (" in shown
    tables.draw(record, tmp_path / "figures" / "speed.png")
    assert (tmp_path / "figures" / "speed.png").read_bytes().startswith(b"\x89PNG")


def test_a_ratio_is_the_median_of_the_ratios_of_turns():
    rates = throughput.rates([1.0, 2.0, 4.0], [2.0, 8.0, 4.0], tokens=8)
    assert rates["ratio"] == 2 and (rates["ratio_lower_quartile"], rates["ratio_upper_quartile"]) == (1.5, 3)
    assert rates["tokens_per_second"] == 4


def test_generation_is_compared_at_equal_numbers_of_passes(monkeypatch):
    """HDLM's schedule takes more passes than there are steps: a call of the same seconds was a faster one."""
    workload = throughput.changed(throughput.WORKLOADS["toy"], 500, None, ["hdlm", "mdlm"])
    runners = throughput.make_runners(workload, "cpu")
    monkeypatch.setattr(throughput, "seconds_in_turns", lambda actions, *_: [[1.0]] * len(actions))
    reference, hdlm = throughput.measure_generation(runners, workload, calls=1, passes=4)[:2]
    taken = throughput.write(runners[1].model, workload, 4)
    assert (reference["contender"], hdlm["contender"]) == ("mdlm", "hdlm")
    assert hdlm["ratio"] == pytest.approx(taken / 4) and taken > 4


def test_options_change_a_workload_and_leave_the_rest_of_it():
    """The size of the quality benchmark has contenders that others lack, for the curves by time."""
    quality = throughput.WORKLOADS["quality"]
    assert set(quality.contenders) > set(throughput.COMPARED)
    assert throughput.changed(quality, quality.size.vocab_size, None, None) == quality
    other = throughput.changed(quality, 500, 3, ["mdlm"])
    assert (other.size.vocab_size, other.batch_size, other.contenders) == (500, 3, ("mdlm",))
    assert other.size.hidden_size == quality.size.hidden_size


def test_there_is_no_comparison_without_mdlm(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["throughput", "--contenders", "hdlm"])
    with pytest.raises(SystemExit):
        throughput.main()
    assert "--contenders lacks mdlm, to which all others are compared" in capsys.readouterr().err
