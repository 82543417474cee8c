"""Sizes that this machine cannot hold are refused by arithmetic; sizes that it can are not."""

import os

import pytest
from helpers.models import SMALL_CONFIG
from helpers.processes import run_here
from helpers.tiny_run import tiny_run

from modeling_treediff import TreeDiffConfig
from modeling_treediff.training import TrainingConfig, check_sizes, plan_memory
from modeling_treediff.training.memory.plan import USABLE
from modeling_treediff.training.run import sizes


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


@pytest.mark.parametrize(("batch_size", "checkpointing"), [(1, False), (256, True)])
def test_no_run_that_fits_by_its_plan_is_refused(tmp_path, monkeypatch, batch_size, checkpointing):
    """What a run takes at least is below what the plan says that it takes."""
    plan = plan_memory(SMALL_CONFIG, batch_size, 128, precision="bf16", gradient_checkpointing=checkpointing)
    monkeypatch.setattr(sizes, "device_memory", lambda device: int(plan.peak / USABLE))
    check_sizes(SMALL_CONFIG, TrainingConfig(tmp_path, batch_size=batch_size), 128)
