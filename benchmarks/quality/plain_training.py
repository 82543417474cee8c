"""Training under the protocol of the diffusion models, of models whose loss is not that of the package."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from modeling_treediff.files.atomic_files import update_folder, write_atomically
from modeling_treediff.text import TokenWindows
from modeling_treediff.training import TrainingConfig
from modeling_treediff.training.run.optimization import make_learning_rate, make_optimizer, peak_learning_rate
from modeling_treediff.training.run.run_log import RunLog
from modeling_treediff.training.run.signals import StopRequest, exit_code

STATE_NAME = "interrupted.pt"
WEIGHTS_NAME = "model.safetensors"
Loss = Callable[[torch.Tensor, torch.Generator], torch.Tensor]  # (B, T) tokens, source of noise -> () loss
Measure = Callable[[torch.Tensor], torch.Tensor]  # (W, T) windows -> (W,) nats per token, or a bound


def train_plainly(
    model: PreTrainedModel,
    loss_of: Loss,
    measure: Measure,
    training: TokenWindows,
    validation: torch.Tensor,
    config: TrainingConfig,
) -> None:
    """Train on the windows that a diffusion model of the same settings sees, in the same order, and save the model.

    `metrics.jsonl` gets a line per step, and with it every `validate_every` steps what is measured of the validation
    windows (W, T), in nats per token. The noise of a step depends on the seed and its number alone.

    Raises:
        SystemExit: SIGTERM or SIGINT was received and the state saved; another call goes on from there.
        FloatingPointError: the loss is no number.

    """
    set_seed(config.seed)
    accelerator = Accelerator(mixed_precision=config.mixed_precision)
    model.to(accelerator.device).train()
    if config.attn_implementation is not None:
        model.set_attn_implementation(config.attn_implementation)
    width = model.config.hidden_size
    optimizer = make_optimizer(model, peak_learning_rate(config, width), config.weight_decay, accelerator.device)
    rate = make_learning_rate(optimizer, config)
    parts = {"model": model, "optimizer": optimizer, "rate": rate}
    done = _load_state(config.output_dir / STATE_NAME, parts)
    items = training.dataset(done * config.batch_size, config.max_steps * config.batch_size, config.seed)
    log = RunLog(accelerator, config.output_dir, done, {})
    with StopRequest() as request:
        for step, batch in enumerate(tqdm(DataLoader(items, config.batch_size), desc="train"), start=done + 1):
            started = time.perf_counter()
            tokens_BT = batch["input_ids"].long().to(accelerator.device)
            noise = torch.Generator(accelerator.device).manual_seed(config.seed * config.max_steps + step)
            with accelerator.autocast():
                loss = loss_of(tokens_BT, noise)
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), config.max_grad_norm)
            optimizer.step()
            rate.step()
            optimizer.zero_grad()
            facts: dict[str, Any] = {"loss": loss.item(), "seconds": time.perf_counter() - started}
            if facts["loss"] != facts["loss"]:
                raise FloatingPointError(f"The loss of step {step} is not a number.")
            if step % config.validate_every == 0:
                with accelerator.autocast():
                    nats = measure(validation)
                error = float(nats.std() / len(nats) ** 0.5)
                facts |= {"nelbo": float(nats.mean()), "nelbo_standard_error": error, "level_losses": []}
            log.write(step, facts)
            if request.number or (config.save_every and step % config.save_every == 0):
                _save_state(config.output_dir / STATE_NAME, parts, step)
            if request.number and step < config.max_steps:
                raise SystemExit(exit_code(request.number))
    with update_folder(config.output_dir, written_last=lambda name: name == WEIGHTS_NAME) as folder:
        model.save_pretrained(folder)
    (config.output_dir / STATE_NAME).unlink(missing_ok=True)


def _save_state(path: Path, parts: dict[str, Any], step: int) -> None:
    state = {name: part.state_dict() for name, part in parts.items()} | {"step": step}
    write_atomically(path, lambda temporary: torch.save(state, temporary))


def _load_state(path: Path, parts: dict[str, Any]) -> int:
    """Load what an interrupted run left, if it did; return the steps done."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return int(state["step"])
