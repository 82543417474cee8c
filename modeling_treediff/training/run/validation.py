"""Validation: the bound on held-out windows, and a sample of text."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from modeling_treediff.likelihood_treediff import NelboEstimate
from modeling_treediff.text.windows import TokenWindows
from modeling_treediff.training.memory.tracker import MemoryTracker

from .trained_model import TrainedModel

SAMPLE_TOKENS = 32
# The noise depends on it, so it is not the training's: that may be split among more processes and passes at any time.
BATCH_SIZE = 16
# Of the last estimate: two million tokens at 512 each. All that is held out of a large corpus would keep every process
# busy for a good part of the training again, for digits that nobody reads.
LAST_WINDOWS = 4096
MASKS = {"attention_mask": "attention_mask", "fixed_mask": "fixed_mask", "segment_ids": "segment_ids"}


@dataclass(frozen=True)
class Validator:
    """Measures the evaluated model, with the same noise each time; every process does the same and gets the same.

    Attributes:
        accelerator: of the run.
        model: its model.
        windows: the held-out windows.
        seed: of the noise.
        memory: counts evaluation and generation as phases.

    """

    accelerator: Accelerator
    model: TrainedModel
    windows: TokenWindows
    seed: int
    memory: MemoryTracker

    def estimate(self, count: int = LAST_WINDOWS) -> NelboEstimate:
        """Bound on `count` windows, evenly spread over the held-out text; on all if there are no more."""
        count = min(count, len(self.windows))
        windows = self.windows[np.arange(count) * len(self.windows) // count]
        masks: dict[str, Any] = {
            name: torch.from_numpy(np.asarray(array, np.int64))
            for field, name in MASKS.items()
            if (array := getattr(windows, field)) is not None
        }
        token_ids = torch.from_numpy(np.asarray(windows.input_ids, np.int64))
        with self.memory.phase("evaluation"), self.accelerator.autocast(), self.model.evaluated() as model:
            samples = -(-2 * model.config.tree_depth // len(token_ids))  # twice every level: the least for an error
            estimate = model.nelbo(
                token_ids, num_samples=samples, batch_size=BATCH_SIZE, generator=self._generator(), **masks
            )
        if self.accelerator.num_processes == 1:
            return estimate
        # Processes on different devices may round differently; what is decided by the numbers is decided by one.
        numbers = {name: getattr(estimate, name) for name in ("value", "standard_error", "level_losses")}
        return replace(estimate, **broadcast_object_list([numbers])[0])

    def sample(self) -> str:
        """Generate a short text."""
        with self.memory.phase("generation"), self.model.evaluated() as model:
            length = min(SAMPLE_TOKENS, model.config.max_position_embeddings)
            steps = max(length, model.config.tree_depth)
            token_ids = model.generate(max_new_tokens=length, num_steps=steps, generator=self._generator())
        return str(self.model.tokenizer.decode(token_ids[0]))

    def _generator(self) -> torch.Generator:
        return torch.Generator(self.accelerator.device).manual_seed(self.seed)
