"""Distributed training: what DDP and FSDP2 need beyond one process.

FSDP2 keeps of every parameter one part (a DTensor) on each process and gathers the rest around `forward`. Accelerate
does most of the work; here is what it leaves to the loop, in the order of use:

    accelerator = Accelerator(...)
    configure_sharding(accelerator)
    prepared, optimizer = accelerator.prepare(model, optimizer)  # together: FSDP2 replaces the parameters
    gather_for_methods(model)                                    # from here on model.nelbo and model.generate work
    with without_exchange(accelerator, prepared): ...            # all passes of a step but the last
    norm = full_tensor(accelerator.clip_grad_norm_(prepared.parameters(), ...))
    is_finite(accelerator, prepared)
    weights = accelerator.get_state_dict(prepared)               # every process calls it; whole on the main one
    save_checkpoint(model, folder, state_dict=weights, is_main_process=accelerator.is_main_process)
    load_full_state_dict(accelerator, prepared, weights)         # the way back, with any number of processes
    end_processes()                                              # when all else is done

The persistent integer tables of the tree are not sharded. All processes must build the model with the same seed: FSDP2,
unlike DDP, does not copy the first process's weights to the others.
"""

import logging
import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, compare_versions
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

# What users and the loop call besides `forward`.
FORWARD_METHODS = ("nelbo", "generate", "token_log_probs")


def configure_sharding(accelerator: Accelerator) -> None:
    """Set what accelerate's FSDP2 plugin gets wrong for these models; call it before `prepare`. No-op without FSDP.

    Under bf16 accelerate casts the inputs of `forward`, so the times, and the loss to bf16: with times of 8 bits the
    weights 1 / (t - interval start), and with them a batch's loss, are off by up to some per cent. Here weights are
    gathered in bf16, gradients reduced and the loss returned in fp32; the sharded weights are fp32 anyway.

    Raises:
        ValueError: a kind of sharding that does not work with these models.

    """
    if accelerator.distributed_type in (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise ValueError(
            f"{accelerator.distributed_type.value} is not supported: shard with examples/accelerate_configs/fsdp2.yaml."
        )
    if accelerator.distributed_type is not DistributedType.FSDP:
        return
    if compare_versions("accelerate", "<", "1.13"):
        raise ValueError(
            "FSDP2 needs accelerate >= 1.13: earlier ones lose the optimizer's state when a sharded run resumes."
        )
    plugin = accelerator.state.fsdp_plugin
    if plugin.fsdp_version != 2:
        raise ValueError("FSDP1 is not supported: set fsdp_version to 2 in accelerate's config file.")
    if plugin.cpu_ram_efficient_loading:
        raise ValueError(
            "Accelerate's fsdp_cpu_ram_efficient_loading cannot load the tree's integer tables: set it to false."
        )
    if accelerator.mixed_precision not in ("no", "bf16"):
        raise ValueError(f"FSDP2 trains these models in fp32 or bf16, not {accelerator.mixed_precision}.")
    plugin.mixed_precision_policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if accelerator.mixed_precision == "bf16" else None,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,
    )


def gather_for_methods(model: torch.nn.Module) -> None:
    """Let `nelbo`, `generate` and `token_log_probs` of a model prepared with FSDP2 gather its parameters; else a no-op.

    Every process must call them with as many sequences and the same settings, as each forward pass is a meeting of all.
    Afterwards all is sharded again: parameters still gathered would hide later changes of the parts, such as averaged
    weights put in for an evaluation.
    """
    if not isinstance(model, FSDPModule):
        return
    for name in FORWARD_METHODS:
        register_fsdp_forward_method(model, name)
        setattr(model, name, _resharding(model, getattr(model, name)))


def _resharding(model: torch.nn.Module, method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return method(*args, **kwargs)
        finally:
            for module in model.modules():
                if isinstance(module, FSDPModule):
                    module.reshard()

    return call


def without_exchange(accelerator: Accelerator, model: torch.nn.Module) -> AbstractContextManager[object]:
    """Return the context for all passes of an optimizer step but the last, whose gradients need not be exchanged yet.

    FSDP2 exchanges them in every pass: kept whole until the last, they would take as much memory as a whole model.
    """
    return nullcontext() if accelerator.is_fsdp2 else accelerator.no_sync(model)


def full_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """Return the whole of a tensor that may be sharded, such as the gradient's norm; every process calls this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def is_finite(accelerator: Accelerator, model: torch.nn.Module) -> bool:
    """Tell on all processes whether all parameters are numbers; `isfinite().all()` sees only the own part of each."""
    parts = [part.to_local() if isinstance(part, DTensor) else part for part in model.parameters()]
    finite = torch.stack([part.isfinite().all() for part in parts]).all()
    return bool(accelerator.gather(finite[None]).all())


def load_full_state_dict(
    accelerator: Accelerator, model: torch.nn.Module, state_dict: dict[str, torch.Tensor], strict: bool = True
) -> None:
    """Load a whole state dict, as `accelerator.get_state_dict` returns it, into a prepared model.

    Every process calls it. With FSDP2 only the main process's dict is read; any number of processes may have saved it.
    Entries may be missing if not `strict`.
    """
    if accelerator.is_fsdp2:
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=strict)
        whole: dict[str, Any] = dict(state_dict) if accelerator.is_main_process else {}
        set_model_state_dict(model, whole, options=options)
    else:
        accelerator.unwrap_model(model, keep_torch_compile=False).load_state_dict(state_dict, strict=strict)


def end_processes() -> None:
    """End the connection of processes that trained together, when all have come here.

    Where they talk by Gloo (on CPUs), each also exits here, with code 0: its threads stay after
    `destroy_process_group` as long as DDP or FSDP2 has held the group, and one that lets go of a tensor while Python
    shuts down aborts the process (https://github.com/pytorch/pytorch/pull/179291).
    """
    state = PartialState()
    state.wait_for_everyone()  # a process that left while another still worked could die of its connections
    with_gloo = torch.distributed.is_initialized() and torch.distributed.get_backend() == "gloo"
    state.destroy_process_group()
    if with_gloo:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
