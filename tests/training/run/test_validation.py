"""The estimates of a run: which windows they take, and that many cost no more than a bounded number."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from helpers.tiny_run import LENGTH, VOCABULARY, tiny_network, tiny_tokenizer, tiny_tree

from modeling_treediff.text import TokenWindows
from modeling_treediff.training.memory.tracker import MemoryTracker
from modeling_treediff.training.run import validation
from modeling_treediff.training.run.trained_model import TrainedModel
from modeling_treediff.training.run.validation import Validator


def make_validator(count):
    accelerator = Accelerator(cpu=True)
    windows = TokenWindows(np.random.default_rng(0).integers(0, VOCABULARY, (count, LENGTH)).astype(np.int32))
    model = TrainedModel(accelerator, tiny_network(tiny_tree()), tiny_tokenizer(), 0.0)
    return Validator(accelerator, model, windows, 0, MemoryTracker("cpu"))


@pytest.mark.parametrize(
    ("available", "most", "taken"),
    [
        (6, 6, [0, 1, 2, 3, 4, 5]),
        (5, 6, [0, 1, 2, 3, 4]),
        (7, 6, [0, 1, 2, 3, 4, 5]),
        (12, 6, [0, 2, 4, 6, 8, 10]),
        (100, 6, [0, 16, 33, 50, 66, 83]),
    ],
)
def test_an_estimate_takes_windows_from_all_over_the_text_and_no_more_than_asked(available, most, taken):
    validator = make_validator(available)
    estimate = validator.estimate(most)
    token_ids = torch.from_numpy(validator.windows.input_ids[taken]).long()
    alone = validator.model.whole.nelbo(token_ids, batch_size=16, generator=torch.Generator().manual_seed(0))
    assert estimate.value == alone.value and estimate.num_tokens == len(taken) * LENGTH


def test_the_last_estimate_is_bounded():
    assert make_validator(1640).estimate().num_tokens == 1640 * LENGTH  # as many as the sample's held-out text has
    validator = make_validator(validation.LAST_WINDOWS + 1)
    assert validator.estimate().num_tokens == validation.LAST_WINDOWS * LENGTH
