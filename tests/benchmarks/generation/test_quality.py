"""Quality of generated texts, end to end: what is measured, repeated and refused."""

import json
import shutil
from collections import Counter
from types import SimpleNamespace

import pytest
from helpers.models import tiny_model
from helpers.processes import SAMPLE
from transformers import AutoTokenizer

from benchmarks.generation import figures, quality
from modeling_treediff import VocabularyTree

LENGTH = 8

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


def test_the_blocks_of_a_text_share_its_passes(run, folders, tokenizer):
    model = tiny_model(VocabularyTree.from_pretrained(SAMPLE), block_size=4, eos_token_id=tokenizer.eos_token_id)
    model.save_pretrained(folders / "blocks")
    tokenizer.save_pretrained(folders / "blocks")
    samplers = ("--samplers", "confidence", "random, remasking")
    record = run(*samplers, models=("tree", "blocks"), passes=("2", "8", "10"))
    found = {name: [] for name in ("tree", "blocks")}
    for point in record["points"]:
        steps = point["num_steps"] // (2 if point["model"] == "blocks" else 1)
        assert point["settings"]["num_steps"] == steps
        if point["sampler"] == "confidence":
            assert point["forward_passes"] == point["num_steps"]
            found[point["model"]].append(point["num_steps"])
    assert found == {"tree": [2, 8, 10], "blocks": [8, 10]}  # two passes at least for each of two blocks


def test_gaps_are_not_for_models_with_blocks(run, folders, tokenizer):
    model = tiny_model(VocabularyTree.from_pretrained(SAMPLE), block_size=4, eos_token_id=tokenizer.eos_token_id)
    model.save_pretrained(folders / "in_blocks")
    tokenizer.save_pretrained(folders / "in_blocks")
    with pytest.raises(ValueError, match="in_blocks has blocks, of which a gap is a part"):
        run("--samplers", "random", "--infill", models=("in_blocks",))


def test_infilling_writes_the_middle_of_real_windows_alone(run, folders, tokenizer, tmp_path, monkeypatch):
    seen, own = [], quality.figures
    monkeypatch.setattr(quality, "figures", lambda texts, *rest: seen.append(texts) or own(texts, *rest))
    record = run("--samplers", "random", "first hitting", "--infill", passes=("2", "4"))
    real, *written = (seen[index] for index in (0, 3, 4, 5))
    for texts in written:
        assert [text[:2] + text[-2:] for text in texts] == [text[:2] + text[-2:] for text in real] and texts != real
        assert all(token < 8192 for text in texts for token in text)
    assert [point["num_steps"] for point in record["points"]] == [2, 4, 8]  # two levels of four tokens
    with pytest.raises(ValueError, match="another protocol: infill is True, not False"):
        run("--samplers", "random")


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
    options = SimpleNamespace(text=folders / "text.txt", texts=10, length=LENGTH, seed=0, infill=False)
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
