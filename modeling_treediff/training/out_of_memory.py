"""When a batch does not fit: advice, and the search for one that does."""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.utils import find_executable_batch_size, release_memory
from accelerate.utils.memory import should_reduce_batch_size

from modeling_treediff.diffusion_process import corrupt
from modeling_treediff.modeling_treediff import TreeDiffForDiffusionLM

from .settings import TrainingConfig


@contextmanager
def advised(advice: Callable[[], str]) -> Iterator[None]:
    """Turn an error for lack of memory into a MemoryError that says what can be done."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and not should_reduce_batch_size(error):
            raise
        raise MemoryError(f"Out of memory: {str(error).splitlines()[0]} {advice()}") from error


def advice(model: TreeDiffForDiffusionLM, config: TrainingConfig, length: int) -> str:
    """Return what lowers the peak of this run."""
    ways = [f"--batch-size {config.batch_size // 2} with twice the --accumulation"] if config.batch_size > 1 else []
    ways += [] if config.gradient_checkpointing else ["--gradient-checkpointing"]
    ways += [] if config.mixed_precision in ("bf16", "fp16") else ["--precision bf16"]
    return f"A step has {config.batch_size} windows of {length} tokens at a time. Try {', or '.join(ways)}."


def find_batch_size(
    model: TreeDiffForDiffusionLM, optimizer: torch.optim.Optimizer, config: TrainingConfig, length: int,
    accelerator: Accelerator,
) -> TrainingConfig:  # fmt: skip
    """Return the config with the largest batch size up to its own that fits the memory of all processes.

    The global batch stays: the accumulation grows by what the batch shrinks, so only divisors of their product are
    tried. Each is tried with two optimizer steps on noise, on the model itself, whose values are restored.

    Raises:
        MemoryError: not even one window fits.

    """
    windows = config.batch_size * config.gradient_accumulation_steps
    smaller = iter([size for size in range(config.batch_size - 1, 0, -1) if windows % size == 0])
    values = [parameter.detach().to("cpu", copy=True) for parameter in model.parameters()]

    @find_executable_batch_size(starting_batch_size=config.batch_size, reduce_batch_size_fn=lambda: next(smaller, 0))
    def fitting(batch_size: int) -> int:
        try:
            for _ in range(2):  # the optimizer's state exists from the second on
                _step_on_noise(model, optimizer, batch_size, length, accelerator)
        finally:
            _restore(model, optimizer, values)
        return batch_size

    try:
        found = fitting()
    except RuntimeError as error:
        if "reached zero" not in str(error):
            raise
        found = 0
    least = int(accelerator.gather(torch.tensor([found], device=accelerator.device)).min())
    if not least:
        smallest = dataclasses.replace(config, batch_size=1, global_batch_size=None)
        raise MemoryError(f"Out of memory with one window at a time. {advice(model, smallest, length)}")
    return dataclasses.replace(config, batch_size=least, gradient_accumulation_steps=windows // least)


def _step_on_noise(
    model: TreeDiffForDiffusionLM, optimizer: torch.optim.Optimizer, batch_size: int, length: int,
    accelerator: Accelerator,
) -> None:  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(model.config.vocab_size, (batch_size, length), generator=generator)
    batch = corrupt(tokens, model.tree.to("cpu"), model.schedule, generator=generator)
    inputs = {name: value.to(accelerator.device) for name, value in vars(batch).items()}
    # Processes that exchange gradients hold them a second time.
    buckets = [torch.empty_like(value) for value in model.parameters()] if accelerator.num_processes > 1 else []
    with accelerator.autocast():
        loss = model(**inputs).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    del buckets


@torch.no_grad()
def _restore(model: torch.nn.Module, optimizer: torch.optim.Optimizer, values: list[torch.Tensor]) -> None:
    optimizer.zero_grad()
    optimizer.state.clear()
    for parameter, value in zip(model.parameters(), values, strict=True):
        parameter.copy_(value)
    release_memory()
