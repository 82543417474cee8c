"""The benchmark of speed on tiny models, end to end: who takes turns, what is counted, and what its table refuses."""

import json
import sys

import pytest
import torch
from helpers.processes import run_python

from benchmarks import matched_models, timing, training_step
from benchmarks.speed import tables, throughput

BATCH, WINDOW = 2, 16


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The record of a toy size, by a fresh process."""
    file = tmp_path_factory.mktemp("speed") / "results" / "speed.json"
    turns = ("--turns", "3", "--calls", "2", "--passes", "4", "--vocabularies", "510", "--batch-size", "3")
    ran = run_python(
        "-m", "benchmarks.speed.throughput", "--sizes", "toy", *turns, "--output", file, ACCELERATE_USE_CPU="true"
    )
    assert ran.returncode == 0, ran.stderr
    assert [path.name for path in file.parent.iterdir()] == ["speed.json"]  # no partial record is left
    return file


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


@pytest.mark.parametrize(("contender", "repeated"), [("mdlm", 0), ("mdlm-chunked", 1), ("tdlm-child", 0)])
def test_operations_are_counted_as_by_hand(contender, repeated):
    """Two per weight and position forward, four backward; attention two products forward, five backward."""
    size = matched_models.Size(500, 64, layers=2, heads=2, sequence_length=WINDOW)
    model = matched_models.matched_models((contender,), size)[-1].make()
    step = training_step.training_step(model, training_step.diffusion_batch(model, BATCH, WINDOW), "fp32")
    parts = model.config.count_parameters()
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
    batch = training_step.diffusion_batch(model, BATCH, WINDOW)
    step, before = training_step.training_step(model, batch, "fp32"), model(**batch).loss.item()
    for _ in range(20):
        step()
    assert model(**batch).loss.item() < 0.8 * before
    assert all(parameter.grad is None for parameter in model.parameters())


def test_turns_interleave_and_warm_up_does_not_count():
    called = []
    actions = [lambda: called.append("a"), lambda: called.append("b")]
    seconds = timing.seconds_in_turns(actions, turns=3, warm_up=2, device="cpu")
    assert "".join(called) == "ab" * 5 and [len(some) for some in seconds] == [3, 3]


def test_a_ratio_is_the_median_of_the_ratios_of_turns():
    rates = throughput.rates([1.0, 2.0, 4.0], [2.0, 8.0, 4.0], tokens=8)
    assert rates["ratio"] == 2 and (rates["ratio_lower_quartile"], rates["ratio_upper_quartile"]) == (1.5, 3)
    assert rates["tokens_per_second"] == 4
    assert timing.quartiles("x", [5.0]) == {"x": 5, "x_lower_quartile": 5, "x_upper_quartile": 5}


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


def test_a_damaged_record_is_not_shown(measured, tmp_path):
    whole, file = json.loads(measured.read_text()), tmp_path / "speed.json"
    cases = {
        "speed lacks sizes": lambda record: record.pop("sizes"),
        r"training\[1\] lacks peak_share": lambda record: record["sizes"][0]["training"][1].pop("peak_share"),
        "generation is empty": lambda record: record["sizes"][0]["generation"].clear(),
        "turns should be int, is None": lambda record: record["sizes"][0].update(turns=None),
    }
    for message, damage in cases.items():
        record = json.loads(json.dumps(whole))
        damage(record)
        file.write_text(json.dumps(record))
        with pytest.raises(ValueError, match=message):
            tables.read_speed(file)
    with pytest.raises(ValueError, match="none.json is missing"):
        tables.read_speed(tmp_path / "none.json")
