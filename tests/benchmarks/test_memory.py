"""The benchmark of memory on tiny models, end to end: its grid, a run cut off, and what its tables refuse."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch

from benchmarks import contenders, matched_models
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
    assert {row["contender"] for row in rows} == set(matched_models.COMPARED)

    record = tables.read_memory(tmp_path / "memory.json")
    bytes_of = {
        (name, kind): [row["peak_bytes"] for row in tables.select(record, contender=name)
                       if kind in row["matched"]]
        for name in matched_models.COMPARED for kind in ("budget", "depth")
    }  # fmt: skip
    assert all(few < many for few, many in bytes_of.values())  # windows
    for place in range(len(BATCHES)):
        tree = {kind: bytes_of["tdlm-child", kind][place] for kind in ("budget", "depth")}
        assert tree["depth"] < tree["budget"] < bytes_of["mdlm", "budget"][place] < bytes_of["hdlm", "budget"][place]
    assert bytes_of["mdlm-chunked", "depth"][1] < bytes_of["mdlm", "depth"][1] == bytes_of["mdlm", "budget"][1]


def test_rows_made_otherwise_do_not_mix(tmp_path):
    facts = {"length": 512, "precision": "bf16", "measured": False}
    file = tmp_path / "memory.partial.json"
    assert peaks.read_rows(file, facts) == []
    peaks.write_record(file, facts | {"rows": [{"contender": "mdlm"}]}, seed=0)
    assert peaks.read_rows(file, facts) == [{"contender": "mdlm"}]
    with pytest.raises(ValueError, match="was made with another measured: delete it"):
        peaks.read_rows(file, facts | {"measured": True})
    file.write_text(json.dumps(facts | {"commit": "0123", "rows": []}))
    with pytest.raises(ValueError, match="was made with another commit: delete it"):
        peaks.read_rows(file, facts)


def test_at_the_reference_point_the_tree_takes_less_at_its_depth_and_still_less_than_mdlm_at_its_budget():
    models = matched_models.matched_models(("mdlm", "tdlm-child"), peaks.REFERENCE_POINT)
    cases = {model.matched: peaks.Case(model, 32) for model in models}
    peak = {matched: peaks.plan_case(case).peak for matched, case in cases.items()}
    assert peak["depth",] < 0.75 * peak["budget",] and peak["budget",] <= 0.5 * peak["budget", "depth"]


def test_variants_come_at_the_reference_point_alone():
    cases = list(peaks.cases(("mdlm", "tdlm-child", "hdlm"), (768, 1024), (30_522, 50_257), (4, 16)))
    varied = [case for case in cases if case.variant != "lean"]
    assert len(varied) == 2 * 2 * 2  # contenders, variants, batches
    assert {case.model.size for case in varied} == {peaks.REFERENCE_POINT}
    assert {case.model.contender for case in varied} == {"mdlm", "tdlm-child"}
    assert {(case.model.config.num_hidden_layers, case.recomputed_layers) for case in varied} == {
        (12, 0), (12, 10), (17, 0), (17, 14),
    }  # fmt: skip
    assert all(case.settings.get("recompute_mlp_layers", 0) == case.recomputed_layers for case in cases)
    assert {case.variant for case in cases if not case.settings.get("lean", True)} == {"plain"}


def test_models_have_the_budget_or_the_depth_of_the_reference_at_full_sizes():
    for hidden_size, (layers, _) in matched_models.LAYERS_AND_HEADS.items():
        for vocab_size in (matched_models.VOCABULARIES[0], matched_models.VOCABULARIES[-1]):
            size = matched_models.Size.full(vocab_size, hidden_size)
            models = matched_models.matched_models(matched_models.COMPARED, size)
            budget = models[0].facts["parameters"]
            assert (models[0].contender, models[0].facts["layers"]) == ("mdlm", layers)
            for model in models:
                if "budget" in model.matched:
                    assert abs(model.facts["parameters"] - budget) <= 0.01 * budget
                if "depth" in model.matched:
                    assert model.facts["layers"] == layers


def test_a_model_is_what_its_facts_and_its_contender_say():
    size = matched_models.Size(500, 64, layers=2, heads=2, sequence_length=16, rope_theta=50.0)
    for matched in matched_models.matched_models(matched_models.COMPARED, size):
        model = matched.make()
        assert sum(parameter.numel() for parameter in model.parameters()) == matched.facts["parameters"]
        fields = contenders.CONTENDERS[matched.contender].fields | size.fields
        assert fields.items() <= model.config.to_dict().items()


def test_what_does_not_fit_by_plan_is_not_measured(monkeypatch):
    monkeypatch.setattr(peaks, "device_memory", lambda device: 1000)
    plan = SimpleNamespace(fits=lambda memory: memory > 1000)
    assert peaks.measure(None, plan, 1) == {"not_measured": "by plan it does not fit"}


ROW = {
    "contender": "mdlm", "matched": ["budget", "depth"], "variant": "lean", "peak_phase": "backward", "layers": 12,
    "parameters": 100, "batch_size": 32, "vocab_size": 50_257, "hidden_size": 768, "peak_bytes": 3 * 2**30,
    "parts_bytes": {"parameters": 2**30, "activations": 2**31},
}  # fmt: skip


def record_of(*rows, **facts):
    return {"commit": "0123", "device": "some GPU", "length": 512, "precision": "bf16", "measured": False,
            "rows": [ROW | row for row in rows]} | facts  # fmt: skip


def test_tables_show_peaks_and_their_ratio_to_mdlm(tmp_path):
    tree = {"contender": "tdlm-child", "peak_bytes": 3 * 2**29}
    record = record_of({}, tree | {"matched": ["budget"]}, tree | {"matched": ["depth"], "peak_bytes": 2**30},
                       {"variant": "plain", "peak_bytes": 2**33})  # fmt: skip
    assert "| MDLM (flat) | 12 | 3.00 GiB (1.00) |" in tables.peaks_table(record)
    assert "| TDLM, child head | 12 | 1.50 GiB (0.50) |" in tables.peaks_table(record)
    assert "| TDLM, child head, same depth | 0.33 |" in tables.ratios_table(record)
    assert "8.00" not in tables.peaks_table(record)
    tables.draw(record, tmp_path / "figures" / "memory.png")
    assert (tmp_path / "figures" / "memory.png").read_bytes().startswith(b"\x89PNG")


def test_one_model_by_budget_and_by_depth_has_one_title_unless_they_differ_elsewhere():
    def titles(*matched, **options):
        return list(matched_models.by_title([ROW | {"matched": kinds} for kinds in matched], **options))

    both, budget, depth = ["budget", "depth"], ["budget"], ["depth"]
    assert titles(both, both) == ["MDLM (flat)"]
    assert titles(both, budget, depth) == titles(budget, depth) == ["MDLM (flat)", "MDLM (flat), same depth"]
    assert titles(both, budget, depth, kinds=budget) == ["MDLM (flat)"]


def test_measurements_stand_beside_plans():
    measured = {"allocated_bytes": 2**32, "reserved_bytes": 5 * 2**30, "step_seconds": 0.25}
    shown = tables.measured_table(record_of(measured, {"not_measured": "out of memory"}, measured=True))
    assert "| 3.00 GiB | 4.00 GiB | 5.00 GiB | 0.75 | 250 ms |" in shown and "| 3.00 GiB | out of memory |" in shown
    with pytest.raises(ValueError, match="plans alone"):
        tables.measured_table(record_of({}))


def test_a_missing_older_or_damaged_record_is_not_shown(tmp_path):
    file = tmp_path / "memory.json"
    with pytest.raises(ValueError, match="memory.json is missing: the benchmark that writes it has not been run"):
        tables.read_memory(file)
    older = {"commit": "0123", "device": "CPU", "length": 512, "precision": "bf16", "rows": [{"model": "flat"}]}
    cases = {
        "memory lacks measured": older,
        r"rows\[0\] lacks contender": older | {"measured": False},
        "rows is empty": record_of(),
        "parts of a row of mdlm do not sum to its peak": record_of({"peak_bytes": 2**30}),
    }
    for message, record in cases.items():
        file.write_text(json.dumps(record))
        with pytest.raises(ValueError, match=message):
            tables.read_memory(file)


@pytest.mark.gpu
@pytest.mark.parametrize("variant", ["lean", "plain", "recompute"])
def test_what_is_planned_is_what_cuda_allocates(variant):
    size = matched_models.Size(8192, 512, layers=6, heads=8, sequence_length=256)
    for model in matched_models.matched_models(("mdlm", "tdlm-child"), size):
        case = peaks.Case(model, 16, variant)
        plan = peaks.plan_case(case)
        measured = peaks.measure(case, plan, steps=2)
        assert plan.peak == pytest.approx(measured["allocated_bytes"], rel=0.1)
        assert measured["reserved_bytes"] >= measured["allocated_bytes"] and measured["step_seconds"] > 0
        torch.cuda.empty_cache()
