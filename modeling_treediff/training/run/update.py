"""One optimizer step: the gradient of the mean over the global batch, clipped, and refused if it is not a number."""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch.optim.lr_scheduler import LRScheduler

from modeling_treediff.training.memory.tracker import MemoryTracker

from .distributed import full_tensor, without_exchange


@dataclass(frozen=True)
class Update:
    """What one optimizer step measured; equal on all processes.

    Attributes:
        loss: the bound alone, without lookahead: mean over all labelled positions of the global batch, nats per token.
        gradient_norm: of the gradient of that mean, before it was clipped.
        learning_rate: that of the step.
        stop: number of a signal that has reached some process, 0 for none.
        diverged: loss or gradient are not numbers, and the parameters are as they were. Not so for a gradient in fp16
            that overflows because of its scale: the scaler leaves such a step out and lowers the scale.

    """

    loss: float
    gradient_norm: float
    learning_rate: float
    stop: int
    diverged: bool


class Updater:
    """Takes optimizer steps; on all processes together."""

    def __init__(
        self,
        accelerator: Accelerator,
        model: torch.nn.Module,
        optimizer: AcceleratedOptimizer,
        learning_rate: LRScheduler,
        max_grad_norm: float,
        memory: MemoryTracker,
    ) -> None:
        """Update the prepared model by the prepared optimizer, gradients scaled down to `max_grad_norm`."""
        self.accelerator, self.model, self.optimizer = accelerator, model, optimizer
        self.learning_rate, self.max_grad_norm, self.memory = learning_rate, max_grad_norm, memory

    def take(self, micro_batches: Sequence[dict[str, torch.Tensor]], stop: int) -> Update:
        """Take a step on this process's share of the global batch.

        Processes average gradients and every forward pass has a mean of its own, over as many labels as it happens to
        have. So each loss is weighed by its number of labels times processes over the labels of the global batch: the
        sum is the mean over all labelled positions, however they are split. Dense identity: one forward pass over all.

        Args:
            micro_batches: what the model's forward takes, with labels.
            stop: number of a signal that this process has received, else 0.

        Returns:
            What was measured; the same on all processes.

        """
        counts = [(batch["labels"] >= 0).sum() for batch in micro_batches]
        total = self.accelerator.reduce(torch.stack(counts).sum(), "sum").clamp(min=1)
        loss = torch.zeros((), device=self.accelerator.device)
        for index, (batch, count) in enumerate(zip(micro_batches, counts, strict=True)):
            # Processes exchange gradients in the last pass of a step alone.
            last = index == len(micro_batches) - 1
            with nullcontext() if last else without_exchange(self.accelerator, self.model):
                loss += self._backward(batch, count / total)
        with self.memory.phase("optimizer"):
            norm = full_tensor(self.accelerator.clip_grad_norm_(self.model.parameters(), self.max_grad_norm))
            update = self._measure(loss, norm, stop)
            if not update.diverged:
                self.optimizer.step()
                self.learning_rate.step()
            self.optimizer.zero_grad()
        return update

    def _backward(self, batch: dict[str, Any], share: torch.Tensor) -> torch.Tensor:
        """Add the gradient of one pass; return its part of the bound, which is the loss without lookahead."""
        with self.memory.phase("forward"):
            output = self.model(**batch)
            loss = output.loss * share
        with self.memory.phase("backward"):
            self.accelerator.backward(loss * self.accelerator.num_processes)
        return (output.level_losses.sum() * share).float()

    def _measure(self, loss: torch.Tensor, norm: torch.Tensor, stop: int) -> Update:
        mine_2 = torch.stack([loss, torch.tensor(float(stop), device=loss.device)])
        loss_P, stop_P = self.accelerator.gather(mine_2[None]).unbind(dim=1)
        mean, length, signal = torch.stack([loss_P.sum(), norm.detach().float(), stop_P.max()]).tolist()
        scaler = self.accelerator.scaler
        overflow = scaler is not None and math.isfinite(mean) and scaler.get_scale() > 1
        diverged = not math.isfinite(mean) or not (math.isfinite(length) or overflow)
        return Update(mean, length, float(self.learning_rate.get_last_lr()[0]), int(signal), diverged)
