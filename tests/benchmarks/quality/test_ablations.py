"""Variants are trained, measured and compared."""

import argparse
import math

import numpy as np
import pytest
import torch
from helpers.contenders import TINY
from helpers.models import tiny_model

from benchmarks.quality import ablation_table, ablations, perplexity
from benchmarks.quality import record as quality_record
from modeling_treediff import TreeDiffConfig, corrupt
from modeling_treediff.building.balanced import random_tree
from modeling_treediff.training.data.collator import DiffusionCollator


def test_level_weights_change_the_training_loss_alone():
    model = tiny_model(random_tree(20, 5, 2), lookahead=0.0).train()
    tokens = torch.randint(0, 20, (16, 8), generator=torch.Generator().manual_seed(0))
    batch = corrupt(tokens, model.tree, model.schedule, generator=torch.Generator().manual_seed(1))
    arguments = {"input_ids": batch.input_ids, "labels": batch.labels, "timesteps": batch.timesteps}
    plain = model(**arguments)
    with ablations.changed_weights((1.5, 0.5)):
        weighted = model(**arguments)
    torch.testing.assert_close(weighted.loss, plain.level_losses @ torch.tensor([1.5, 0.5]))
    assert weighted.loss != plain.loss
    torch.testing.assert_close(model(**arguments).loss, plain.loss)


def test_capped_weights_are_those_of_the_time_where_they_begin():
    model = tiny_model(random_tree(20, 5, 2), schedule="binomial").train()
    tokens = torch.randint(0, 20, (16, 8), generator=torch.Generator().manual_seed(0))
    batch = corrupt(tokens, model.tree, model.schedule, generator=torch.Generator().manual_seed(1))

    def loss(times):
        return model(input_ids=batch.input_ids, labels=batch.labels, timesteps=times).loss

    early, late = torch.full_like(batch.timesteps, 0.01), torch.full_like(batch.timesteps, 0.25)
    plain = loss(late)
    assert loss(early) > plain
    with ablations.changed_weights(None, 0.25):
        torch.testing.assert_close(loss(early), plain)
        torch.testing.assert_close(loss(batch.timesteps), loss(batch.timesteps.clamp(min=0.25)))


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


def test_schedules_are_compared_with_nothing_else_changed():
    tree = random_tree(20, 5, 2)
    for name, other in ablations.SEQUENTIAL.items():
        own, sequential = (
            TreeDiffConfig.from_tree(tree, **ablations.VARIANTS[one].contender.fields) for one in (name, other)
        )
        differing = [field for field, value in own.to_dict().items() if sequential.to_dict()[field] != value]
        assert differing == ["schedule"] and sequential.schedule == "sequential"


def test_candidates_for_a_default_are_variants_trained_with_every_seed_of_the_protocol():
    runs = ablations.wanted_runs("candidates")
    assert {name for name, _ in runs} == set(ablations.CANDIDATES) <= set(ablations.VARIANTS)
    for name in ablations.CANDIDATES:
        assert tuple(seed for one, seed in runs if one == name) == perplexity.PROTOCOLS["cpu"].seeds


def test_input_embeddings_are_compared_to_the_same_model_without(packed, tmp_path, monkeypatch):
    monkeypatch.setattr(ablations.PackedData, "load", lambda _: packed)
    monkeypatch.setattr(ablation_table, "RESULTS", tmp_path)
    names = (ablations.NODE, "tied-16")
    for name in names:
        options = argparse.Namespace(form="tiny", embeddings="", seed=0, part="embeddings")
        ablations.run(name, options, tmp_path / f"{name}-seed0")
    runs = quality_record.read_runs(tmp_path)
    ablations.collect(tmp_path / "ablations_embeddings.json", runs, [(name, 0) for name in names])
    plain, tied = ablation_table.embeddings_table(ablation_table.read_part("embeddings")).splitlines()[2:4]
    texts = {run["variant"]: run["further"]["other"]["windows"] for run in runs}
    difference = np.mean(texts["tied-16"]) - np.mean(texts[ablations.NODE])
    assert plain.startswith("| tree, V x d vectors | ") and tied.startswith("| tree, the head's vectors, r = 16 | ")
    assert f"; {difference:+.3f} ±" in tied.split("|")[-2]


def test_noise_of_blocks_loses_by_counts_or_by_chance():
    """Counted, a block of one token over a flat tree is always lost; else as often as its time says."""
    tree, tokens = random_tree(20, 20, 1), [{"input_ids": np.arange(16), "position": place} for place in range(64)]
    collator = DiffusionCollator(tree, tiny_model(tree).schedule, block_size=1)
    lost = []
    for counts in (True, False):
        with ablations.noise_by(counts):
            lost.append((collator(tokens)["input_ids"] == tree.root_id).double().mean().item())
    assert lost[0] == 1
    assert lost[1] == pytest.approx(0.625, abs=4 * (0.25 / 1024) ** 0.5)  # the mean time; four standard errors


def test_a_variant_that_begins_as_another_goes_on_from_its_weights(packed, tmp_path, monkeypatch):
    """Two sizes of blocks are measured as both, and what is asked for as a whole stands beside the default."""
    monkeypatch.setattr(ablations.PackedData, "load", lambda _: packed)
    monkeypatch.setattr(ablation_table, "RESULTS", tmp_path)
    started = []
    own = ablations.train_model
    monkeypatch.setattr(ablations, "train_model", lambda *given: started.append(given[3:]) or own(*given))
    names = (ablations.NODE, "blocks-4", "blocks-4-continued", ablations.MIXED)
    for name in names:
        options = argparse.Namespace(form="tiny", embeddings="", seed=0, part="blocks-causes")
        ablations.run(name, options, tmp_path / f"{name}-seed0")
    first, second = started[2:4]
    assert first[0].steps == second[0].steps == TINY.steps // 2 and second[2] == first[1].output_dir
    assert first[1].seed != second[1].seed
    runs = quality_record.read_runs(tmp_path)
    ablations.collect(tmp_path / "ablations_blocks_causes.json", runs, [(name, 0) for name in names])
    lines = ablation_table.changed_table(ablation_table.read_part("blocks-causes")).splitlines()[2:]
    assert lines[-1].count("of other seeds, of which there is one") == 1  # two sizes of blocks are no two seeds
    lines = lines[:-2]
    texts = {run["variant"]: run["further"]["validation"]["windows"] for run in runs}
    mixed = next(run for run in runs if run["variant"] == ablations.MIXED)
    whole = mixed["at_sizes"]["64"]["further"]["validation"]["windows"]
    assert len(lines) == 5 and lines[-1].startswith(
        f"| {ablations.VARIANTS[ablations.MIXED].title}, asked for S = 64 |"
    )
    assert f"{math.exp(np.mean(whole) - np.mean(texts[ablations.NODE])):.3f} (" in lines[-1]
    assert whole != texts[ablations.MIXED]
    for line, name in zip(lines[2:4], names[2:], strict=True):
        assert f"{math.exp(np.mean(texts[name]) - np.mean(texts['blocks-4'])):.3f} (" in line.split("|")[-2]
