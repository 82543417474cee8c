"""The optimizer and its learning-rate schedule."""

from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_scheduler

from .settings import TrainingConfig

BETAS = (0.9, 0.98)


def make_optimizer(model: torch.nn.Module, config: TrainingConfig, device: torch.device) -> torch.optim.AdamW:
    """Return AdamW over the trainable parameters, in one kernel where the device has it."""
    groups = parameter_groups(model, config.weight_decay)
    return torch.optim.AdamW(groups, config.learning_rate, BETAS, fused=_has_fused_kernel(device))


def make_learning_rate(optimizer: torch.optim.Optimizer, config: TrainingConfig) -> LRScheduler:
    """Return the schedule: linear warm-up, then the shape that the config names.

    "wsd" is warm-up, stable, decay, the decay in the shape 1 - sqrt (arXiv 2405.18392): a run can be made longer
    without having chosen its length beforehand.
    """
    name, details = {
        "cosine": ("cosine", {}),
        "constant": ("constant_with_warmup", {}),
        "wsd": ("warmup_stable_decay", {"num_decay_steps": config.last_steps, "decay_type": "1-sqrt"}),
    }[config.learning_rate_schedule]
    return get_scheduler(name, optimizer, config.warmup_steps, config.max_steps, details)


def parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Decay matrices; leave norms and biases alone."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [parameter for parameter in parameters if parameter.ndim > 1], "weight_decay": weight_decay},
        {"params": [parameter for parameter in parameters if parameter.ndim <= 1], "weight_decay": 0.0},
    ]


def _has_fused_kernel(device: torch.device) -> bool:
    try:
        torch.optim.AdamW([torch.zeros(1, device=device, requires_grad=True)], fused=True)
    except RuntimeError:
        return False
    return True
