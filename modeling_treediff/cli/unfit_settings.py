"""Settings of a run that do not fit one another: a line for each."""

import math
from dataclasses import replace

from accelerate import PartialState

from modeling_treediff import TreeDiffConfig
from modeling_treediff.configuration_treediff import least_rope_theta, usual_rope_theta
from modeling_treediff.training import TrainingConfig
from modeling_treediff.training.run.optimization import peak_learning_rate
from modeling_treediff.training.run.preflight import has_bf16, run_precision

MOST_OF_NEW, MOST_OF_SAVED = 2, 5  # times the default


def unfit_settings(model: TreeDiffConfig, config: TrainingConfig, sequence_length: int, is_new: bool) -> list[str]:
    """Return a sentence for each setting that does not fit the others.

    Args:
        model: sizes of the model.
        config: settings of the run.
        sequence_length: tokens per window.
        is_new: the model starts at random, so that its sizes can still be chosen.

    """
    found = [
        _rope(model, sequence_length) if is_new else None,
        _learning_rate(model, config, is_new),
        _precision(config),
    ]
    return [sentence for sentence in found if sentence is not None]


def _rope(model: TreeDiffConfig, length: int) -> str | None:
    head = model.hidden_size // model.num_attention_heads
    if model.rope_theta >= (least := least_rope_theta(length, head)):
        return None
    hint = f"--rope-theta {math.ceil(least)} is the least, {usual_rope_theta(length, head):g} the default"
    return f"The base {model.rope_theta:g} of the rotary embedding is small for {length} tokens: {hint}."


def _learning_rate(model: TreeDiffConfig, config: TrainingConfig, is_new: bool) -> str | None:
    rate = peak_learning_rate(config, model.hidden_size, is_new)
    usual = peak_learning_rate(replace(config, learning_rate=None), model.hidden_size, is_new)
    if rate <= usual * (MOST_OF_NEW if is_new else MOST_OF_SAVED):
        return None
    what = "a new model" if is_new else "going on with a model"
    return f"The learning rate {rate:g} is high for {what} of width {model.hidden_size}: {usual:.1g} is the default."


def _precision(config: TrainingConfig) -> str | None:
    """Look whether the launcher, which says fp32 where it was told nothing, keeps a GPU from bf16."""
    device = PartialState().device
    asked = config.mixed_precision is not None or run_precision(config) != "no"
    if asked or not has_bf16(device):
        return None
    return f"Training in fp32 on {device}: --mixed-precision bf16 is faster and takes less memory, no keeps fp32."
