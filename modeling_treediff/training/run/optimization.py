"""The optimizer and its learning-rate schedule."""

from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_scheduler

from .settings import TrainingConfig

BETAS = (0.9, 0.98)
SAMPLE_RATE, SAMPLE_WIDTH = 3e-3, 168  # tried out on the embedded sample
OF_SAVED = 0.1  # for a model that is trained on, which forgets first at the rate of a new one


def peak_learning_rate(config: TrainingConfig, hidden_size: int, is_new: bool = True) -> float:
    """Return the learning rate of the config, or else one for a network of this width, new or saved.

    Times the width it is 0.5 for a new network wider than the sample's; for the eight sizes of GPT-3 that product is
    0.3 to 0.7 (arXiv 2005.14165, table 2.1).
    """
    if config.learning_rate is not None:
        return config.learning_rate
    return SAMPLE_RATE * min(1, SAMPLE_WIDTH / hidden_size) * (1 if is_new else OF_SAVED)


def make_optimizer(
    model: torch.nn.Module, learning_rate: float, weight_decay: float, device: torch.device
) -> torch.optim.AdamW:
    """Return AdamW over the trainable parameters, in one kernel where the device has it."""
    groups = parameter_groups(model, weight_decay)
    return torch.optim.AdamW(groups, learning_rate, BETAS, fused=_has_fused_kernel(device))


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
