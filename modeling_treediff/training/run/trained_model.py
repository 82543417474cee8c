"""The model of a run: wrapped for its processes while it trains, whole where it is evaluated, saved and loaded."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerBase

from modeling_treediff.hub.saving import save_checkpoint
from modeling_treediff.modeling_treediff import TreeDiffForDiffusionLM

from .averaging import WeightAverage
from .distributed import gather_for_methods, is_finite, load_full_state_dict

TRAINING_WEIGHTS_NAME = "training_weights.safetensors"


class TrainedModel:
    """The one place that knows how the model is wrapped, and which of its two sets of weights is meant.

    With a moving average on, *the model* is the average: it is evaluated, generates, and is what `from_pretrained`
    finds in a checkpoint; the weights that the optimizer works on lie beside it in a file of their own.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        prepared: torch.nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        ema_decay: float,
    ) -> None:
        """Take a model that went through `accelerator.prepare`; average its weights if `ema_decay` is above 0."""
        self.accelerator, self.prepared, self.tokenizer = accelerator, prepared, tokenizer
        gather_for_methods(self.whole)
        self.average = WeightAverage(self.whole.parameters(), ema_decay) if ema_decay else None

    @property
    def whole(self) -> TreeDiffForDiffusionLM:
        """The model itself, without what wraps or compiles it for training."""
        return self.accelerator.unwrap_model(self.prepared, keep_torch_compile=False)

    def full_state(self) -> dict[str, torch.Tensor]:
        """Return all parameters and buffers by name; where they are sharded, gathered on the main process."""
        return self.accelerator.get_state_dict(self.whole)

    @contextmanager
    def evaluated(self) -> Iterator[TreeDiffForDiffusionLM]:
        """Give the model as it is evaluated: averaged if there is an average, in evaluation mode."""
        model = self.whole
        model.eval()
        try:
            with self.average.applied() if self.average else nullcontext():
                yield model
        finally:
            model.train()

    def finish_step(self, step: int) -> None:
        """Move the average, after the optimizer's step of this number."""
        if self.average:
            self.average.update(step)

    def is_finite(self) -> bool:
        """Tell whether all parameters are numbers."""
        return is_finite(self.accelerator, self.prepared)

    def save(self, folder: Path) -> None:
        """Write the evaluated model, for `from_pretrained`; every process calls this, the main one writes."""
        with self.evaluated() as model:
            save_checkpoint(
                model,
                folder,
                self.tokenizer,
                is_main_process=self.accelerator.is_main_process,
                state_dict=self.full_state(),
            )

    def save_state(self, folder: Path) -> None:
        """Write all that `load_state` needs."""
        self.save(folder)
        if self.average:
            state = self.full_state()
            if self.accelerator.is_main_process:
                save_file(
                    {name: state[name] for name, _ in self.whole.named_parameters()}, folder / TRAINING_WEIGHTS_NAME
                )

    def load_state(self, folder: Path) -> None:
        """Read what `save_state` wrote."""
        state = TreeDiffForDiffusionLM.from_pretrained(folder).state_dict()
        load_full_state_dict(self.accelerator, self.prepared, state)
        if self.average:
            self.average.restart()
            state = load_file(folder / TRAINING_WEIGHTS_NAME)
            load_full_state_dict(self.accelerator, self.prepared, state, strict=False)

    def checkpoint_bytes(self) -> int:
        """Return about how many bytes a checkpoint takes: weights, their average, two moments of AdamW.

        Accelerate writes the weights of a sharded model once more, in parts.
        """
        model = self.whole
        size = {True: 0, False: 0}
        for parameter in model.parameters():
            size[parameter.requires_grad] += parameter.numel() * parameter.element_size()
        tables = sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())
        weights = size[True] + size[False]
        copies = 1 + bool(self.average) + self.accelerator.is_fsdp2
        return copies * weights + tables + 2 * size[True]
