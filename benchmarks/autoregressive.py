"""GPT-2 from transformers under the protocol of the diffusion models: the reference, whose loss is no bound."""

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import GPT2Config, GPT2LMHeadModel

from modeling_treediff.training import TokenWindows, TrainingConfig
from modeling_treediff.training.optimization import make_learning_rate, make_optimizer


def train_autoregressive(
    gpt2: GPT2Config, training: TokenWindows, validation: torch.Tensor, config: TrainingConfig
) -> tuple[GPT2LMHeadModel, list[dict[str, Any]]]:
    """Train on the windows that a diffusion model of the same settings sees, in the same order; save at the end.

    Returns:
        the model, and its loss on the validation windows (W, T) every `validate_every` steps: step, nats per token.

    """
    set_seed(config.seed)
    accelerator = Accelerator(mixed_precision=config.mixed_precision)
    model = GPT2LMHeadModel(gpt2).to(accelerator.device).train()
    optimizer = make_optimizer(model, config, accelerator.device)
    rate = make_learning_rate(optimizer, config)
    items = training.dataset(0, config.max_steps * config.batch_size, config.seed)
    curve = []
    for step, batch in enumerate(tqdm(DataLoader(items, config.batch_size), desc="train"), start=1):
        tokens_BT = batch["input_ids"].long().to(accelerator.device)
        with accelerator.autocast():
            loss = token_nats(model, tokens_BT).mean()
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        optimizer.step()
        rate.step()
        optimizer.zero_grad()
        if step % config.validate_every == 0:
            nats = window_nats(model, validation, accelerator)
            curve.append({"step": step, "nelbo": float(nats.mean()), "nelbo_standard_error": 0.0})
    model.save_pretrained(Path(config.output_dir))
    return model, curve


@torch.no_grad()
def window_nats(model: GPT2LMHeadModel, windows: torch.Tensor, accelerator: Accelerator) -> torch.Tensor:
    """Return (W,) float64: -log p of each window (W, T), in nats per token, all T of them counted."""
    model.eval()
    with accelerator.autocast():
        parts = [token_nats(model, part.to(accelerator.device)).double().mean(dim=1) for part in windows.split(64)]
    model.train()
    return torch.cat(parts).cpu()


def token_nats(model: GPT2LMHeadModel, tokens_BT: torch.Tensor) -> torch.Tensor:
    """Return (B, T): -log p of each token given those before it; the first is given the end-of-sequence token."""
    end: Any = model.config.eos_token_id
    start_B1 = torch.full_like(tokens_BT[:, :1], end)
    logits_BTV = model(torch.cat((start_B1, tokens_BT[:, :-1]), dim=1)).logits
    return torch.nn.functional.cross_entropy(logits_BTV.float().transpose(1, 2), tokens_BT, reduction="none")
