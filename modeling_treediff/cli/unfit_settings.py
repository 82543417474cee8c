"""Settings of a run that do not fit one another, since defaults are the sample's for any model: a line for each."""

import math
import os

from accelerate import PartialState
from accelerate.utils import is_bf16_available

from modeling_treediff import TreeDiffConfig
from modeling_treediff.training import TrainingConfig

# Peak learning rates times width: 0.5 for the sample's model, 0.3 to 0.7 for the eight of GPT-3 (arXiv 2005.14165,
# table 2.1). A saved model that is trained on at such a rate forgets first; the guide to training takes a tenth.
RATE_OF_NEW, RATE_OF_SAVED = 0.5, 0.05
MOST_OF_NEW, MOST_OF_SAVED = 1.0, 0.25


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
    """Look whether the slowest pair of features goes more than half around within a window.

    Then it no longer tells a distance to the left from one to the right: distances lie in (-length, length), and a turn
    takes 2 pi base^(1 - 2 / width of a head) positions.
    """
    head = model.hidden_size // model.num_attention_heads
    if head == 2 or length <= math.pi * model.rope_theta ** (1 - 2 / head):
        return None
    least = math.ceil((length / math.pi) ** (head / (head - 2)))
    hint = f"--rope-theta {least} is the least, 10000 is usual"
    return f"The base {model.rope_theta:g} of the rotary embedding is small for {length} tokens: {hint}."


def _learning_rate(model: TreeDiffConfig, config: TrainingConfig, is_new: bool) -> str | None:
    rate, most = (RATE_OF_NEW, MOST_OF_NEW) if is_new else (RATE_OF_SAVED, MOST_OF_SAVED)
    if config.learning_rate * model.hidden_size <= most:
        return None
    what = "a new model" if is_new else "going on with a model"
    usual = f"--learning-rate {rate / model.hidden_size:.1g} is usual"
    return f"The learning rate {config.learning_rate:g} is high for {what} of width {model.hidden_size}: {usual}."


def _precision(config: TrainingConfig) -> str | None:
    device, launched = PartialState().device, os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if config.mixed_precision is not None or launched != "no" or device.type == "cpu" or not is_bf16_available():
        return None
    return f"Training in fp32 on {device}: --mixed-precision bf16 is faster and takes less memory, no keeps fp32."
