"""Defaults that do not fit the model are named; those that fit, the quickstart's among them, are not."""

import math

import pytest
import torch
from accelerate import PartialState
from helpers.processes import run_here

from modeling_treediff import TreeDiffConfig
from modeling_treediff.cli import unfit_settings as module
from modeling_treediff.cli.options.model import SEQUENCE_LENGTH, Model
from modeling_treediff.cli.unfit_settings import unfit_settings
from modeling_treediff.configuration_treediff import usual_rope_theta
from modeling_treediff.training import TrainingConfig

QUICKSTART = {
    "hidden_size": Model().hidden_size, "num_attention_heads": Model().num_attention_heads,
    "rope_theta": usual_rope_theta(SEQUENCE_LENGTH, 28), "max_position_embeddings": 2**20,
}  # fmt: skip


def unfit(tmp_path, length=SEQUENCE_LENGTH, is_new=True, learning_rate=3e-3, **sizes):
    config = TrainingConfig(tmp_path, learning_rate=learning_rate)
    return " ".join(unfit_settings(TreeDiffConfig(**(QUICKSTART | sizes)), config, length, is_new))


@pytest.mark.parametrize("length", [512, 2048, 100_000])
def test_the_base_that_is_named_is_the_least_that_fits(tmp_path, length):
    """With it the slowest pair of features turns by no more than pi over the length; with one less by more."""
    assert "base 100 of the rotary embedding is small" in (said := unfit(tmp_path, length))
    least = int(said.split("--rope-theta ")[1].split(" ")[0])
    slowest = 1 - 2 / (QUICKSTART["hidden_size"] // QUICKSTART["num_attention_heads"])
    assert length / least**slowest <= math.pi < length / (least - 1) ** slowest
    assert not unfit(tmp_path, length, rope_theta=least) and unfit(tmp_path, length, rope_theta=least - 1)
    assert not unfit(tmp_path, length, is_new=False, learning_rate=3e-4)  # a saved model's base is what it is


@pytest.mark.parametrize(
    ("width", "rate", "is_new", "usual"),
    [(168, 3e-3, True, None), (768, 6e-4, True, None), (12288, 6e-5, True, None), (516, 3e-3, True, "0.001"),
     (768, 3e-3, True, "0.0007"), (168, 3e-3, False, "0.0003"), (168, 3e-4, False, None), (768, 2e-5, False, None)],
)  # fmt: skip
def test_rates_that_others_take_are_silent_and_the_default_where_it_is_high_is_named(
    tmp_path, width, rate, is_new, usual
):
    said = unfit(tmp_path, is_new=is_new, learning_rate=rate, hidden_size=width)
    assert (f"{usual} is the default" in said) if usual else not said


def test_fp32_on_a_gpu_is_named_unless_it_is_asked_for(tmp_path, monkeypatch):
    state = PartialState()
    monkeypatch.setattr(module, "PartialState", lambda: state)
    monkeypatch.setattr(state, "device", torch.device("cuda"))
    monkeypatch.setattr(module, "has_bf16", lambda device: True)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")  # as the launcher says that was told nothing
    assert "--mixed-precision bf16" in unfit(tmp_path)
    assert not unfit_settings(TreeDiffConfig(**QUICKSTART), TrainingConfig(tmp_path, mixed_precision="no"), 64, True)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert not unfit(tmp_path)


def test_the_command_says_so_in_a_line_before_it_reads_the_text(tmp_path, caplog):
    sizes = ["--hidden-size", 16, "--heads", 2, "--layers", 1, "--sequence-length", 300, "--batch-size", 1]
    sizes += ["--rope-theta", 100]
    run_here("train", *sizes, "--text", tmp_path / "none.txt", "--learning-rate", 0.1, "--output", tmp_path / "run")
    assert [record.message.split(" is ")[0] for record in caplog.records] == [
        "The base 100 of the rotary embedding", "The learning rate 0.1"
    ]  # fmt: skip
