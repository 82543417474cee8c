"""A step: what it says of its loss, what stops a run, and what a gradient scaler of fp16 mends by itself."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from helpers.models import TREES, corrupted, tiny_model

from modeling_treediff.training.run.update import Updater


def test_descends_the_loss_and_says_the_bound():
    """Which is the loss without what looks ahead, over all passes of a step."""
    model = tiny_model(TREES[1], lookahead=0.5).train()
    batches = [vars(corrupted(model, seed=seed)) for seed in (0, 1)]
    seen = []
    optimizer = SimpleNamespace(
        step=lambda: seen.extend(parameter.grad.clone() for parameter in model.parameters()), zero_grad=lambda: None
    )
    rate = SimpleNamespace(step=lambda: None, get_last_lr=lambda: [0.1])
    memory = SimpleNamespace(phase=lambda name: nullcontext())
    update = Updater(Accelerator(cpu=True), model, optimizer, rate, 1e9, memory).take(batches, 0)
    outputs = [model(**batch) for batch in batches]
    loss = sum(output.loss for output in outputs) / 2  # all positions are labelled, so passes weigh alike
    for found, expected in zip(seen, torch.autograd.grad(loss, [*model.parameters()]), strict=True):
        torch.testing.assert_close(found, expected)
    bound = sum(model.eval()(**batch).loss for batch in batches) / 2
    assert update.loss == pytest.approx(bound.item(), rel=1e-5) and update.loss < loss.item() - 0.1


@pytest.mark.parametrize(
    ("loss", "norm", "scale", "diverged"),
    [
        (1.0, 1.0, None, False),
        (torch.nan, 1.0, None, True),
        (1.0, torch.inf, None, True),
        (1.0, torch.inf, 65536.0, False),  # the scaler leaves this step out and halves its scale
        (1.0, torch.inf, 1.0, True),  # it has none to halve
        (torch.nan, 1.0, 65536.0, True),
    ],
)
def test_what_counts_as_diverged(loss, norm, scale, diverged):
    scaler = None if scale is None else SimpleNamespace(get_scale=lambda: scale)
    accelerator = SimpleNamespace(scaler=scaler, gather=lambda rows: torch.cat([rows, rows * 2]))
    updater = Updater(accelerator, None, None, SimpleNamespace(get_last_lr=lambda: [0.1]), 1.0, None)
    update = updater._measure(torch.tensor(loss), torch.tensor(norm), 15)
    assert update.diverged is diverged and update.learning_rate == 0.1
    assert update.stop == 30  # the largest of all processes
    if loss == loss:
        assert update.loss == 3 * loss and update.gradient_norm == norm  # a sum of shares; a norm all have
