"""A model that writes, and what it wrote."""

import pytest
import torch
from helpers.models import SEQUENTIAL, tiny_model

from modeling_treediff.viewing.drafts import DraftRecorder


@pytest.fixture(scope="session")
def writer(sample_tree):
    return tiny_model(sample_tree, max_position_embeddings=64, **SEQUENTIAL)


@pytest.fixture(scope="session")
def recorded(writer, tokenizer):
    """A generation of 40 positions after a prompt."""
    recorder = DraftRecorder(writer.tree, tokenizer)
    prompt = torch.tensor([tokenizer("The state of the Union is")["input_ids"]])
    generator = torch.Generator().manual_seed(0)
    result = writer.generate(prompt, max_new_tokens=40, num_steps=30, generator=generator, callback=recorder)
    return recorder, prompt[0], result[0]
