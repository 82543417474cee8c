"""The benchmarks of generation on tiny models, end to end; what they refuse; what they show."""

import json
import math
import shutil
import sys
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from helpers.models import SEQUENTIAL, tiny_model
from helpers.processes import SAMPLE
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from benchmarks.generation import figures, quality, samplers, speed
from modeling_treediff import TreeDiffGenerationConfig, VocabularyTree
from modeling_treediff.evaluation import GenerativePerplexity
from modeling_treediff.text import read_documents

LENGTH = 8


@pytest.fixture(scope="module")
def judge(tokenizer):
    torch.manual_seed(0)
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64, "vocab_size": len(tokenizer)}
    return GenerativePerplexity(GPT2LMHeadModel(GPT2Config(initializer_range=0.3, **sizes)).eval(), tokenizer)


@pytest.fixture(scope="module")
def folders(tokenizer, judge, tmp_path_factory):
    """Saved: two models over one tokenizer, a judge, and a text."""
    folder = tmp_path_factory.mktemp("benchmark")
    tree = VocabularyTree.from_pretrained(SAMPLE)
    special = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    # One level after the other: as many passes as steps.
    models = {
        "tree": tiny_model(tree, **SEQUENTIAL, **special),
        "flat": tiny_model(VocabularyTree.flat(tree.vocab_size), **special),
    }
    for name, model in {**models, "judge": judge.model}.items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    (folder / "text.txt").write_text(next(iter(read_documents(SAMPLE / "validation.txt.xz")))[:4000], "utf-8")
    return folder


@pytest.fixture
def run(folders, tmp_path, monkeypatch):
    """Run the benchmark; returns its record."""

    def run_with(*arguments, models=("tree",), passes=("2", "4"), texts=3):
        command = ["quality", *(f"{name}={folders / name}" for name in models)]
        command += ["--judge", str(folders / "judge"), "--text", str(folders / "text.txt"), "--length", str(LENGTH)]
        command += ["--texts", str(texts), "--batch-size", "2", "--passes", *passes, *arguments]
        command += ["--record", str(tmp_path / "record.json"), "--figure", str(tmp_path / "images" / "figure.png")]
        monkeypatch.setattr(sys, "argv", command)
        quality.main()
        return json.loads((tmp_path / "record.json").read_text("utf-8"))

    return run_with


SOME = ("--samplers", "random", "confidence", "first hitting", "confidence, threshold 0.1", "random, remasking")


def test_a_run_measures_every_point_and_a_second_one_only_what_is_new(run, tmp_path):
    first = run(*SOME)
    points = {(point["sampler"], point["num_steps"]): point for point in first["points"]}
    most = 2 * LENGTH
    single = [("first hitting", most), ("confidence, threshold 0.1", most)]
    curves = [("random", 2), ("random", 4), ("confidence", 2), ("confidence", 4), ("random, remasking", 4)]
    assert points.keys() - {("random, remasking", 2)} == {*single, *curves}
    for (sampler, passes), point in points.items():
        assert point["forward_passes"] == passes or "threshold" in sampler
        assert point["statistics"]["num_texts"] == 3 and point["statistics"]["num_tokens"] <= 3 * LENGTH
        assert point["sampling_dtype"] == "float64" and point["settings"]["num_steps"] == passes
    assert points["confidence, threshold 0.1", most]["forward_passes"] <= most
    assert (tmp_path / "images" / "figure.png").read_bytes().startswith(b"\x89PNG")

    second = run(*SOME, models=("tree", "flat"), passes=("4", "8"))
    assert second["points"][: len(points)] == first["points"]  # their seconds too
    assert second["references"] == first["references"]
    added = {(point["model"], point["sampler"], point["num_steps"]) for point in second["points"][len(points) :]}
    assert {("tree", "random", 8), ("flat", "random", 8), ("flat", "first hitting", LENGTH)} <= added
    assert ("tree", "random", 2) not in added and ("flat", "random", 2) not in added

    shown = figures.quality_table(second)
    assert shown.count("\n| tree | ") == shown.count("\n| flat | ") == 5
    cell = "{:.2f} / {:.2f}".format(*(points["first hitting", most][part][name] for part, name in CELL))
    assert f"{cell}, {most} passes" in shown


CELL = (("judge", "nats_per_token"), ("statistics", "entropy"))


def test_the_same_seed_gives_the_same_figures(run, tmp_path):
    def once():
        record = run("--samplers", "random, temperature 0.8", passes=("4",))
        (tmp_path / "record.json").unlink()
        return [(point["judge"], point["statistics"], point["sample"]) for point in record["points"]]

    assert once() == once()


def test_points_of_another_protocol_or_model_do_not_mix(run, tmp_path):
    record = run("--samplers", "random", passes=("2",))
    with pytest.raises(ValueError, match="another protocol: texts is 3, not 4"):
        run("--samplers", "random", texts=4)
    with pytest.raises(ValueError, match="another protocol: seed is 0, not 1"):
        run("--samplers", "random", "--seed", "1")
    record["models"]["tree"]["weights_sha256"] = "0"
    (tmp_path / "record.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match="another model tree: weights_sha256 is 0, not"):
        run("--samplers", "random")
    (tmp_path / "record.json").unlink()
    with pytest.raises(ValueError, match=r"has \d+ windows of 8 tokens, not 5000"):
        run("--samplers", "random", texts=5000)


def test_a_record_holds_models_of_one_tokenizer(run, folders):
    foreign = AutoTokenizer.from_pretrained(SAMPLE)
    foreign.eos_token = foreign.convert_ids_to_tokens(5)
    shutil.copytree(folders / "flat", folders / "foreign", dirs_exist_ok=True)
    foreign.save_pretrained(folders / "foreign")
    with pytest.raises(ValueError, match="foreign has another tokenizer than the record"):
        run("--samplers", "random", models=("tree", "foreign"))


def test_texts_end_at_their_first_end_of_text(tokenizer, judge):
    end = tokenizer.eos_token_id
    words = tokenizer(" the Union of the States", add_special_tokens=False)["input_ids"]
    measured = quality.figures([[*words, end, *words, end], words, [end]], tokenizer, judge)
    expected = quality.figures([words, words, []], tokenizer, judge)
    assert measured == expected and measured["sample"] == " the Union of the States"
    assert measured["statistics"]["num_tokens"] == 2 * len(words)


def test_references_are_real_text_and_its_parts_in_other_orders(tokenizer, folders, monkeypatch):
    seen = []
    monkeypatch.setattr(quality, "figures", lambda texts, *_: seen.append(texts) or {})
    options = SimpleNamespace(text=folders / "text.txt", texts=10, length=LENGTH, seed=0)
    names = [row["name"] for row in quality.references(None, tokenizer, options)]
    assert names == ["real text", "its words shuffled", "its tokens shuffled"]
    real, words, tokens = seen
    assert all(len(text) == LENGTH for text in real + tokens) and len(real) == len(tokens) == 10
    document = tokenizer((folders / "text.txt").read_text("utf-8"), add_special_tokens=False)["input_ids"]
    starts = [start for start in range(0, len(document) - LENGTH, LENGTH)]
    assert all(any(document[start : start + LENGTH] == text for start in starts) for text in real)
    assert Counter(sum(tokens, [])) == Counter(sum(real, [])) and tokens != real
    for text, shuffled in zip(real, words, strict=True):
        assert Counter(tokenizer.decode(text).split()) == Counter(tokenizer.decode(shuffled).split())


def test_every_sampler_is_a_valid_setting_and_takes_no_passes_that_cannot_move():
    depth, length, passes = 2, 64, [1, 8, 16, 32, 64, 128, 256, 512]
    for name, sampler in samplers.all_samplers().items():
        budgets = sampler.budgets(passes, depth, length)
        assert budgets == [128] if sampler.chooses_passes else budgets[0] == 8
        for budget in budgets:
            settings = TreeDiffGenerationConfig(**sampler.arguments(budget))
            moving = budget - settings.remasking_steps
            assert moving >= depth and (moving <= depth * length or settings.unmasking == "random"), name
            assert settings.remasking_steps == (round(budget / 4) if "remasking" in name else 0)
            assert (settings.temperature, settings.top_p) == (
                0.8 if "0.8" in name and "temp" in name else 1.0,
                0.9 if "top-p" in name else None,
            )
    assert samplers.all_samplers()["random"].arguments(8) == {"top_p": None, "num_steps": 8}


def test_a_damaged_record_is_not_shown(run):
    whole = run("--samplers", "random", passes=("2",))
    check = figures.check_record

    def damaged(change):
        record = json.loads(json.dumps(whole))
        change(record)
        return record

    cases = {
        r"points\[0\] lacks sampling_dtype": lambda record: record["points"][0].pop("sampling_dtype"),
        "nats_per_token should be int | float, is None": lambda record: record["points"][0]["judge"].update(
            nats_per_token=None
        ),
        "entropy is no finite number": lambda record: record["points"][0]["statistics"].update(entropy=math.nan),
        "points is empty": lambda record: record["points"].clear(),
        "a point twice": lambda record: record["points"].append(record["points"][0]),
        "says nothing about other": lambda record: record["points"][0].update(model="other"),
        "no reference called real text": lambda record: record["references"].pop(0),
    }
    check(whole)
    for message, change in cases.items():
        with pytest.raises(ValueError, match=message.replace("|", r"\|")):
            check(damaged(change))


def test_the_speed_benchmark_takes_turns_and_its_parts_sum_up(tmp_path, monkeypatch):
    command = "speed --batch 2 --length 16 --passes 4 --turns 3 --vocabulary 100 --branching 10"
    sizes = ["--hidden-size", "64", "--layers", "1", "--record", str(tmp_path / "speed.json")]
    monkeypatch.setattr(sys, "argv", [*command.split(), *sizes])
    speed.main()
    models = json.loads((tmp_path / "speed.json").read_text("utf-8"))["models"]
    assert list(models) == ["flat", "tree, child head", "tree, node head"]
    assert models["flat"]["ratio"] == 1
    for found in models.values():
        for name in ("milliseconds", "ratio"):
            assert 0 < found[f"{name}_lower_quartile"] <= found[name] <= found[f"{name}_upper_quartile"]
        assert all(found[f"{part}_milliseconds"] > 0 for part in speed.PARTS)
    monkeypatch.setattr(sys, "argv", [*command.replace("--length 16", "--length 1").split(), *sizes])
    with pytest.raises(ValueError, match="4 passes became"):
        speed.main()


def test_the_summary_of_turns_is_the_median_of_ratios():
    def turns(*seconds):
        return [{"all": 4 * some, "backbone": some, "head": 2 * some, "rest": some} for some in seconds]

    slow, fast = turns(0.004, 0.008, 0.012), turns(0.001, 0.004, 0.003)
    summary = speed.summary(fast, slow, passes=4)
    assert summary["ratio"] == pytest.approx(1 / 4)  # of 1/4, 1/2, 1/4
    assert summary["ratio_upper_quartile"] == pytest.approx(3 / 8)
    assert summary["milliseconds"] == pytest.approx(3) and summary["head_milliseconds"] == pytest.approx(1.5)
