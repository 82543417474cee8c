"""The benchmark of speed on tiny models, end to end: who takes turns, what is counted, and what its table refuses."""

import importlib
import json
import sys
from types import SimpleNamespace

import pytest
import torch
from helpers.processes import REPOSITORY, run_python

BATCH, WINDOW = 2, 16


@pytest.fixture(scope="module")
def scripts():
    sys.path.insert(0, str(REPOSITORY / "benchmarks"))
    names = ("speed", "speed_tables", "turns", "training_step", "matched_models")
    yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    sys.path.remove(str(REPOSITORY / "benchmarks"))


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The record of a toy size, by a fresh process."""
    file = tmp_path_factory.mktemp("speed") / "results" / "speed.json"
    turns = ("--turns", "3", "--calls", "2", "--passes", "4", "--vocabularies", "510", "--batch-size", "3")
    ran = run_python(
        "-m", "benchmarks.speed.run", "--sizes", "toy", *turns, "--output", file, ACCELERATE_USE_CPU="true"
    )
    assert ran.returncode == 0, ran.stderr
    assert [path.name for path in file.parent.iterdir()] == ["speed.json"]  # no partial record is left
    return file


def test_all_contenders_take_turns_with_mdlm(scripts, measured, tmp_path):
    record = scripts.speed_tables.read_speed(measured)
    (size,) = record["sizes"]
    assert (size["vocab_size"], size["batch_size"], size["turns"], size["calls"]) == (510, 3, 3, 2)
    training, generation = (
        {(row["contender"], *row["matched"]): row for row in size[part]} for part in ("training", "generation")
    )
    names = {name for name, *_ in training}
    assert names == {*scripts.matched_models.COMPARED, "ar"}
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

    shown = scripts.speed_tables.speed_tables(record)
    own = training["tdlm-child", "depth"]
    assert f"| TDLM, child head, same depth | 2 | {own['tokens_per_second']:,.0f} | {own['ratio']:.2f} (" in shown
    scripts.speed_tables.draw(record, tmp_path / "figures" / "speed.png")
    assert (tmp_path / "figures" / "speed.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("contender", "repeated"), [("mdlm", 0), ("mdlm-chunked", 1), ("tdlm-child", 0)])
def test_operations_are_counted_as_by_hand(scripts, contender, repeated):
    """Two per weight and position forward, four backward; attention two products forward, five backward."""
    size = scripts.matched_models.Size(500, 64, layers=2, heads=2, window=WINDOW)
    model = scripts.matched_models.matched_models((contender,), size)[-1].make()
    step = scripts.training_step.training_step(
        model, scripts.training_step.diffusion_batch(model, BATCH, WINDOW), "fp32"
    )
    parts = model.config.count_parameters()
    head = sum(layer.weight.numel() for layer in model.head.levels)
    layers = parts["layers"] - 2 * 2 * model.config.hidden_size  # norms multiply no matrices
    attention = 7 * 2 * BATCH * WINDOW**2 * model.config.hidden_size * model.config.num_hidden_layers
    expected = BATCH * WINDOW * (6 * layers + (6 + 2 * repeated) * head) + attention
    assert scripts.training_step.count_flops(step) == expected


def test_a_step_trains_on_always_the_same_batch(scripts):
    torch.manual_seed(0)
    size = scripts.matched_models.Size(500, 64, layers=2, heads=2, window=WINDOW)
    (model,) = scripts.matched_models.matched_models(("mdlm",), size)
    model = model.make()
    batch = scripts.training_step.diffusion_batch(model, BATCH, WINDOW)
    step, before = scripts.training_step.training_step(model, batch, "fp32"), model(**batch).loss.item()
    for _ in range(20):
        step()
    assert model(**batch).loss.item() < 0.8 * before
    assert all(parameter.grad is None for parameter in model.parameters())


def test_turns_interleave_and_warm_up_does_not_count(scripts):
    called = []
    actions = [lambda: called.append("a"), lambda: called.append("b")]
    seconds = scripts.turns.seconds_in_turns(actions, turns=3, warm_up=2, device="cpu")
    assert "".join(called) == "ab" * 5 and [len(some) for some in seconds] == [3, 3]


def test_a_ratio_is_the_median_of_the_ratios_of_turns(scripts):
    rates = scripts.speed.rates([1.0, 2.0, 4.0], [2.0, 8.0, 4.0], tokens=8)
    assert rates["ratio"] == 2 and (rates["ratio_lower_quartile"], rates["ratio_upper_quartile"]) == (1.5, 3)
    assert rates["tokens_per_second"] == 4
    assert scripts.turns.quartiles("x", [5.0]) == {"x": 5, "x_lower_quartile": 5, "x_upper_quartile": 5}


def test_generation_is_compared_at_equal_numbers_of_passes(scripts, monkeypatch):
    """HDLM's schedule takes more passes than there are steps: a call of the same seconds was a faster one."""
    workload = scripts.speed.changed(scripts.speed.WORKLOADS["toy"], 500, None, ["hdlm", "mdlm"])
    runners = scripts.speed.make_runners(workload, "cpu")
    monkeypatch.setattr(scripts.speed, "seconds_in_turns", lambda actions, *_: [[1.0]] * len(actions))
    reference, hdlm = scripts.speed.measure_generation(runners, workload, calls=1, passes=4)[:2]
    taken = scripts.speed.write(runners[1].model, workload, 4)
    assert (reference["contender"], hdlm["contender"]) == ("mdlm", "hdlm")
    assert hdlm["ratio"] == pytest.approx(taken / 4) and taken > 4


def test_options_change_a_workload_and_leave_the_rest_of_it(scripts):
    """The size of the quality benchmark has contenders that others lack, for the curves by time."""
    quality = scripts.speed.WORKLOADS["quality"]
    assert set(quality.contenders) > set(scripts.speed.COMPARED)
    assert scripts.speed.changed(quality, quality.size.vocab_size, None, None) == quality
    other = scripts.speed.changed(quality, 500, 3, ["mdlm"])
    assert (other.size.vocab_size, other.batch_size, other.contenders) == (500, 3, ("mdlm",))
    assert other.size.hidden_size == quality.size.hidden_size


def test_there_is_no_comparison_without_mdlm(scripts, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["speed.py", "--contenders", "hdlm"])
    with pytest.raises(SystemExit):
        scripts.speed.main()
    assert "--contenders lacks mdlm, to which all others are compared" in capsys.readouterr().err


def test_a_damaged_record_is_not_shown(scripts, measured, tmp_path):
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
            scripts.speed_tables.read_speed(file)
    with pytest.raises(ValueError, match="none.json is missing"):
        scripts.speed_tables.read_speed(tmp_path / "none.json")
