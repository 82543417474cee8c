"""One training step on fake tensors: every allocation of it is written down, and none is made.

The step is the real one: the model's own forward with labels and times under autocast, backward, clipping, fused AdamW.
Fake tensors have shapes and types only. They stand on the CPU, so no GPU is needed; scaled dot-product attention takes
its flash kernel there as on CUDA, which keeps no (T, T) scores, unlike eager attention. Norms, several operations on a
CPU, are taken for the one kernel that they are on CUDA.
"""

from contextlib import AbstractContextManager
from copy import deepcopy
from dataclasses import dataclass
from unittest.mock import patch

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from modeling_treediff.configuration_treediff import TreeDiffConfig
from modeling_treediff.modeling_treediff import TreeDiffForDiffusionLM

from .lean_blocks import checkpoint_activations, make_lean
from .lean_operations import BackwardContext
from .ledger import Ledger

PRECISIONS = ("fp32", "bf16", "fp16")
MOST_LAYERS = 1000  # which take a few minutes


@dataclass(frozen=True)
class TrainingStep:
    """One optimizer step of a run.

    Attributes:
        model_config: sizes of the model.
        batch_size: windows per process and forward pass.
        sequence_length: tokens per window.
        precision: "fp32", "bf16" or "fp16".
        accumulation: forward passes.
        gradient_checkpointing: blocks are computed again in backward.
        ema: an average of the parameters is kept.
        processes: that share the work.
        sharded: over the processes, by FSDP2; else they are parallel, by DDP.
        recompute_mlp: layers whose MLPs are computed again in backward, see `make_lean`.
        loss_chunk: positions whose logits are kept at a time, see there; None for all.
        lean: as `make_lean` makes the model, which training does; else as autograd keeps it, without the two above.
        attn_implementation: "sdpa" or "eager"; None for that of the config.

    """

    model_config: TreeDiffConfig
    batch_size: int
    sequence_length: int
    precision: str = "bf16"
    accumulation: int = 1
    gradient_checkpointing: bool = False
    ema: bool = False
    processes: int = 1
    sharded: bool = False
    recompute_mlp: int = 0
    loss_chunk: int | None = None
    lean: bool = True
    attn_implementation: str | None = None

    def __post_init__(self) -> None:
        """Refuse what no step can be."""
        chunk = () if self.loss_chunk is None else ("loss_chunk",)
        for name in ("batch_size", "sequence_length", "accumulation", "processes", *chunk):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.recompute_mlp < 0:
            raise ValueError(f"recompute_mlp must not be negative, got {self.recompute_mlp}.")
        if not self.lean and (self.recompute_mlp or chunk):
            raise ValueError("Only a lean step recomputes MLPs or cuts its loss into chunks.")
        if self.precision not in PRECISIONS:
            raise ValueError(f"Unknown precision {self.precision!r}; known: {', '.join(PRECISIONS)}.")
        if (layers := self.model_config.num_hidden_layers) > MOST_LAYERS:
            raise ValueError(
                f"{layers} layers are not planned, since the step goes through each: {MOST_LAYERS} at most."
            )
        limit = self.model_config.max_position_embeddings
        if self.sequence_length > limit:
            raise ValueError(f"Windows of {self.sequence_length} tokens are longer than the model's {limit} positions.")


def record_step(step: TrainingStep) -> Ledger:
    """Run a step on a model of its config and return what it allocated, as one of several processes if it has some."""
    with torch.device("meta"):
        model = TreeDiffForDiffusionLM(deepcopy(step.model_config)).train()
    if step.attn_implementation is not None:
        model.set_attn_implementation(step.attn_implementation)
    if step.lean:
        make_lean(model, step.recompute_mlp, step.loss_chunk)
    if step.gradient_checkpointing:
        checkpoint_activations(model)
    shapes, ledger = model.state_dict(), Ledger()
    with FakeTensorMode(), norms_as_on_cuda(), ledger:
        average = _make_state(model, shapes, ledger, step.ema)
        optimizer = _make_optimizer(model, ledger)
        _watch_head(model, ledger)
        batch = _make_batch(step.batch_size, step.sequence_length, step.model_config.block_size is not None)
        for _ in range(min(step.accumulation, 2)):  # the second pass finds the gradients of the first; more ones too
            _pass(model, batch, step.precision, ledger)
        ledger.begin("optimizer")
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        ledger.close()
        del average  # until here it lives
    return ledger


class _NormKernel(torch.autograd.Function):
    """The sizes of CUDA's RMSNorm: it keeps its input and one number per position."""

    @staticmethod
    def forward(ctx: BackwardContext, features: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(features, features.new_empty(features.shape[:-1], dtype=torch.float32), weight)
        return torch.empty_like(features)

    @staticmethod
    def backward(ctx: BackwardContext, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features, _, weight = ctx.saved_tensors
        return torch.empty_like(features), torch.empty_like(weight)


def norms_as_on_cuda() -> AbstractContextManager[object]:
    """Give every RMSNorm the memory, not the values, of CUDA's kernel."""
    return patch.object(F, "rms_norm", lambda features, shape, weight, eps: _NormKernel.apply(features, weight))


def _make_state(
    model: TreeDiffForDiffusionLM, shapes: dict[str, torch.Tensor], ledger: Ledger, ema: bool
) -> list[torch.Tensor]:
    """Give the meta model fake tensors; return the average of its parameters, if wanted."""
    state = {name: torch.empty(value.shape, dtype=value.dtype) for name, value in shapes.items()}
    model.load_state_dict(state, assign=True)
    model.tie_weights()  # which each name had one of
    model.model.tree_tables.verified = True  # fake tensors have no values to look at
    average = [torch.empty_like(parameter) for parameter in model.parameters() if ema]
    ledger.file_tensors("EMA", average)
    return average


def _make_optimizer(model: TreeDiffForDiffusionLM, ledger: Ledger) -> torch.optim.Optimizer:
    """Return AdamW after a first step, with its state."""
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    ledger.scope = "optimizer state"
    for parameter in model.parameters():
        parameter.grad = torch.empty_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return optimizer


def _make_batch(batch_size: int, sequence_length: int, has_blocks: bool) -> dict[str, torch.Tensor]:
    ids = {name: torch.zeros(batch_size, sequence_length, dtype=torch.long) for name in ("input_ids", "labels")}
    return ids | {"timesteps": torch.ones((batch_size, sequence_length) if has_blocks else batch_size)}


def _watch_head(model: TreeDiffForDiffusionLM, ledger: Ledger) -> None:
    """Let the scope be "head and logits" between the backbone's forward and its backward."""

    def leave(module: torch.nn.Module, args: tuple[object, ...], hidden: torch.Tensor) -> None:
        ledger.scope = "head and logits"
        hidden.register_hook(enter)

    def enter(grad: torch.Tensor) -> None:
        ledger.scope = "backward"

    model.model.backbone.register_forward_hook(leave)


def _pass(model: TreeDiffForDiffusionLM, batch: dict[str, torch.Tensor], precision: str, ledger: Ledger) -> None:
    """One forward and backward pass, and the purpose of all that came of it."""
    ledger.begin("forward")
    with torch.autocast("cpu", torch.bfloat16, enabled=precision != "fp32"):
        loss = model(**batch).loss
    ledger.file("activations", "forward")
    ledger.phases.append(("backward", ledger.clock))
    loss.backward()
    ledger.file_tensors("gradients", [parameter.grad for parameter in model.parameters() if parameter.grad is not None])
