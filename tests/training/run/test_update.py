"""When numbers are none: what stops a run, and what a gradient scaler of fp16 mends by itself."""

from types import SimpleNamespace

import pytest
import torch

from modeling_treediff.training.run.update import Updater


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
