"""Tables of the quality benchmark show every contender and refuse damaged records."""

import json
import math

import pytest
from helpers.contenders import COMPARED

from benchmarks.contenders import REFERENCE
from benchmarks.quality import ablation_table, tables
from benchmarks.quality import record as quality_record


@pytest.fixture
def record(records, packed, tmp_path):
    quality_record.write_quality(tmp_path / "quality_cpu.json", records, packed.manifest, COMPARED)
    return json.loads((tmp_path / "quality_cpu.json").read_text())


def test_tables_show_every_contender_and_seed(record, tmp_path):
    lines = tables.main_table(record).splitlines()
    names = [line.split("|")[1].split(",")[0].strip() for line in lines[2:7]]
    assert names == ["MDLM (flat)"] * 2 + ["TDLM"] * 2 + ["autoregressive (GPT-2)"]
    ratio = record["best"]["tdlm-child"]["ratios"]["1"]["validation"]["ratio"]
    assert f"{ratio:.3f} (" in lines[5] and lines[2].rstrip(" |").endswith(" 1 | 1")
    assert "≤" in lines[2] and "≤" not in lines[6]
    assert tables.zero_shot_table(record).splitlines()[0] == "| perplexity; perplexity / MDLM | seed | other |"
    assert tables.grid_table(record).splitlines()[0] == "| nats/token | learning rate 0.001 |"
    assert "with a better rate perhaps beyond: MDLM (flat); TDLM" in tables.grid_table(record)
    tables.draw(record, dict.fromkeys(COMPARED, 100.0), tmp_path / "quality.png")
    assert (tmp_path / "quality.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_not_trained_yet_is_said_beside_the_table(record):
    assert "Not trained" not in tables.main_table(record)
    partial = record | {"missing": ["tree", "bd3lm"]}
    assert tables.main_table(partial).endswith(" Not trained yet: tree (ours); BD3-LM (flat, S=4).\n")


def test_the_ratio_over_tokens_is_that_of_the_curves(record):
    """To MDLM of the same seed, and to the one run of GPT-2."""
    lines = tables.lasting_table(record, points=2).splitlines()
    assert lines[0] == "| perplexity / MDLM; / GPT-2 | seed | 0.0M tokens | 0.0M tokens |"
    rows = {tuple(cell.strip() for cell in line.split("|")[1:3]): line for line in lines[2:7]}
    titles = "MDLM (flat)", "TDLM, child head", "autoregressive (GPT-2)"
    assert list(rows) == [(titles[0], "0"), (titles[0], "1"), (titles[1], "0"), (titles[1], "1"), (titles[2], "0")]
    curves = {
        (name, run["seed"]): [point["nelbo"] for point in run["curve"]]
        for name in COMPARED
        for run in tables.runs_of(record, name)
    }
    for seed in (0, 1):
        to = [curves["tdlm-child", seed][-1] - other[-1] for other in (curves[REFERENCE, seed], curves["ar", 0])]
        assert rows[titles[1], f"{seed}"].endswith(f"| {math.exp(to[0]):.3f}; {math.exp(to[1]):.2f} |")
    steps = [point["step"] for point in tables.runs_of(record, REFERENCE)[0]["curve"]]
    for place, step in enumerate(steps):
        gaps = [curves["tdlm-child", seed][place] - curves[REFERENCE, seed][place] for seed in (0, 1)]
        assert tables.over_mdlm(record, step, "tdlm-child") == pytest.approx([math.exp(gap) for gap in gaps])
        assert len(tables.over_mdlm(record, step, "ar")) == 1
    with pytest.raises(ValueError, match="lack step 2: 2 points are too few"):
        tables.lasting_table(record, points=3)


def test_a_stopped_run_stands_beside_those_of_its_protocol_text_and_trees_alone(record):
    curve = tables.runs_of(record, "ar")[0]["curve"][:1]
    facts = {"seed": 0, "learning_rate": 0.5, "commit": "0123", "stopped_at": curve[0]["step"] + 1}
    of_training = {name: record["trained_with"][name] for name in ("training_sha256", "trees")}
    stopped = {"contender": "tree", "protocol": record["protocol"], "curve": curve} | facts | of_training
    lines = tables.lasting_table(record, [stopped], points=2).splitlines()
    title, seed, first, last = lines[7].split("|")[1:5]
    assert (title.strip(), seed.strip(), last.strip()) == ("tree (ours), stopped", "0", "")
    assert first.strip().endswith("; 1.00") and lines[-1].startswith("tree (ours): stopped after 0.0M tokens; ")
    for name, other in {"protocol": {}, "training_sha256": "other", "trees": {}}.items():
        with pytest.raises(ValueError, match=rf"tree \(ours\) had another {name}: it does not compare"):
            tables.lasting_table(record, [stopped | {name: other}], points=2)


def test_bits_per_byte_are_those_of_the_whole_text(record, packed):
    """Of other tokens of the same text they are the same where the text is as probable."""
    text = (packed.folder.parent / "held_out.txt").read_bytes()
    manifest = record["manifest"]
    assert 0 <= len(text) - manifest["bytes"]["validation"] < 3 * 20  # empty lines between documents
    lines = tables.languages_table({"German": record, "Japanese": record}).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:12]] == ["German"] * 5 + ["Japanese"] * 5
    for line, one in zip(lines[2:4], tables.runs_of(record, REFERENCE), strict=True):
        whole = one["texts"]["validation"]["nats"] * manifest["tokens"]["validation"]
        assert f"| ≤ {whole / math.log(2) / manifest['bytes']['validation']:.3f} | 1 |" in line
    halved = manifest["tokens"] | {"validation": manifest["tokens"]["validation"] / 2}
    coarser = record | {"manifest": manifest | {"tokens": halved}}
    cells = [tables.languages_table({"German": one}).splitlines()[6].split("|")[4] for one in (record, coarser)]
    assert float(cells[0]) == pytest.approx(2 * float(cells[1]), abs=2e-3)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda record: record.pop("measured_with"), "quality_cpu lacks measured_with"),
        (lambda record: record["runs"][1].pop("head_parameters"), r"quality_cpu.runs\[1\] lacks head_parameters"),
        (lambda record: record["best"].pop(REFERENCE), "quality_cpu.best lacks mdlm"),
        (lambda record: record["runs"][0]["texts"]["other"].update(nats=None), "nats should be"),
    ],
)
def test_older_records_are_not_shown(record, tmp_path, monkeypatch, damage, message):
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    assert tables.read_quality("cpu") == record
    damage(record)
    (tmp_path / "quality_cpu.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=message):
        tables.read_quality("cpu")


def test_missing_records_are_not_shown(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    monkeypatch.setattr(ablation_table, "RESULTS", tmp_path)
    with pytest.raises(ValueError, match=r"quality_gpu\.json is missing"):
        tables.read_quality("gpu")
    with pytest.raises(ValueError, match=r"ablations\.json is missing"):
        ablation_table.read_part("choices")
    with pytest.raises(ValueError, match=r"ablations_candidates\.json is missing"):
        ablation_table.read_part("candidates")
