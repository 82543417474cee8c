"""Runs of the quality benchmark: what made them, going on, one order of windows for all."""

import json
import shutil
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import PartialState
from helpers.contenders import COMPARED, TINY
from helpers.models import tiny_model

from benchmarks.contenders import CONTENDERS, GIDD, REFERENCE
from benchmarks.quality import ablations, packed_data, plain_training, training
from benchmarks.quality import record as quality_record
from modeling_treediff import TreeDiffForDiffusionLM
from modeling_treediff.training.run import loop


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
    alone = replace(TINY, measured_texts=("selection",))
    _, texts = training.measure("tdlm-child", folder / "model", packed, alone)
    assert texts == {"selection": before["texts"]["selection"]}


@pytest.mark.parametrize("name", [*COMPARED, GIDD])
def test_a_run_asked_to_stop_goes_on_to_the_same_end(packed, runs, records, tmp_path, monkeypatch, name):
    """The fourth step of eight is interrupted: weights and losses are those of the run that was not."""
    run = quality_record.Run(name, 1e-3, 0)
    if name == GIDD:
        runs = tmp_path / "whole"
        training.run(name, packed, TINY, runs / run.name, 1e-3, 0)
        (record,) = quality_record.read_runs(runs)
        mdlm = next(one for one in records if one["contender"] == REFERENCE)
        assert record["parameters"] == mdlm["parameters"] and list(record["texts"]) == packed.measured
    module = plain_training if name in ("ar", GIDD) else loop
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


@pytest.mark.parametrize("name", [REFERENCE, "ar"])
def test_a_run_that_was_killed_goes_on_from_its_last_checkpoint(packed, runs, tmp_path, monkeypatch, name):
    """In the sixth step of eight, with a checkpoint after every second: to the weights of the run that was not."""
    run, protocol, steps = quality_record.Run(name, 1e-3, 0), replace(TINY, save_every=2), []
    owner, forward = (training, "token_nats") if name == "ar" else (TreeDiffForDiffusionLM, "forward")
    original = getattr(owner, forward)

    def killed(model, *args, **kwargs):
        steps.append(model.training)
        if sum(steps) == 6:
            raise KeyboardInterrupt
        return original(model, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(owner, forward, killed)
        with pytest.raises(KeyboardInterrupt):
            training.run(name, packed, protocol, tmp_path / run.name, 1e-3, 0)
    steps.clear()
    with monkeypatch.context() as patch:
        patch.setattr(owner, forward, lambda model, *a, **k: steps.append(model.training) or original(model, *a, **k))
        training.run(name, packed, protocol, tmp_path / run.name, 1e-3, 0)
    assert sum(steps) == 4
    ended, whole = (folder / run.name / "model" / "model.safetensors" for folder in (tmp_path, runs))
    assert ended.read_bytes() == whole.read_bytes()


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
    forward, token_nats = TreeDiffForDiffusionLM.forward, training.token_nats

    def diffusion(self, *args, **kwargs):
        if self.training:
            seen["tdlm-child"].append(kwargs["labels"].clone())
        return forward(self, *args, **kwargs)

    def left_to_right(model, tokens):
        if model.training:
            seen["ar"].append(tokens.clone())
        return token_nats(model, tokens)

    monkeypatch.setattr(TreeDiffForDiffusionLM, "forward", diffusion)
    monkeypatch.setattr(training, "token_nats", left_to_right)
    for name in seen:
        training.run(name, packed, TINY, tmp_path / name, 1e-3, 3)
    assert len(seen["ar"]) == TINY.steps
    for labels, tokens in zip(seen["tdlm-child"], seen["ar"], strict=True):
        torch.testing.assert_close(labels, tokens)


def test_the_bound_of_windows_is_the_estimate_of_each(packed):
    model = tiny_model(packed.tree(CONTENDERS["tdlm-child"]), max_position_embeddings=16).eval()
    windows = packed_data.spread(packed.windows("validation", 16), 10)
    nats, levels = training.bound_of_windows(model, windows, samples=2)
    reference = model.nelbo(windows, num_samples=2, batch_size=64, generator=torch.Generator().manual_seed(0))
    assert float(nats.mean()) == pytest.approx(reference.value)
    assert levels == pytest.approx(reference.level_losses)


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


def test_in_bf16_a_cpu_trains_with_eager_attention(tmp_path):
    found = {
        precision: replace(TINY, precision=precision).training_config(tmp_path, 1e-3, 0).attn_implementation
        for precision in ("no", "bf16")
    }
    assert found == {"no": None, "bf16": "eager" if PartialState().device.type == "cpu" else None}
