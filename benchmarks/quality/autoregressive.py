"""GPT-2 from transformers beside the diffusion models: the reference, whose loss is no bound."""

from typing import Any

import torch
from transformers import GPT2LMHeadModel


@torch.no_grad()
def window_nats(model: GPT2LMHeadModel, windows: torch.Tensor) -> torch.Tensor:
    """Return (W,) float64: -log p of each window (W, T), in nats per token, all T of them counted."""
    training = model.training
    model.eval()
    parts = [token_nats(model, part.to(model.device)).double().mean(dim=1) for part in windows.split(64)]
    model.train(training)
    return torch.cat(parts).cpu()


def token_nats(model: GPT2LMHeadModel, tokens_BT: torch.Tensor) -> torch.Tensor:
    """Return (B, T): -log p of each token given those before it; the first is given the end-of-sequence token."""
    end: Any = model.config.eos_token_id
    start_B1 = torch.full_like(tokens_BT[:, :1], end)
    logits_BTV = model(torch.cat((start_B1, tokens_BT[:, :-1]), dim=1), use_cache=False).logits
    logits_nV = logits_BTV.float().flatten(0, 1)
    return torch.nn.functional.cross_entropy(logits_nV, tokens_BT.flatten(), reduction="none").view_as(tokens_BT)
