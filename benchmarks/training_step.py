"""One training step as benchmarks take it: on noise, always the same batch, with clipping and AdamW."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from transformers import PreTrainedModel

from modeling_treediff import TreeDiffForDiffusionLM, corrupt
from modeling_treediff.diffusion_process import number_blocks

Batch = Mapping[str, torch.Tensor]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}  # of matrix products, by the name of the precision

# Torch has the formulas of attention, but not for the CPU's kernel; they take shapes of tensors.
CPU_ATTENTION: dict[Any, Any] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda query, key, value, *_, **__: sdpa_flop_count(
        query, key, value
    ),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda grad, query, key, value, *_, **__: sdpa_backward_flop_count(grad, query, key, value)
    ),
}


def random_batch(model: PreTrainedModel, batch_size: int, sequence_length: int) -> dict[str, torch.Tensor]:
    """Return the arguments of `model.forward` for random tokens, on the model's device.

    Nodes, labels and times; of a model of transformers, such as GPT-2, the tokens, which are their own labels.
    """
    tokens_BT = torch.randint(0, model.config.vocab_size, (batch_size, sequence_length), device=model.device)
    if not isinstance(model, TreeDiffForDiffusionLM):
        return {"input_ids": tokens_BT, "labels": tokens_BT}
    size = model.config.block_size
    numbers = None if size is None else number_blocks(tokens_BT, None, None, size)
    noisy = corrupt(tokens_BT, model.tree, model.schedule, block_numbers=numbers)
    return {"input_ids": noisy.input_ids, "labels": noisy.labels, "timesteps": noisy.timesteps}


def training_step(model: PreTrainedModel, batch: Batch, precision: str) -> Callable[[], None]:
    """Return a function that takes one optimizer step of the model in "bf16" (autocast) or "fp32"."""
    optimizer = torch.optim.AdamW(model.train().parameters(), fused=True)

    def step() -> None:
        with autocast(model.device.type, precision):
            loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def autocast(device: str, precision: str) -> AbstractContextManager[object]:
    """Return the context in which matrix products have the precision."""
    return nullcontext() if precision == "fp32" else torch.autocast(device, DTYPES[precision])


def count_flops(step: Callable[[], None]) -> int:
    """Return the floating-point operations of all matrix products of a step, attention and what it repeats included."""
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        step()
    return counter.get_total_flops()
