"""Out of memory: advice, and the search for a batch size that fits."""

import dataclasses
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.utils import find_executable_batch_size, release_memory
from accelerate.utils.memory import should_reduce_batch_size

from modeling_treediff.configuration_treediff import TreeDiffConfig
from modeling_treediff.diffusion_process import corrupt, number_blocks
from modeling_treediff.modeling_treediff import TreeDiffForDiffusionLM
from modeling_treediff.training.memory.plan import MemoryPlan, plan_memory
from modeling_treediff.training.memory.tracker import readable

from .preflight import make_accelerator
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


def plan_run(model_config: TreeDiffConfig, config: TrainingConfig, sequence_length: int) -> MemoryPlan:
    """Return the plan of a run's steps, on the processes and in the precision that it was launched with."""
    accelerator = make_accelerator(config)
    config = config.on_processes(accelerator.num_processes)
    return plan_memory(
        model_config,
        config.batch_size,
        sequence_length,
        precision={"no": "fp32"}.get(accelerator.mixed_precision, accelerator.mixed_precision),
        accumulation=config.gradient_accumulation_steps,
        gradient_checkpointing=config.gradient_checkpointing,
        ema=config.ema_decay > 0,
        processes=accelerator.num_processes,
        sharded=accelerator.is_fsdp2,
        recompute_mlp=config.recompute_mlp,
        loss_chunk=config.loss_chunk,
        attn_implementation="eager" if config.attn_implementation == "eager" else None,
    )


def device_memory(device: torch.device) -> int:
    """Return the memory of an accelerator, or of the host, in bytes."""
    if device.type == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return torch.get_device_module(device).mem_get_info(device)[1]


def advice(model_config: TreeDiffConfig, config: TrainingConfig, sequence_length: int, memory: int) -> str:
    """Return what lowers the peak of this run on a device with `memory` bytes."""
    plan = plan_run(model_config, config, sequence_length)
    if not plan.fits(memory):
        return plan.advice(memory)
    return (
        f"By plan a step takes {readable(plan.peak)} of this device's {readable(memory)}, so something else holds "
        "memory there: end it, or take a smaller --batch-size with more --gradient-accumulation-steps."
    )


def find_batch_size(
    model: TreeDiffForDiffusionLM, optimizer: torch.optim.Optimizer, config: TrainingConfig, sequence_length: int,
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
                _step_on_noise(model, optimizer, batch_size, sequence_length, accelerator)
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
        hint = advice(model.config, smallest, sequence_length, device_memory(accelerator.device))
        raise MemoryError(f"Out of memory with one window at a time. {hint}")
    return dataclasses.replace(config, batch_size=least, gradient_accumulation_steps=windows // least)


def _step_on_noise(
    model: TreeDiffForDiffusionLM, optimizer: torch.optim.Optimizer, batch_size: int, sequence_length: int,
    accelerator: Accelerator,
) -> None:  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(model.config.vocab_size, (batch_size, sequence_length), generator=generator)
    size = model.config.block_size
    numbers = None if size is None else number_blocks(tokens, None, None, size)
    batch = corrupt(tokens, model.tree.to("cpu"), model.schedule, generator=generator, block_numbers=numbers)
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
