"""Peak memory on tiny models, end to end: the grid, a run cut off, what does not fit."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch

from benchmarks import matched_models
from benchmarks.memory import peaks, tables

BATCHES = (1, 3)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run the benchmark on a size of its own; returns its record."""
    monkeypatch.setitem(matched_models.LAYERS_AND_HEADS, 64, (2, 2))

    def run_with(*options):
        grid = ["--hidden-sizes", "64", "--vocabularies", "3000", "--batches", *map(str, BATCHES), "--steps", "0"]
        monkeypatch.setattr(sys, "argv", ["peaks", *grid, "--output", str(tmp_path / "memory.json"), *options])
        peaks.main()
        return json.loads((tmp_path / "memory.json").read_text("utf-8"))

    return run_with


def key(row):
    return tuple(str(row[name]) for name in peaks.KEY)


def test_a_run_cut_off_goes_on_and_every_model_has_its_row(run, tmp_path, monkeypatch):
    plan, planned = peaks.plan_case, []

    def plan_five(case):
        if len(planned) == 5:
            raise KeyboardInterrupt
        planned.append(case)
        return plan(case)

    monkeypatch.setattr(peaks, "plan_case", plan_five)
    with pytest.raises(KeyboardInterrupt):
        run()
    assert len(json.loads((tmp_path / "memory.partial.json").read_text())["rows"]) == 5
    assert not (tmp_path / "memory.json").exists()

    monkeypatch.setattr(peaks, "plan_case", lambda case: planned.append(case) or plan(case))
    rows = run("--resume")["rows"]
    assert len(planned) == len(rows) == len({key(row) for row in rows})
    assert not (tmp_path / "memory.partial.json").exists()
    assert {row["contender"] for row in rows} == set(peaks.COMPARED)

    record = tables.read_memory(tmp_path / "memory.json")
    bytes_of = {
        (name, kind): [row["peak_bytes"] for row in tables.select(record, contender=name)
                       if kind in row["matched"]]
        for name in peaks.COMPARED for kind in ("budget", "depth")
    }  # fmt: skip
    assert all(few < many for few, many in bytes_of.values())  # windows
    for place in range(len(BATCHES)):
        tree = {kind: bytes_of["tree", kind][place] for kind in ("budget", "depth")}
        assert tree["depth"] < tree["budget"] < bytes_of["mdlm", "budget"][place] < bytes_of["hdlm", "budget"][place]
    assert bytes_of["mdlm-chunked", "depth"][1] < bytes_of["mdlm", "depth"][1] == bytes_of["mdlm", "budget"][1]


def test_rows_made_otherwise_do_not_mix(tmp_path):
    facts = {"sequence_length": 512, "measured": False}
    file = tmp_path / "memory.partial.json"
    assert peaks.read_rows(file, facts) == []
    peaks.write_record(file, facts | {"rows": [{"contender": "mdlm"}]}, seed=0)
    assert peaks.read_rows(file, facts) == [{"contender": "mdlm"}]
    with pytest.raises(ValueError, match="was made with another measured: delete it"):
        peaks.read_rows(file, facts | {"measured": True})
    file.write_text(json.dumps(facts | {"commit": "0123", "rows": []}))
    with pytest.raises(ValueError, match="was made with another commit: delete it"):
        peaks.read_rows(file, facts)


def test_at_the_reference_point_the_tree_takes_two_fifths_of_the_memory_at_equal_depth_and_at_equal_budget():
    models = matched_models.matched_models(("mdlm", "tree"), peaks.REFERENCE_POINT)
    cases = {model.matched: peaks.Case(model, 32) for model in models}
    peak = {matched: peaks.plan_case(case).peak for matched, case in cases.items()}
    assert max(peak["depth",], peak["budget",]) <= 0.4 * peak["budget", "depth"]


def test_variants_come_at_the_reference_point_alone():
    cases = list(peaks.cases(("mdlm", "tree", "hdlm"), (768, 1024), (30_522, 50_257), (4, 16)))
    varied = [case for case in cases if case.variant != "lean"]
    assert len(varied) == 2 * 2 * 2  # contenders, variants, batches
    assert {case.model.size for case in varied} == {peaks.REFERENCE_POINT}
    assert {case.model.contender for case in varied} == {"mdlm", "tree"}
    assert {(case.model.config.num_hidden_layers, case.recomputed_layers) for case in varied} == {
        (12, 0), (12, 10), (6, 0), (6, 5),
    }  # fmt: skip
    assert all(case.settings.get("recompute_mlp", 0) == case.recomputed_layers for case in cases)
    assert {case.variant for case in cases if not case.settings.get("lean", True)} == {"plain"}


def test_what_does_not_fit_by_plan_is_not_measured(monkeypatch):
    monkeypatch.setattr(peaks, "device_memory", lambda device: 1000)
    plan = SimpleNamespace(fits=lambda memory: memory > 1000)
    assert peaks.measure(None, plan, "cuda", 1) == {"not_measured": "by plan it does not fit"}


@pytest.mark.gpu
@pytest.mark.parametrize("variant", ["lean", "plain", "recompute"])
def test_what_is_planned_is_what_cuda_allocates(variant):
    size = matched_models.Size(8192, 512, layers=6, heads=8, sequence_length=256)
    for model in matched_models.matched_models(("mdlm", "tdlm-child", "tree"), size):
        case = peaks.Case(model, 16, variant)
        plan = peaks.plan_case(case)
        measured = peaks.measure(case, plan, "cuda", steps=2)
        assert plan.peak == pytest.approx(measured["allocated_bytes"], rel=0.1)
        assert measured["reserved_bytes"] >= measured["allocated_bytes"] and measured["step_seconds"] > 0
        torch.cuda.empty_cache()
