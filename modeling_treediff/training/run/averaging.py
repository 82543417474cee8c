"""The moving average (EMA) of the weights, which is evaluated and saved as the model."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn


class WeightAverage:
    """Exponential moving average of parameters, beside them in the same precision and on the same device.

    After step n the average moves towards the parameters by 1 - min(decay, (1 + n) / (10 + n)): it forgets the
    initial values at once, as in the training of MDLM (arXiv 2406.07524).
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter], decay: float) -> None:
        """Begin with the parameters as they are; they are looked up again at each use, so they must stay the same."""
        self.parameters, self.decay = list(parameters), decay
        self.averages = [parameter.detach().clone() for parameter in self.parameters]

    def update(self, step: int) -> None:
        """Move towards the parameters, after optimizer step number `step`, counted from 1."""
        decay = min(self.decay, (1 + step) / (10 + step))
        get_ema_multi_avg_fn(decay)(self.averages, [parameter.detach() for parameter in self.parameters], step)

    @torch.no_grad()
    def restart(self) -> None:
        """Take the parameters as they are for the average."""
        for average, parameter in zip(self.averages, self.parameters, strict=True):
            average.copy_(parameter)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the averages where the parameters are, and back when the block ends."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for average, parameter in zip(self.averages, self.parameters, strict=True):
            kept = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(kept)
