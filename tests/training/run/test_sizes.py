"""Sizes that this machine cannot hold are refused by arithmetic; sizes that it can are not."""

import os
from dataclasses import replace

import pytest
from helpers.models import SMALL_CONFIG
from helpers.processes import SAMPLE, run_here
from helpers.tiny_run import tiny_run

from modeling_treediff import TreeDiffConfig, VocabularyTree
from modeling_treediff.building.balanced import random_tree
from modeling_treediff.training import TrainingConfig, check_sizes, plan_memory
from modeling_treediff.training.memory.plan import USABLE
from modeling_treediff.training.run import sizes
from modeling_treediff.training.run.sizes import possible_batch


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 10**6}, "a forward pass .--batch-size"),
        ({"batch_size": 10**9}, "a forward pass .--batch-size"),
        ({"gradient_accumulation_steps": 10**9}, "the windows of a step"),
        ({"global_batch_size": 16 * 10**9}, "the windows of a step"),
        ({"batch_size": 10**9, "find_batch_size": True}, "the windows of a step"),
        ({"workers": 1000}, "1000 --workers are too many"),
    ],
)
def test_absurd_settings_are_refused_before_any_work(tmp_path, monkeypatch, settings, message):
    monkeypatch.setattr(sizes, "device_memory", lambda device: 16 * 2**30)
    with pytest.raises(ValueError, match=message):
        check_sizes(SMALL_CONFIG, TrainingConfig(tmp_path, **settings), 128)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    with pytest.raises(ValueError):
        tiny_run(tmp_path / "run", **({"workers": 33} | settings))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("size", [{"num_hidden_layers": 10**6}, {"hidden_size": 2**20, "num_attention_heads": 16}])
def test_models_that_do_not_fit_are_refused_before_they_are_made(tmp_path, size):
    with pytest.raises(ValueError, match="the model and its optimizer"):
        check_sizes(TreeDiffConfig(**size), TrainingConfig(tmp_path), 64)
    names = {"num_hidden_layers": "--layers", "hidden_size": "--hidden-size", "num_attention_heads": "--heads"}
    words = [word for name, value in size.items() for word in (names[name], value)]
    ran = run_here("train", *words, *([] if "--layers" in words else ["--layers", 1]), "--output", tmp_path / "run")
    assert "for the model and its optimizer" in ran.stderr and not (tmp_path / "run").exists()


SETTINGS = [
    {"gradient_checkpointing": True}, {"mixed_precision": "no"}, {"loss_chunk": 2048, "gradient_checkpointing": True},
]  # fmt: skip
FACTORISED = {"head": "node", "head_rank": 8, "node_embedding": "factorised"}
FIELDS = [{}, {"head": "leaf", "node_embedding": "free"}, FACTORISED, {"hidden_size": 256}]


@pytest.mark.parametrize("tree", [VocabularyTree.flat(500), random_tree(500, 5, 4)])
@pytest.mark.parametrize("fields", FIELDS, ids=str)
def test_no_run_that_fits_by_its_plan_is_refused(tmp_path, monkeypatch, tree, fields):
    """What a run takes at least is below what the plan says that it takes, and not far below in a plain one."""
    sizes_of = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 32}
    model = TreeDiffConfig.from_tree(tree, **(sizes_of | fields))
    for settings in ({"batch_size": 1}, *(change | {"batch_size": 256} for change in SETTINGS)):
        config = TrainingConfig(tmp_path, **({"mixed_precision": "bf16"} | settings))
        planned = {name: value for name, value in settings.items() if name not in ("batch_size", "mixed_precision")}
        precision = "fp32" if config.mixed_precision == "no" else "bf16"
        peak = plan_memory(model, config.batch_size, 32, precision=precision, **planned).peak
        monkeypatch.setattr(sizes, "device_memory", lambda device, peak=peak: int(peak / USABLE))
        check_sizes(model, config, 32)
    monkeypatch.setattr(sizes, "device_memory", lambda device: 2**30)
    with pytest.raises(ValueError, match="a forward pass"):
        check_sizes(model, TrainingConfig(tmp_path, batch_size=2**15 * 10), 32)


def test_a_small_model_with_absurd_batches_is_refused_and_the_search_starts_below(tmp_path, monkeypatch):
    """A million windows of a tiny model take 142 GiB, most of it for embeddings of paths and logits."""
    sizes_of = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 32}
    model = TreeDiffConfig.from_tree(VocabularyTree.from_pretrained(SAMPLE), **sizes_of)
    monkeypatch.setattr(sizes, "device_memory", lambda device: 24 * 2**30)
    for change in ({}, {"mixed_precision": "bf16"}, {"gradient_checkpointing": True}):
        with pytest.raises(ValueError, match="At least .* for a forward pass"):
            check_sizes(model, TrainingConfig(tmp_path, batch_size=10**6, **change), 32)
    config = TrainingConfig(tmp_path, batch_size=10**6, find_batch_size=True)
    check_sizes(model, config, 32)
    start = possible_batch(model, config, 32)
    check_sizes(model, replace(start, find_batch_size=False), 32)
    assert 10**5 < start.batch_size < 10**6 == start.batch_size * start.gradient_accumulation_steps
    small = TrainingConfig(tmp_path, batch_size=12, find_batch_size=True)
    assert possible_batch(model, small, 32) == small
