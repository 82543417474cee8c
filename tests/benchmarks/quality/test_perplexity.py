"""Which runs the quality benchmark takes, in which order, and what a tokenizer is learned from."""

import json
from dataclasses import replace

import pytest
from helpers.contenders import TINY

from benchmarks.quality import packed_data, perplexity
from benchmarks.quality import record as quality_record
from benchmarks.quality.run_queue import RunQueue

RATES, WHAT = (1e-3, 2e-3), ("contender", "learning-rate", "seed")


@pytest.mark.parametrize("rate_steps", [None, 4])
def test_each_contender_goes_on_with_the_rate_that_was_best_for_it(records, packed, tmp_path, monkeypatch, rate_steps):
    """TDLM is better with the second rate, the others with the first; runs are made up from finished ones."""
    names = ("mdlm", "tdlm-child", "ar")
    fields = {"learning_rates": RATES, "contenders": names, "rate_steps": rate_steps, "repeated": ("mdlm",)}
    protocol = replace(TINY, **fields)
    taken = []

    def take(self, runs):
        for name, command in runs.items():
            contender, rate, seed = (command[command.index(f"--{what}") + 1] for what in WHAT)
            (done,) = (one for one in records if one["contender"] == contender and one["seed"] == 0)
            wanted = {"tdlm-child": RATES[1]}.get(contender, RATES[0])
            nats = 5.0 + (float(rate) != wanted)
            texts = done["texts"] | {"selection": {"windows": [nats] * 8}}
            made = {**done, "learning_rate": float(rate), "seed": int(seed), "texts": texts, "protocol": {}}
            made["protocol"] = done["protocol"] | {"learning_rates": list(RATES)}
            folder = self.folder / name
            if not (folder / "run.json").exists():
                taken.append((folder.parent.name, contender, float(rate), int(seed), "--choosing" in command))
                folder.mkdir(parents=True)
                (folder / "run.json").write_text(json.dumps(made))

    monkeypatch.setattr(RunQueue, "take", take)
    perplexity.take_all(RunQueue(tmp_path / "runs"), "tiny", protocol)
    short = rate_steps is not None
    grid = {("rates" if short else "runs", name, rate, 0, short) for name in names for rate in RATES}
    best = {("runs", name, RATES[name == "tdlm-child"], 0, False) for name in names} if short else set()
    assert set(taken) == grid | best | {("runs", "mdlm", RATES[0], 1, False)} and len(taken) == len(set(taken))
    runs, choosing = (quality_record.read_runs(tmp_path / part) for part in ("runs", "runs/rates"))
    quality_record.write_quality(tmp_path / "quality.json", runs, packed.manifest, names, choosing)
    written = json.loads((tmp_path / "quality.json").read_text())
    assert {name: one["learning_rate"] for name, one in written["best"].items()} == {
        name: RATES[name == "tdlm-child"] for name in names
    }
    assert len(written["choosing"]) == (6 if short else 0)
    if short:
        with pytest.raises(ValueError, match=r"chosen without tdlm-child-lr0\.001-seed0, tdlm-child-lr0\.002-seed0"):
            quality_record.check_comparable(runs, names, [one for one in choosing if one["contender"] != "tdlm-child"])
        other = [one | {"trained": one["trained"] | {"training_sha256": "other"}} for one in choosing]
        with pytest.raises(ValueError, match="chosen with another training_sha256"):
            quality_record.check_comparable(runs, names, other)
        other = [one | {"protocol": one["protocol"] | {"batch_size": 1, "steps": 1}} for one in choosing]
        with pytest.raises(ValueError, match="chosen with another batch_size: take"):
            quality_record.check_comparable(runs, names, other)
        lost = [one | {"diverged": "nan"} if one["contender"] == "ar" else one for one in choosing]
        quality_record.check_comparable([one for one in runs if one["contender"] != "ar"], names, lost)


def test_the_runs_that_choose_a_rate_are_shorter_and_measured_on_the_windows_for_it_alone():
    """With a warm-up as much shorter; what else is taken of a form does not tell its runs apart."""
    protocol = replace(TINY, steps=80, warmup_steps=20, rate_steps=4)
    shorter = replace(TINY, steps=4, warmup_steps=1, curve_points=1, measured_texts=("selection",))
    assert protocol.choosing == shorter and TINY.choosing is TINY
    assert replace(TINY, contenders=("mdlm",), save_every=1, repeated=("ar",)).identity == TINY.identity
    assert replace(TINY, steps=9).identity != TINY.identity
    assert "measured_texts" not in TINY.identity  # nor in that of older runs
    assert protocol.choosing.identity["measured_texts"] == ["selection"]
    assert perplexity.PROTOCOLS["long"].tokens_seen >= 32e6


def test_a_tokenizer_of_the_texts_own_is_learned_from_what_is_trained_on(tmp_path):
    """Twenty documents, of which one is held out, and whose word is in it alone."""
    documents = ["plain words, " * 500] * 9 + ["unheard " * 700] + ["plain words, " * 500] * 10
    (tmp_path / "text.txt").write_text("\n\n".join(documents))
    held_out = [number for number in range(20) if packed_data.is_held_out(number, 10)]
    assert 9 in held_out
    packed_data.pack(tmp_path / "data", "", [tmp_path / "text.txt"], None, [], (2,), 10, vocab_size=264)
    data = packed_data.PackedData.load(tmp_path / "data")
    assert len(data.tokenizer) == 264
    assert len(data.tokenizer("plain words,")["input_ids"]) < 6 < len(data.tokenizer("unheard")["input_ids"])
