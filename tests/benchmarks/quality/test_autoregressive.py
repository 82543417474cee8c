"""GPT-2's loss against one token at a time."""

import pytest
import torch
from transformers import GPT2LMHeadModel

from benchmarks.contenders import gpt2_for_budget
from benchmarks.quality import autoregressive


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_gpt2s_loss_counts_every_token_of_a_window_given_those_before_it(attention):
    """Against one token at a time, from the end-of-sequence token on."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(gpt2_for_budget(30, 6, 20_000, 32, 4, eos_token_id=7)).eval()
    model.set_attn_implementation(attention)
    tokens = torch.randint(0, 30, (3, 6))
    nats = autoregressive.token_nats(model, tokens)
    for row, sequence in enumerate(tokens):
        before = [7]
        for place, token in enumerate(sequence.tolist()):
            log_p = model(torch.tensor([before])).logits[0, -1].log_softmax(-1)
            torch.testing.assert_close(nats[row, place], -log_p[token])
            before.append(token)
