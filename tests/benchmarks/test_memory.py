"""The benchmark of memory on tiny models, end to end: its grid, a run cut off, and what its tables refuse."""

import importlib
import json
import sys
from types import SimpleNamespace

import pytest
import torch
from helpers.processes import REPOSITORY

BATCHES = (1, 3)


@pytest.fixture(scope="module")
def scripts():
    sys.path.insert(0, str(REPOSITORY / "benchmarks"))
    names = ("memory", "memory_tables", "matched_models", "contenders")
    yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    sys.path.remove(str(REPOSITORY / "benchmarks"))


@pytest.fixture
def run(scripts, tmp_path, monkeypatch):
    """Run memory.py on a size of its own; returns its record."""
    monkeypatch.setitem(scripts.matched_models.LAYERS_AND_HEADS, 64, (2, 2))

    def run_with(*options):
        grid = ["--hidden-sizes", "64", "--vocabularies", "3000", "--batches", *map(str, BATCHES), "--steps", "0"]
        monkeypatch.setattr(sys, "argv", ["memory.py", *grid, "--output", str(tmp_path / "memory.json"), *options])
        scripts.memory.main()
        return json.loads((tmp_path / "memory.json").read_text("utf-8"))

    return run_with


def key(scripts, row):
    return tuple(str(row[name]) for name in scripts.memory.KEY)


def test_a_run_cut_off_goes_on_and_every_model_has_its_row(scripts, run, tmp_path, monkeypatch):
    plan, planned = scripts.memory.plan_case, []

    def plan_five(case):
        if len(planned) == 5:
            raise KeyboardInterrupt
        planned.append(case)
        return plan(case)

    monkeypatch.setattr(scripts.memory, "plan_case", plan_five)
    with pytest.raises(KeyboardInterrupt):
        run()
    assert len(json.loads((tmp_path / "memory.partial.json").read_text())["rows"]) == 5
    assert not (tmp_path / "memory.json").exists()

    monkeypatch.setattr(scripts.memory, "plan_case", lambda case: planned.append(case) or plan(case))
    rows = run("--resume")["rows"]
    assert len(planned) == len(rows) == len({key(scripts, row) for row in rows})
    assert not (tmp_path / "memory.partial.json").exists()
    assert {row["contender"] for row in rows} == set(scripts.matched_models.COMPARED)

    record = scripts.memory_tables.read_memory(tmp_path / "memory.json")
    peaks = {
        (name, kind): [row["peak_bytes"] for row in scripts.memory_tables.select(record, contender=name)
                       if kind in row["matched"]]
        for name in scripts.matched_models.COMPARED for kind in ("budget", "depth")
    }  # fmt: skip
    assert all(few < many for few, many in peaks.values())  # windows
    for place in range(len(BATCHES)):
        tree = {kind: peaks["tdlm-child", kind][place] for kind in ("budget", "depth")}
        assert tree["depth"] < tree["budget"] < peaks["mdlm", "budget"][place] < peaks["hdlm", "budget"][place]
    assert peaks["mdlm-chunked", "depth"][1] < peaks["mdlm", "depth"][1] == peaks["mdlm", "budget"][1]


def test_rows_made_otherwise_do_not_mix(scripts, tmp_path):
    facts = {"length": 512, "precision": "bf16", "measured": False}
    file = tmp_path / "memory.partial.json"
    assert scripts.memory.read_rows(file, facts) == []
    scripts.memory.write_record(file, facts | {"rows": [{"contender": "mdlm"}]}, seed=0)
    assert scripts.memory.read_rows(file, facts) == [{"contender": "mdlm"}]
    with pytest.raises(ValueError, match="was made with another measured: delete it"):
        scripts.memory.read_rows(file, facts | {"measured": True})
    file.write_text(json.dumps(facts | {"commit": "0123", "rows": []}))
    with pytest.raises(ValueError, match="was made with another commit: delete it"):
        scripts.memory.read_rows(file, facts)


def test_at_the_reference_point_the_tree_takes_less_at_its_depth_and_still_less_than_mdlm_at_its_budget(scripts):
    models = scripts.matched_models.matched_models(("mdlm", "tdlm-child"), scripts.memory.REFERENCE_POINT)
    cases = {model.matched: scripts.memory.Case(model, 32) for model in models}
    peak = {matched: scripts.memory.plan_case(case).peak for matched, case in cases.items()}
    assert peak["depth",] < 0.75 * peak["budget",] and peak["budget",] <= 0.5 * peak["budget", "depth"]


def test_variants_come_at_the_reference_point_alone(scripts):
    cases = list(scripts.memory.cases(("mdlm", "tdlm-child", "hdlm"), (768, 1024), (30_522, 50_257), (4, 16)))
    varied = [case for case in cases if case.variant != "lean"]
    assert len(varied) == 2 * 2 * 2  # contenders, variants, batches
    assert {case.model.size for case in varied} == {scripts.memory.REFERENCE_POINT}
    assert {case.model.contender for case in varied} == {"mdlm", "tdlm-child"}
    assert {(case.model.config.num_hidden_layers, case.recomputed_layers) for case in varied} == {
        (12, 0), (12, 10), (17, 0), (17, 14),
    }  # fmt: skip
    assert all(case.settings.get("recompute_mlp_layers", 0) == case.recomputed_layers for case in cases)
    assert {case.variant for case in cases if not case.settings.get("lean", True)} == {"plain"}


def test_models_have_the_budget_or_the_depth_of_the_reference_at_full_sizes(scripts):
    matched = scripts.matched_models
    for hidden_size, (layers, _) in matched.LAYERS_AND_HEADS.items():
        for vocab_size in (matched.VOCABULARIES[0], matched.VOCABULARIES[-1]):
            models = matched.matched_models(matched.COMPARED, matched.Size.full(vocab_size, hidden_size))
            budget = models[0].facts["parameters"]
            assert (models[0].contender, models[0].facts["layers"]) == ("mdlm", layers)
            for model in models:
                if "budget" in model.matched:
                    assert abs(model.facts["parameters"] - budget) <= 0.01 * budget
                if "depth" in model.matched:
                    assert model.facts["layers"] == layers


def test_a_model_is_what_its_facts_and_its_contender_say(scripts):
    size = scripts.matched_models.Size(500, 64, layers=2, heads=2, window=16, rope_theta=50.0)
    for matched in scripts.matched_models.matched_models(scripts.matched_models.COMPARED, size):
        model = matched.make()
        assert sum(parameter.numel() for parameter in model.parameters()) == matched.facts["parameters"]
        fields = scripts.contenders.CONTENDERS[matched.contender].fields | size.fields
        assert fields.items() <= model.config.to_dict().items()


def test_what_does_not_fit_by_plan_is_not_measured(scripts, monkeypatch):
    monkeypatch.setattr(scripts.memory, "device_memory", lambda device: 1000)
    plan = SimpleNamespace(fits=lambda memory: memory > 1000)
    assert scripts.memory.measure(None, plan, 1) == {"not_measured": "by plan it does not fit"}


ROW = {
    "contender": "mdlm", "matched": ["budget", "depth"], "variant": "lean", "peak_phase": "backward", "layers": 12,
    "parameters": 100, "batch_size": 32, "vocab_size": 50_257, "hidden_size": 768, "peak_bytes": 3 * 2**30,
    "parts_bytes": {"parameters": 2**30, "activations": 2**31},
}  # fmt: skip


def record_of(*rows, **facts):
    return {"commit": "0123", "device": "some GPU", "length": 512, "precision": "bf16", "measured": False,
            "rows": [ROW | row for row in rows]} | facts  # fmt: skip


def test_tables_show_peaks_and_their_ratio_to_mdlm(scripts, tmp_path):
    tables = scripts.memory_tables
    tree = {"contender": "tdlm-child", "peak_bytes": 3 * 2**29}
    record = record_of({}, tree | {"matched": ["budget"]}, tree | {"matched": ["depth"], "peak_bytes": 2**30},
                       {"variant": "plain", "peak_bytes": 2**33})  # fmt: skip
    assert "| MDLM (flat) | 12 | 3.00 GiB (1.00) |" in tables.peaks_table(record)
    assert "| TDLM, child head | 12 | 1.50 GiB (0.50) |" in tables.peaks_table(record)
    assert "| TDLM, child head, same depth | 0.33 |" in tables.ratios_table(record)
    assert "8.00" not in tables.peaks_table(record)
    tables.draw(record, tmp_path / "figures" / "memory.png")
    assert (tmp_path / "figures" / "memory.png").read_bytes().startswith(b"\x89PNG")


def test_one_model_by_budget_and_by_depth_has_one_title_unless_they_differ_elsewhere(scripts):
    def titles(*matched, **options):
        return list(scripts.matched_models.by_title([ROW | {"matched": kinds} for kinds in matched], **options))

    both, budget, depth = ["budget", "depth"], ["budget"], ["depth"]
    assert titles(both, both) == ["MDLM (flat)"]
    assert titles(both, budget, depth) == titles(budget, depth) == ["MDLM (flat)", "MDLM (flat), same depth"]
    assert titles(both, budget, depth, kinds=budget) == ["MDLM (flat)"]


def test_measurements_stand_beside_plans(scripts):
    tables = scripts.memory_tables
    measured = {"allocated_bytes": 2**32, "reserved_bytes": 5 * 2**30, "step_seconds": 0.25}
    shown = tables.measured_table(record_of(measured, {"not_measured": "out of memory"}, measured=True))
    assert "| 3.00 GiB | 4.00 GiB | 5.00 GiB | 0.75 | 250 ms |" in shown and "| 3.00 GiB | out of memory |" in shown
    with pytest.raises(ValueError, match="plans alone"):
        tables.measured_table(record_of({}))


def test_a_missing_older_or_damaged_record_is_not_shown(scripts, tmp_path):
    file = tmp_path / "memory.json"
    with pytest.raises(ValueError, match="memory.json is missing: the benchmark that writes it has not been run"):
        scripts.memory_tables.read_memory(file)
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
            scripts.memory_tables.read_memory(file)


@pytest.mark.gpu
@pytest.mark.parametrize("variant", ["lean", "plain", "recompute"])
def test_what_is_planned_is_what_cuda_allocates(scripts, variant):
    size = scripts.matched_models.Size(8192, 512, layers=6, heads=8, window=256)
    for model in scripts.matched_models.matched_models(("mdlm", "tdlm-child"), size):
        case = scripts.memory.Case(model, 16, variant)
        plan = scripts.memory.plan_case(case)
        measured = scripts.memory.measure(case, plan, steps=2)
        assert plan.peak == pytest.approx(measured["allocated_bytes"], rel=0.1)
        assert measured["reserved_bytes"] >= measured["allocated_bytes"] and measured["step_seconds"] > 0
        torch.cuda.empty_cache()
