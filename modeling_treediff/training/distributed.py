"""What a loop must do so that the same code trains on one process, in parallel (DDP) or sharded (FSDP2).

FSDP2 keeps of every parameter one part (a DTensor) on each process and gathers the rest around `forward`. Accelerate
does most of the work; here is what it leaves to the loop, in the order of use:

    accelerator = Accelerator(...)
    configure_sharding(accelerator)
    model, optimizer = accelerator.prepare(model, optimizer)    # together: FSDP2 replaces the parameters
    gather_for_methods(model)                                   # from here on model.nelbo and model.generate work
    ...
    weights = accelerator.get_state_dict(model)                 # every process calls it; whole on the main one
    accelerator.unwrap_model(model).save_pretrained(folder, state_dict=weights, is_main_process=...)
    load_full_state_dict(accelerator, model, weights)           # the way back; any number of processes

The persistent integer tables of the tree are not sharded. All processes must build the model with the same seed: FSDP2,
unlike DDP, does not copy the first process's weights to the others.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, register_fsdp_forward_method

# What users and the loop call besides `forward`.
FORWARD_METHODS = ("nelbo", "generate", "leaf_log_probs")


def configure_sharding(accelerator: Accelerator) -> None:
    """Set what accelerate's FSDP2 plugin gets wrong for these models; call it before `prepare`. No-op without FSDP.

    - Under bf16 accelerate casts the inputs of `forward`, so the times, and the loss to bf16: with times of 8 bits the
      weights 1 / (t - window start), and with them a batch's loss, are off by up to some per cent. Here weights are
      gathered in bf16, gradients reduced and the loss returned in fp32; the sharded weights are fp32 anyway.
    - Accumulated gradients are reduced after every pass: kept whole until the last, as accelerate does to save
      communication, they would take as much memory as the unsharded model.

    Raises:
        ValueError: a kind of sharding that does not work with these models.

    """
    if accelerator.distributed_type in (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise ValueError(
            f"{accelerator.distributed_type.value} is not supported: shard with examples/accelerate_configs/fsdp2.yaml."
        )
    if accelerator.distributed_type is not DistributedType.FSDP:
        return
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
    accelerator.gradient_state.plugin_kwargs["sync_each_batch"] = True


def gather_for_methods(model: torch.nn.Module) -> None:
    """Let `nelbo`, `generate` and `leaf_log_probs` of a model prepared with FSDP2 gather its parameters; else a no-op.

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
    def call(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 -- whatever the method takes and returns
        try:
            return method(*args, **kwargs)
        finally:
            for module in model.modules():
                if isinstance(module, FSDPModule):
                    module.reshard()

    return call


def load_full_state_dict(accelerator: Accelerator, model: torch.nn.Module, state_dict: dict[str, torch.Tensor]) -> None:
    """Load a whole state dict, as `accelerator.get_state_dict` returns it, into a prepared model.

    Every process calls it. With FSDP2 only the main process's dict is read; any number of processes may have saved it.
    """
    if accelerator.is_fsdp2:
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
        whole: dict[str, Any] = dict(state_dict) if accelerator.is_main_process else {}
        set_model_state_dict(model, whole, options=options)
    else:
        accelerator.unwrap_model(model).load_state_dict(state_dict)
