"""Short training runs, for test_distributed.py: on any number of processes, sharded, parallel or alone.

Usage: distributed_worker.py RUNS, a JSON list of runs; see `run`.
"""

import json
import os
import sys
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DistributedDataParallelKwargs, DistributedType
from torch.distributed.tensor import DTensor

from helpers.models import tiny_model
from modeling_treediff import TreeDiffForDiffusionLM, corrupt
from modeling_treediff.building.balanced import random_tree
from modeling_treediff.diffusion_process import number_blocks
from modeling_treediff.hub import save_checkpoint
from modeling_treediff.training import make_lean
from modeling_treediff.training.run.distributed import (
    configure_sharding,
    end_processes,
    full_tensor,
    gather_for_methods,
    is_finite,
    load_full_state_dict,
    without_exchange,
)

PASSES, STEPS, SAVED_AFTER, DECAY = 4, 4, 2, 0.5  # passes per optimizer step, of all processes together
TREE = random_tree(100, branching=5, depth=3, seed=1, metadata={"tokenizer": "a test"})


def run(
    folder: str,
    environment: dict | None = None,
    precision: str = "no",
    resume: str | None = None,
    block_size: int | None = None,
) -> None:
    """Train, and write what was measured to FOLDER/result.pt; with `resume`, go on from that run's checkpoint."""
    output = Path(folder)
    accelerator = make_accelerator(environment or {}, precision)
    fields = {"head": "node", "head_rank": 8, "node_embedding": "factorised", "tie_word_embeddings": True}
    model = tiny_model(TREE, **fields, block_size=block_size).train()
    make_lean(model, recompute_mlp=1, loss_chunk=20)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 0.5, 1.0, STEPS)
    prepared, optimizer = accelerator.prepare(model, optimizer)
    accelerator.register_for_checkpointing(schedule)
    model = accelerator.unwrap_model(prepared)
    gather_for_methods(model)
    if resume:
        weights = torch.load(Path(resume) / "averaged.pt")
        parameters = {name: weights[name] for name, _ in model.named_parameters()}
        load_full_state_dict(accelerator, prepared, parameters, strict=False)  # the tables stay as they are
    averaged = Averaged(model)
    if resume:
        accelerator.load_state(f"{resume}/state")
    result = {"losses": [], "norms": [], "measured": [], "kind": accelerator.distributed_type.value}
    for step in range(SAVED_AFTER if resume else 0, STEPS):
        loss, norm = take_step(step, accelerator, prepared, optimizer)
        schedule.step()
        averaged.update()
        result["losses"].append(loss)
        result["norms"].append(norm)
        with averaged.in_place():
            result["measured"].append(measure(model))
            if step + 1 == SAVED_AFTER:
                weights = accelerator.get_state_dict(prepared)
                if accelerator.is_main_process:
                    torch.save(weights, output / "averaged.pt")
        if step + 1 == SAVED_AFTER:
            accelerator.save_state(str(output / "state"))
    result["measured"].append(measure(model))
    assert is_finite(accelerator, prepared)
    weights = accelerator.get_state_dict(prepared)
    save_checkpoint(model, output / "model", state_dict=dict(weights), is_main_process=accelerator.is_main_process)
    if accelerator.is_main_process:
        torch.save(result | {"weights": weights}, output / "result.pt")
    with torch.no_grad():  # a number that only the last process has, if there are several
        own = model.head.levels[0].weight
        own = own.to_local() if isinstance(own, DTensor) else own
        own[-1:] = torch.nan if accelerator.is_last_process else own[-1:]
    assert not is_finite(accelerator, prepared)
    accelerator.wait_for_everyone()


def make_accelerator(environment: dict, precision: str) -> Accelerator:
    """Accelerate shards on accelerators alone: a process that is to shard on the CPU must pass for one with a GPU."""
    AcceleratorState._reset_state()
    GradientState._reset_state()
    for name in [name for name in os.environ if name.startswith(("ACCELERATE_", "FSDP_"))]:
        del os.environ[name]
    os.environ.update(environment)
    state = PartialState(cpu=True)
    sharded = environment.get("ACCELERATE_USE_FSDP") == "true"
    own = DistributedType.MULTI_CPU if state.num_processes > 1 else DistributedType.NO
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU if sharded else own
    accelerator = Accelerator(
        cpu=True,
        mixed_precision=precision,
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )
    configure_sharding(accelerator)
    return accelerator


def take_step(step: int, accelerator: Accelerator, prepared, optimizer) -> tuple[float, float]:
    """One optimizer step; return the mean loss of its passes and the norm of its gradient."""
    losses, passes = [], PASSES // accelerator.num_processes
    for turn in range(passes):
        number = step * PASSES + turn * accelerator.num_processes + accelerator.process_index
        with nullcontext() if turn == passes - 1 else without_exchange(accelerator, prepared):
            loss = prepared(**batch(number, accelerator.unwrap_model(prepared))).loss
            assert loss.dtype == torch.float32
            accelerator.backward(loss / passes)
        if accelerator.is_fsdp2:  # no pass leaves whole gradients behind
            assert all(isinstance(parameter.grad, DTensor) for parameter in prepared.parameters())
        losses.append(loss.detach())
    norm = full_tensor(accelerator.clip_grad_norm_(prepared.parameters(), 1.0))
    optimizer.step()
    optimizer.zero_grad()
    return float(accelerator.reduce(torch.stack(losses).mean(), "mean")), float(norm)


def batch(number: int, model: TreeDiffForDiffusionLM) -> dict[str, torch.Tensor]:
    """The micro-batch of this number in the whole run, whoever takes it."""
    generator = torch.Generator().manual_seed(number)
    tokens = torch.randint(0, 100, (2, 16), generator=generator)
    size = model.config.block_size
    numbers = None if size is None else number_blocks(tokens, None, None, size)
    return vars(corrupt(tokens, TREE, model.schedule, generator=generator, block_numbers=numbers))


class Averaged:
    """Exponential moving average of parameters, sharded as they are."""

    def __init__(self, model):
        self.parameters = list(model.parameters())
        self.averages = [parameter.detach().clone() for parameter in self.parameters]

    @torch.no_grad()
    def update(self):
        torch._foreach_lerp_(self.averages, self.parameters, 1 - DECAY)

    @contextmanager
    def in_place(self):
        """The model has the averages for weights inside."""
        kept = [parameter.detach().clone() for parameter in self.parameters]
        self._put(self.averages)
        yield
        self._put(kept)

    @torch.no_grad()
    def _put(self, values):
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.copy_(value)


def measure(model: TreeDiffForDiffusionLM) -> dict:
    """Bound, text and probabilities of tokens."""
    model.eval()
    tokens = torch.randint(0, 100, (6, 16), generator=torch.Generator().manual_seed(7))
    bound = model.nelbo(tokens, num_samples=3, batch_size=4, generator=torch.Generator().manual_seed(7)).value
    text = model.generate(max_new_tokens=8, num_steps=8, generator=torch.Generator().manual_seed(7))
    nodes = text[:, :3].clone()
    nodes[:, 1] = model.config.mask_token_id
    leaves = model.token_log_probs(nodes)
    model.train()
    return {"bound": bound, "text": text, "leaves": leaves.exp()}


if __name__ == "__main__":
    for arguments in json.loads(sys.argv[1]):
        run(**arguments)
    end_processes()
