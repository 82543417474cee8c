"""The comparison of models: equal budgets, one protocol, texts kept apart, ratios of paired windows."""

import argparse
import itertools
import json
import math
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.models import tiny_model
from helpers.processes import REPOSITORY, SAMPLE
from transformers import GPT2LMHeadModel

from benchmarks.contenders import (
    CONTENDERS,
    REFERENCE,
    budget_config,
    gpt2_for_budget,
    gpt2_parameters,
    reference_parameters,
    same_depth_config,
    unclustered_tree,
)
from benchmarks.quality import (
    ablation_table,
    ablation_trees,
    ablations,
    autoregressive,
    packed_data,
    perplexity,
    run_queue,
    tables,
    training,
)
from benchmarks.quality import record as quality_record
from modeling_treediff import TreeDiffConfig, TreeDiffForDiffusionLM, VocabularyTree, corrupt
from modeling_treediff.training.run import loop

RESULTS = REPOSITORY / "benchmarks" / "results"
ZERO_SHOT_NAMES = {"web_bible", "python_doc", "perl_doc", "libreoffice_help"}
SIZES = {
    "cpu": (8192, 4, perplexity.SMALL),
    "half-width": (50_257, 8, perplexity.PROTOCOLS["gpu"].sizes),
    "memory": (50_257, 12, {"hidden_size": 768, "num_attention_heads": 12, "max_position_embeddings": 512}),
}


@pytest.mark.parametrize("form", SIZES)
@pytest.mark.parametrize("name", CONTENDERS)
def test_contenders_have_the_parameters_of_mdlm(name, form):
    vocab_size, layers, sizes = SIZES[form]
    budget = reference_parameters(vocab_size, layers, **sizes)
    contender = CONTENDERS[name]
    config = budget_config(contender, unclustered_tree(contender, vocab_size), budget, **sizes)
    with torch.device("meta"):
        model = TreeDiffForDiffusionLM(config)
    assert abs(sum(parameter.numel() for parameter in model.parameters()) - budget) <= 0.01 * budget


@pytest.mark.parametrize("form", SIZES)
def test_gpt2_has_the_parameters_of_mdlm(form):
    vocab_size, layers, sizes = SIZES[form]
    budget = reference_parameters(vocab_size, layers, **sizes)
    window, heads = sizes["max_position_embeddings"], sizes["num_attention_heads"]
    config = gpt2_for_budget(vocab_size, window, budget, sizes["hidden_size"], heads, eos_token_id=0)
    with torch.device("meta"):
        model = GPT2LMHeadModel(config)
    counted = sum(parameter.numel() for parameter in model.parameters())
    assert counted == gpt2_parameters(config)
    assert abs(counted - budget) <= 0.01 * budget


@pytest.mark.parametrize("name", CONTENDERS)
def test_contenders_differ_in_nothing_but_what_their_row_says(name):
    vocab_size, layers, sizes = 512, 2, perplexity.PROTOCOLS["tiny"].sizes
    contender, reference = CONTENDERS[name], CONTENDERS[REFERENCE]
    tree, flat = unclustered_tree(contender, vocab_size), unclustered_tree(reference, vocab_size)
    budget = reference_parameters(vocab_size, 8, **sizes)
    shape = {"tree_depth", "max_branching", "num_tree_nodes", "tree_sha256"} if contender.depth > 1 else set()
    spent = {"num_hidden_layers", "intermediate_size"}
    made = [budget_config(one, over, budget, **sizes) for one, over in ((contender, tree), (reference, flat))]
    as_deep = [same_depth_config(one, over, layers, **sizes) for one, over in ((contender, tree), (reference, flat))]
    pairs = ((*made, spent), (*as_deep, set()))
    for config, other, allowed in pairs:
        fields = [field for field in TreeDiffConfig.__annotations__ if getattr(config, field) != getattr(other, field)]
        own = {field for field, value in contender.fields.items() if getattr(other, field) != value}
        assert set(fields) - allowed == own | shape
        assert all(getattr(config, field) == value for field, value in contender.fields.items())


def test_mdlms_published_loss_of_our_logits_is_our_loss():
    """Sahoo et al. 2024 (arXiv 2406.07524), as published: log-linear noise, SUBS, dsigma / expm1(sigma)."""
    model = tiny_model(VocabularyTree.flat(20)).double()
    tokens = torch.randint(0, 20, (6, 10), generator=torch.Generator().manual_seed(0))
    t = torch.rand(6, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).clamp(min=0.01)
    batch = corrupt(tokens, model.tree, model.schedule, t, torch.Generator().manual_seed(2))
    output = model(batch.input_ids, labels=batch.labels, timesteps=t)

    mask = 20
    sigma, rate = -torch.log1p(-t), 1 / (1 - t)
    logits = torch.cat((output.logits, torch.zeros(6, 10, 1, dtype=torch.float64)), dim=-1)  # a score for the mask
    logits[..., mask] = -math.inf
    log_p = logits - logits.logsumexp(dim=-1, keepdim=True)
    clean = batch.input_ids != mask
    log_p[clean] = -math.inf
    log_p[clean, batch.input_ids[clean]] = 0.0
    log_p_theta = log_p.gather(-1, tokens[..., None])[..., 0]
    published = -log_p_theta * (rate / torch.expm1(sigma))[:, None]
    torch.testing.assert_close(output.loss, published.mean(), rtol=1e-10, atol=0)


def test_a_text_is_never_both_trained_on_and_kept_for_zero_shot(tmp_path):
    kept, copy, other = (tmp_path / f"{name}.txt" for name in ("kept", "copy", "other"))
    kept.write_text("the same words")
    copy.write_text("the same words")
    other.write_text("different words")
    packed_data.check_apart([other], [kept])
    for trained in (kept, copy):
        with pytest.raises(ValueError, match=r"kept\.txt is a zero-shot text"):
            packed_data.pack(tmp_path / "data", str(SAMPLE), [other, trained], None, [kept], (2,))
    assert not (tmp_path / "data").exists()


def test_zero_shot_texts_have_names_of_their_own(tmp_path):
    names = ("text.txt", "training.txt", "other.txt", "other.md")
    paths = [tmp_path / name for name in names]
    for path in paths:
        path.write_text(f"words of {path.name}")
    text, reserved, *twice = paths
    with pytest.raises(ValueError, match="names of their own, other than training"):
        packed_data.pack(tmp_path / "data", str(SAMPLE), [text], None, [reserved], (2,))
    with pytest.raises(ValueError, match="names of their own, other than other"):
        packed_data.pack(tmp_path / "data", str(SAMPLE), [text], None, twice, (2,))
    with pytest.raises(ValueError, match="holds no packed texts: make them with benchmarks.quality.perplexity pack"):
        packed_data.PackedData.load(tmp_path / "data")


def test_short_documents_are_joined_and_nothing_is_lost(tmp_path):
    documents = ["a" * 6000, "b" * 100, "c" * 4900, "d" * 4900, "e" * 99, "f" * 10, "g" * 10]
    (tmp_path / "text.txt").write_text("\n\n".join(documents))
    joined = packed_data.long_documents(tmp_path / "text.txt")
    assert [len(one) for one in joined] == [6000, 5002, 5013, 10]
    assert "\n\n".join(joined) == "\n\n".join(documents)


def test_shared_runs_of_tokens_are_those_that_a_search_finds():
    generator = np.random.default_rng(0)
    trained, row = generator.integers(0, 5, 3000), generator.integers(0, 5, 400)
    row[100:150] = trained[1000:1050]
    known = {tuple(trained[start : start + 13]) for start in range(2988)}
    found = [tuple(row[start : start + 13]) in known for start in range(388)]
    assert sum(found) >= 38
    assert packed_data.shared_tokens(trained, row) == pytest.approx(np.mean(found))
    assert packed_data.shared_tokens(trained, row[:5]) == 0.0


def test_no_recorded_run_was_trained_on_a_zero_shot_text():
    names = set()
    for path in RESULTS.glob("**/*.json"):
        record = json.loads(path.read_text(encoding="utf-8"))
        manifest = record.get("manifest", {"training": [], "zero_shot": []})
        kept = {file["sha256"] for file in manifest["zero_shot"]}
        assert not kept & {file["sha256"] for file in manifest["training"]}, path
        texts = [*manifest["training"], record.get("text"), record.get("validation_text")]
        names |= {text["name"].split(".")[0] for text in texts if isinstance(text, dict)}
    assert "train" in names
    assert not names & ZERO_SHOT_NAMES


RUNS = ((REFERENCE, 0), ("tdlm-child", 0), ("ar", 0), (REFERENCE, 1), ("tdlm-child", 1))
COMPARED = (REFERENCE, "tdlm-child", "ar")
TINY = perplexity.PROTOCOLS["tiny"]


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """A text of a few thousand tokens, its trees, and another text for zero-shot."""
    folder = tmp_path_factory.mktemp("packed")
    generator = np.random.default_rng(0)
    words = ["state", "union", "people", "war", "peace", "government", "the", "of", "and", "to"]
    for name in ("text", "held_out", "other"):
        documents = [" ".join(generator.choice(words, 60)) for _ in range(20)]
        (folder / f"{name}.txt").write_text("\n\n".join(documents))
    texts = [folder / f"{name}.txt" for name in ("text", "held_out", "other")]
    packed_data.pack(folder / "data", str(SAMPLE), texts[:1], texts[1], texts[2:], (2, 3))
    return packed_data.PackedData.load(folder / "data")


@pytest.fixture(scope="module")
def runs(packed, tmp_path_factory):
    """MDLM, TDLM and GPT-2 after a few steps, and a second seed of the first two."""
    folder = tmp_path_factory.mktemp("runs")
    for name, seed in RUNS:
        run = quality_record.Run(name, 1e-3, seed)
        training.run(name, packed, TINY, folder / run.name, 1e-3, seed)
    return folder


@pytest.fixture
def records(runs):
    return quality_record.read_runs(runs)


def test_a_run_says_what_made_it_and_measures_every_text(records, packed):
    for record in records:
        assert list(record["texts"]) == packed.measured == ["selection", "validation", "other"]
        assert record["trained"]["training_sha256"] == packed.training_sha256
        assert record["trained"]["commit"] and record["command"]
        assert [point["step"] for point in record["curve"]] == [4, 8]
        for figures in record["texts"].values():
            windows = np.array(figures["windows"])
            assert len(windows) == 8
            assert sum(figures.get("level_losses", [windows.mean()])) == pytest.approx(windows.mean(), abs=1e-5)


def test_a_measurement_is_repeated_without_another_training(packed, runs, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(runs / "tdlm-child-lr0.001-seed0", folder)
    before = json.loads((folder / "run.json").read_text())
    weights = (folder / "model" / "model.safetensors").read_bytes()
    (folder / "run.json").unlink()
    training.run("tdlm-child", packed, TINY, folder, 1e-3, 0)
    after = json.loads((folder / "run.json").read_text())
    assert after["texts"] == before["texts"] and after["trained"] == before["trained"]
    assert (folder / "model" / "model.safetensors").read_bytes() == weights


@pytest.mark.parametrize("name", COMPARED)
def test_a_run_asked_to_stop_goes_on_to_the_same_end(packed, runs, tmp_path, monkeypatch, name):
    """The fourth step of eight is interrupted: weights and losses are those of the run that was not."""
    run = quality_record.Run(name, 1e-3, 0)
    module = autoregressive if name == "ar" else loop
    original, stops = module.StopRequest, []

    class StopAfterThree(original):
        @property
        def number(self):
            stops.append(1)
            return signal.SIGTERM if len(stops) > 3 else 0

    with monkeypatch.context() as patch:
        patch.setattr(module, "StopRequest", StopAfterThree)
        with pytest.raises(SystemExit):
            training.run(name, packed, TINY, tmp_path / run.name, 1e-3, 0)
    assert not (tmp_path / run.name / "run.json").exists()
    assert not (tmp_path / run.name / "model" / "model.safetensors").exists()
    training.run(name, packed, TINY, tmp_path / run.name, 1e-3, 0)
    ended, whole = (folder / run.name / "model" / "model.safetensors" for folder in (tmp_path, runs))
    assert ended.read_bytes() == whole.read_bytes()
    lines = [
        [json.loads(line)["loss"] for line in (folder / run.name / "model" / "metrics.jsonl").open()]
        for folder in (tmp_path, runs)
    ]
    assert lines[0] == lines[1] and len(lines[0]) == 8


def test_a_folder_of_another_training_is_refused(packed, runs, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(runs / "tdlm-child-lr0.001-seed0", folder)
    with pytest.raises(ValueError, match="holds a training with another learning_rate: take another --folder"):
        training.run("tdlm-child", packed, TINY, folder, 2e-3, 0)
    other = replace(packed, rows=packed.rows | {"training": packed.rows["training"][:-1]})
    with pytest.raises(ValueError, match="another training_sha256"):
        training.run("tdlm-child", other, TINY, folder, 1e-3, 0)


def test_a_training_that_diverges_is_a_result(packed, tmp_path, monkeypatch):
    def diverge(*_):
        raise FloatingPointError("the loss is no number")

    monkeypatch.setattr(training, "train_model", diverge)
    training.run(REFERENCE, packed, TINY, tmp_path / "run", 1e-3, 0)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["diverged"] == "the loss is no number" and "texts" not in record
    assert quality_record.best_runs([record]) == {}


def test_all_contenders_see_the_same_windows_in_the_same_order(packed, tmp_path, monkeypatch):
    """What the diffusion models' loss is told and what GPT-2's is, step by step."""
    seen = {"tdlm-child": [], "ar": []}
    forward, token_nats = TreeDiffForDiffusionLM.forward, autoregressive.token_nats

    def diffusion(self, *args, **kwargs):
        if self.training:
            seen["tdlm-child"].append(kwargs["labels"].clone())
        return forward(self, *args, **kwargs)

    def left_to_right(model, tokens):
        if model.training:
            seen["ar"].append(tokens.clone())
        return token_nats(model, tokens)

    monkeypatch.setattr(TreeDiffForDiffusionLM, "forward", diffusion)
    monkeypatch.setattr(autoregressive, "token_nats", left_to_right)
    for name in seen:
        training.run(name, packed, TINY, tmp_path / name, 1e-3, 3)
    assert len(seen["ar"]) == TINY.steps
    for labels, tokens in zip(seen["tdlm-child"], seen["ar"], strict=True):
        torch.testing.assert_close(labels, tokens)


def test_gpt2s_loss_counts_every_token_of_a_window_given_those_before_it():
    """Against one token at a time, from the end-of-sequence token on."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(gpt2_for_budget(30, 6, 20_000, 32, 4, eos_token_id=7)).eval()
    tokens = torch.randint(0, 30, (3, 6))
    nats = autoregressive.token_nats(model, tokens)
    for row, sequence in enumerate(tokens):
        before = [7]
        for place, token in enumerate(sequence.tolist()):
            log_p = model(torch.tensor([before])).logits[0, -1].log_softmax(-1)
            torch.testing.assert_close(nats[row, place], -log_p[token])
            before.append(token)


def test_the_bound_of_windows_is_the_estimate_of_each(packed):
    model = tiny_model(packed.tree(CONTENDERS["tdlm-child"]), max_position_embeddings=16).eval()
    windows = packed_data.spread(packed.windows("validation", 16), 10)
    nats, levels = training.bound_of_windows(model, windows, samples=2)
    reference = model.nelbo(windows, num_samples=2, batch_size=64, generator=torch.Generator().manual_seed(0))
    assert float(nats.mean()) == pytest.approx(reference.value)
    assert levels == pytest.approx(reference.level_losses)


def test_learning_rates_are_chosen_by_windows_that_are_not_reported(packed, records):
    parts = [packed.measured_windows(name, 16, 8) for name in ("selection", "validation")]
    rows = [{tuple(row.tolist()) for row in part} for part in parts]
    assert not rows[0] & rows[1] and len(rows[0]) == len(rows[1]) == 8
    good = next(record for record in records if record["contender"] == REFERENCE)
    other = good["texts"] | {"selection": {"windows": [9.0]}, "validation": {"windows": [0.0]}}
    worse = good | {"learning_rate": 9.0, "texts": other}
    assert quality_record.best_runs([worse, good])[REFERENCE] is good


def test_intervals_are_over_blocks_and_cover_as_often_as_they_say():
    """Windows of a document share an offset: 95 % intervals over blocks cover the mean in 0.92..0.98 of 2,000 texts."""
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(2000):
        offset = np.repeat(generator.normal(size=20), 20)
        low, high = quality_record.estimate(offset + generator.normal(size=400))["interval"]
        covered += low <= 0 <= high
    assert 0.92 <= covered / 2000 <= 0.98


def test_the_record_has_ratios_of_paired_windows(records, packed, tmp_path):
    quality_record.write_quality(tmp_path / "quality.json", records, packed.manifest, COMPARED)
    written = json.loads((tmp_path / "quality.json").read_text())
    assert set(written["best"]) == set(COMPARED)
    own = written["best"][REFERENCE]["ratios"]
    assert all(figures == {"ratio": 1.0, "interval": [1.0, 1.0]} for seed in own.values() for figures in seed.values())
    of = {(record["contender"], record["seed"]): record["texts"]["other"]["windows"] for record in records}
    assert set(written["best"]["tdlm-child"]["ratios"]) == {"0", "1"}
    for seed, figures in written["best"]["tdlm-child"]["ratios"].items():
        nats = [np.mean(of[name, int(seed)]) for name in ("tdlm-child", REFERENCE)]
        assert figures["other"]["ratio"] == pytest.approx(math.exp(nats[0] - nats[1]))
        low, high = figures["other"]["interval"]
        assert low < figures["other"]["ratio"] < high
    assert not any("windows" in figures for run in written["runs"] for figures in run["texts"].values())


def test_runs_that_do_not_compare_are_not_put_together(records, packed, tmp_path):
    def written(changed, contenders=COMPARED):
        quality_record.write_quality(tmp_path / "quality.json", changed, packed.manifest, contenders)

    first = records[0]
    with pytest.raises(ValueError, match="was not run under the protocol of the others: protocol differ"):
        written([first | {"protocol": first["protocol"] | {"steps": 9}}, *records[1:]])
    with pytest.raises(ValueError, match="commit of training differ"):
        written([first | {"trained": first["trained"] | {"commit": "0123"}}, *records[1:]])
    with pytest.raises(ValueError, match=r"missing: mdlm-lr0\.001-seed1; benchmarks"):
        written([record for record in records if (record["contender"], record["seed"]) != (REFERENCE, 1)])
    with pytest.raises(ValueError, match=r"missing: hdlm-lr0\.001-seed0"):
        written(records, (*COMPARED, "hdlm"))
    with pytest.raises(ValueError, match=r"not of the grid: ar-lr0\.003-seed0"):
        written([*records, next(one for one in records if one["contender"] == "ar") | {"learning_rate": 0.003}])
    with pytest.raises(ValueError, match="has 1 parameters, MDLM"):
        written([first | {"parameters": 1}, *records[1:]] if first["contender"] != REFERENCE else records[:0])
    with pytest.raises(ValueError, match="There are no finished runs"):
        written([])
    assert not (tmp_path / "quality.json").exists()


@pytest.fixture
def record(records, packed, tmp_path):
    quality_record.write_quality(tmp_path / "quality_cpu.json", records, packed.manifest, COMPARED)
    return json.loads((tmp_path / "quality_cpu.json").read_text())


def test_tables_show_every_contender_and_seed(record, tmp_path):
    lines = tables.main_table(record).splitlines()
    names = [line.split("|")[1].split(",")[0].strip() for line in lines[2:7]]
    assert names == ["MDLM (flat)"] * 2 + ["TDLM"] * 2 + ["autoregressive (GPT-2)"]
    ratio = record["best"]["tdlm-child"]["ratios"]["1"]["validation"]["ratio"]
    assert f"{ratio:.3f} (" in lines[5] and lines[2].rstrip(" |").endswith(" 1")
    assert "≤" in lines[2] and "≤" not in lines[6]
    assert tables.zero_shot_table(record).splitlines()[0] == "| perplexity; to MDLM's | other |"
    assert tables.grid_table(record).splitlines()[0] == "| nats/token | learning rate 0.001 |"
    assert "with a better rate perhaps beyond: MDLM (flat); TDLM" in tables.grid_table(record)
    ratio = record["best"]["ar"]["ratios"]["0"]["validation"]["ratio"]
    headline = tables.headline(record)
    assert "(TDLM, child head) to MDLM's" in headline and f"autoregressive (GPT-2) {ratio:.3f}." in headline
    tables.draw(record, dict.fromkeys(COMPARED, 100.0), tmp_path / "quality.png")
    assert (tmp_path / "quality.png").read_bytes().startswith(b"\x89PNG")


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


def test_records_name_no_place_of_a_machine():
    for path in RESULTS.glob("**/*.json"):
        assert not re.search(r"(?<![\w.])/(work|tmp|home|root|mnt|Users)/", path.read_text(encoding="utf-8")), path


WRITE = "import sys, pathlib; pathlib.Path(sys.argv[1], 'run.json').write_text(sys.argv[2])"


def test_what_is_done_is_not_run_again(tmp_path):
    queue = run_queue.RunQueue(tmp_path, parallel=2)
    for text in ("first", "second"):
        queue.take({name: ["-c", WRITE, str(tmp_path / name), text] for name in ("a", "b", "c")})
    assert [(tmp_path / name / "run.json").read_text() for name in ("a", "b", "c")] == ["first"] * 3


def test_a_failed_run_is_said_and_left_for_another_try(tmp_path, capfd):
    queue = run_queue.RunQueue(tmp_path)
    with pytest.raises(SystemExit, match="Not all runs are done"):
        queue.take({"bad": ["-c", "raise SystemExit(3)"], "good": ["-c", WRITE, str(tmp_path / "good"), "x"]})
    assert "bad: stopped (3), see" in capfd.readouterr().out
    assert (tmp_path / "good" / "run.json").exists()


WAIT = """
import pathlib, signal, sys, time
def stop(*_):
    pathlib.Path(sys.argv[1], "saved").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
pathlib.Path(sys.argv[1], "begun").touch()
time.sleep(60)
"""


def ask_once_begun(folder, ask):
    """Ask to stop, as soon as the run in the folder listens."""

    def watch():
        while not (folder / "begun").exists():
            time.sleep(0.05)
        ask()

    threading.Thread(target=watch, daemon=True).start()


def test_at_the_deadline_runs_are_asked_to_save(tmp_path, monkeypatch):
    queue = run_queue.RunQueue(tmp_path, seconds=1000.0)
    wait = subprocess.Popen.wait

    def until_begun(process, timeout=None):
        while timeout is not None and not (tmp_path / "long" / "begun").exists():
            time.sleep(0.05)
        queue.seconds = 0.0
        return wait(process, timeout and 0.01)

    monkeypatch.setattr(subprocess.Popen, "wait", until_begun)
    with pytest.raises(SystemExit, match="goes on with them"):
        queue.take({name: ["-c", WAIT, str(tmp_path / name)] for name in ("long", "never-begun")})
    assert (tmp_path / "long" / "saved").exists()
    assert not (tmp_path / "never-begun").exists()


def test_a_queue_asked_to_stop_leaves_no_process_behind(tmp_path):
    queue = run_queue.RunQueue(tmp_path)
    ask_once_begun(tmp_path / "long", lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit, match="goes on with them"):
        queue.take({name: ["-c", WAIT, str(tmp_path / name)] for name in ("long", "never-begun")})
    assert (tmp_path / "long" / "saved").exists() and not queue.processes
    assert not (tmp_path / "never-begun").exists()


def test_two_processes_do_not_work_on_one_run(tmp_path):
    with (
        run_queue.locked(tmp_path),
        pytest.raises(BlockingIOError, match="Another process works on"),
        run_queue.locked(tmp_path),
    ):
        pass
    with run_queue.locked(tmp_path):
        pass


def test_level_weights_change_the_training_loss_alone():
    model = tiny_model(VocabularyTree.random(20, 5, 2)).train()
    tokens = torch.randint(0, 20, (16, 8), generator=torch.Generator().manual_seed(0))
    batch = corrupt(tokens, model.tree, model.schedule, generator=torch.Generator().manual_seed(1))
    arguments = {"input_ids": batch.input_ids, "labels": batch.labels, "timesteps": batch.timesteps}
    plain = model(**arguments)
    with ablations.weighted_levels((1.5, 0.5)):
        weighted = model(**arguments)
    torch.testing.assert_close(weighted.loss, plain.level_losses @ torch.tensor([1.5, 0.5]))
    assert weighted.loss != plain.loss
    torch.testing.assert_close(model(**arguments).loss, plain.loss)


@pytest.mark.parametrize("depth", [2, 3])
def test_other_orders_of_siblings_keep_the_clusters(packed, depth):
    sources = ablation_trees.TreeSources(packed, "", "")
    trees = [sources.build("corpus", order, depth, None) for order in ("frequency", "random", "aligned")]
    internal = range(trees[0].vocab_size, trees[0].num_nodes)
    clusters = [{frozenset(np.flatnonzero((tree.ancestors == node).any(dim=1))) for node in internal} for tree in trees]
    assert clusters[0] == clusters[1] == clusters[2]
    assert len({tree.sha256 for tree in trees}) == 3


def test_alignment_gives_like_children_of_different_parents_one_slot():
    """Four clusters of three tokens, each token its cluster's centre plus one of three shared directions, shuffled."""
    generator = np.random.default_rng(0)
    centre_KE, direction_CE = 10 * generator.normal(size=(4, 3)), np.eye(3)
    shuffled = [generator.permutation(3) for _ in range(4)]
    paths = np.array([(cluster, slot) for cluster in range(4) for slot in range(3)])
    embeddings = np.array([centre_KE[cluster] + direction_CE[shuffled[cluster][slot]] for cluster, slot in paths])
    tree = ablation_trees.aligned(VocabularyTree.from_paths(paths, 4), embeddings)
    found = [tree.child_slot[tree.ancestors[3 * cluster : 3 * cluster + 3, 2]].tolist() for cluster in range(4)]
    by_direction = {
        tuple(slots[list(order).index(direction)] for direction in range(3))
        for slots, order in zip(found, shuffled, strict=True)
    }
    assert len(by_direction) == 1


def test_every_variant_changes_something_and_keeps_the_budget():
    base = ablations.VARIANTS[ablations.BASE]
    vocab_size, layers, sizes = SIZES["cpu"]
    budget = reference_parameters(vocab_size, layers, **sizes)
    for name, variant in ablations.VARIANTS.items():
        same = replace(variant, group=base.group, title=base.title) == base
        assert same == (name == ablations.BASE)
        branching = variant.branching or math.ceil(vocab_size ** (1 / variant.depth) - 1e-9)
        tree = VocabularyTree.random(vocab_size, branching, variant.depth)
        config = budget_config(variant.contender, tree, budget, **sizes)
        assert abs(sum(config.count_parameters().values()) - budget) <= 0.01 * budget, name


def test_ablations_are_shorter_but_never_longer_than_the_protocol():
    assert ablations.shortened(TINY).steps == TINY.steps
    assert ablations.shortened(perplexity.PROTOCOLS["cpu"]).steps == ablations.STEPS


def test_ablations_run_and_are_put_into_one_table(packed, tmp_path, monkeypatch):
    """Three variants: in the table, with the difference of their windows to those of their base."""
    wanted = {name: ablations.VARIANTS[name] for name in (ablations.BASE, "coarse", "mdlm")}
    monkeypatch.setattr(ablations, "VARIANTS", wanted)
    monkeypatch.setattr(ablations.PackedData, "load", lambda _: packed)
    runs = ablations.wanted_runs("choices")
    assert sorted(runs) == [(ablations.BASE, 0), (ablations.BASE, 1), ("coarse", 0), ("mdlm", 0)]
    for name, seed in runs:
        options = argparse.Namespace(form="tiny", embeddings="", seed=seed, part="candidates")  # `tiny` is short
        ablations.run(name, options, tmp_path / f"{name}-seed{seed}")
    records = quality_record.read_runs(tmp_path)
    ablations.collect(tmp_path / "ablations.json", records, runs)
    monkeypatch.setattr(ablation_table, "RESULTS", tmp_path)
    lines = ablation_table.ablation_table(ablation_table.read_part("choices")).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:6]] == ["base", "base", "level weights", "MDLM"]
    nats = {(one["variant"], one["seed"]): np.mean(one["windows"]) for one in records}
    assert f"{nats['coarse', 0] - nats[ablations.BASE, 0]:+.3f} ±" in lines[4]
    with pytest.raises(ValueError, match="missing: mdlm, seed 0. benchmarks"):
        ablations.collect(tmp_path / "other.json", [one for one in records if one["variant"] != "mdlm"], runs)
    ablations.collect(tmp_path / "ablations_candidates.json", records, runs)
    with pytest.raises(ValueError, match="lacks to_mdlm"):  # of the second seed
        ablation_table.read_part("candidates")
    ablations.collect(tmp_path / "ablations_candidates.json", records, [run for run in runs if run[1] == 0])
    candidates = ablation_table.read_part("candidates")
    means = [nats[name, 0] for name in ablation_table.ranked_candidates(candidates)]
    assert means == sorted(means)
    _, line = (line for line in ablation_table.candidates_table(candidates).splitlines() if "coarse level" in line)
    texts = {one["variant"]: one["further"] for one in records if one["seed"] == 0}
    assert list(texts["coarse"]) == ["validation", "other", *ablations.given_places(16)]
    for text, measured in texts["coarse"].items():
        difference = np.mean(measured["windows"]) - np.mean(texts["mdlm"][text]["windows"])
        assert f"| {math.exp(difference):.3f} (" in line


def test_trees_are_every_source_in_every_order_and_the_table_has_them_all():
    runs = ablations.wanted_runs("trees")
    first = [ablations.VARIANTS[name] for name, seed in runs if seed == 0]
    pairs = [(variant.source, variant.order) for variant in first]
    assert sorted(pairs) == sorted(itertools.product(ablations.SOURCES, ablations.ORDERS))
    assert {name for name, _ in runs}.isdisjoint({name for name, _ in ablations.wanted_runs("choices")} - {"base"})
    nats = np.random.default_rng(0).uniform(5, 6, (len(runs), 40))
    shown = [
        {"variant": name, "seed": seed, "difference": quality_record.estimate(own - nats[0])}
        | quality_record.estimate(own)
        for (name, seed), own in zip(runs, nats, strict=True)
    ]
    record = {"protocol": training.plain({"steps": 1, "batch_size": 1, "sequence_length": 1}), "learning_rate": 1.0}
    record |= {"trained_with": {"device": "", "commit": "", "versions": {"torch": ""}}, "runs": shown}
    cells = [cell for line in ablation_table.trees_table(record).splitlines()[2:7] for cell in line.split(" | ")[1:]]
    for index, (source, order) in enumerate(pairs):
        cell = cells[list(ablations.SOURCES).index(source) * 3 + list(ablations.ORDERS).index(order)]
        assert cell.startswith(f"{nats[index].mean():.3f}")
        assert (f"({(nats[index] - nats[0]).mean():+.3f} ±" in cell) == (index > 0)
    record["runs"] = shown[:-2]
    with pytest.raises(ValueError, match="ablations_trees lacks trees: frequency, aligned"):
        ablation_table.trees_table(record)


def test_the_default_is_the_candidate_that_predicted_best():
    best, *_ = ablation_table.ranked_candidates(ablation_table.read_part("candidates"))
    config = TreeDiffConfig.from_tree(VocabularyTree.random(20, 5, 2))
    fields = ablations.VARIANTS[best].contender.fields
    assert {name: getattr(config, name) for name in fields} == dict(fields)
    heads = [TreeDiffConfig.from_tree(VocabularyTree.random(20, 20, depth)).head for depth in (1, 2, 3)]
    assert heads == ["child", "node", "child"]


def test_schedules_are_compared_with_nothing_else_changed():
    tree = VocabularyTree.random(20, 5, 2)
    for name, other in ablations.SEQUENTIAL.items():
        own, sequential = (
            TreeDiffConfig.from_tree(tree, **ablations.VARIANTS[one].contender.fields) for one in (name, other)
        )
        differing = [field for field, value in own.to_dict().items() if sequential.to_dict()[field] != value]
        assert differing == ["schedule"] and sequential.schedule == "sequential"


def test_with_a_part_of_the_text_given_only_the_rest_counts(packed):
    """Places around a gap, or before it; the figure is the bound on the rest, per token of the rest."""
    model, windows = tiny_model(packed.tree(CONTENDERS["tdlm-child"])), packed.measured_windows("other", 16, 6)
    places = ablations.given_places(16)
    assert [row.int().tolist() for row in places.values()] == [[1] * 8 + [0] * 8, [1] * 4 + [0] * 8 + [1] * 4]
    for given_T in places.values():
        nats, levels = training.bound_of_windows(model, windows, 2, given_T=given_T)
        generator, prefix = torch.Generator().manual_seed(0), given_T.expand_as(windows)
        expected = model.nelbo(windows, fixed_mask=prefix, num_samples=2, batch_size=64, generator=generator)
        assert float(nats.mean()) == pytest.approx(expected.value) == pytest.approx(sum(levels))
        changed = windows.where(given_T, windows.flip(0))
        generator.manual_seed(0)
        other = model.nelbo(changed, fixed_mask=prefix, num_samples=2, batch_size=64, generator=generator)
        assert other.value != expected.value and not expected.token_losses[:, given_T].any()


def test_candidates_for_a_default_are_variants_trained_with_every_seed_of_the_protocol():
    runs = ablations.wanted_runs("candidates")
    assert {name for name, _ in runs} == set(ablations.CANDIDATES) <= set(ablations.VARIANTS)
    for name in ablations.CANDIDATES:
        assert tuple(seed for one, seed in runs if one == name) == perplexity.PROTOCOLS["cpu"].seeds
