"""One training step on fake tensors: every allocation, with its size, its life and its purpose, and no memory used.

The step is the real one: the model's own forward with labels and times under autocast, backward, clipping, fused AdamW.
Fake tensors have shapes and types only. They stand on the CPU, so no GPU is needed; scaled dot-product attention takes
its flash kernel there as on CUDA, which keeps no (T, T) scores. Norms, several operations on a CPU, are taken for the
one kernel that they are on CUDA.
"""

import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from modeling_treediff.configuration_treediff import TreeDiffConfig
from modeling_treediff.modeling_treediff import TreeDiffForDiffusionLM
from modeling_treediff.training.run.trained_model import checkpoint_activations

BLOCK = 512  # the CUDA allocator rounds up to it
CATEGORIES = ("parameters", "EMA", "optimizer state", "gradients", "activations", "head and logits", "temporaries")


@dataclass
class Allocation:
    """One storage.

    Attributes:
        size: bytes.
        scope: what was running when it was made: a phase or a category.
        born: number of the event.
        died: number of the event; None while it lives.
        category: one of `CATEGORIES`.

    """

    size: int
    scope: str
    born: int
    died: int | None = None
    category: str = "temporaries"


class Ledger(TorchDispatchMode):
    """Writes down every storage that any operation returns, when it came and when it went.

    Attributes:
        allocations: all of them, oldest first.
        clock: number of births and deaths so far.
        scope: written into the allocations to come.
        phases: (name, event it begins at).

    """

    def __init__(self) -> None:
        """Start empty."""
        super().__init__()
        self.allocations: list[Allocation] = []
        self.clock = 0
        self.scope = "parameters"
        self.phases: list[tuple[str, int]] = []
        self._living: dict[int, Allocation] = {}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,  # noqa: ANN401 -- torch's signature
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Run the operation and note what it returned."""
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._note(leaf.untyped_storage())
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._living:
            return
        size = -(-storage.nbytes() // BLOCK) * BLOCK
        category = self.scope if self.scope in CATEGORIES else "temporaries"
        allocation = Allocation(size, self.scope, self.clock, category=category)
        self.clock += 1
        self.allocations.append(allocation)
        self._living[key] = allocation
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        allocation = self._living.pop(key, None)
        if allocation is not None:
            allocation.died = self.clock
            self.clock += 1

    def close(self) -> None:
        """End the book: what dies from here on, with the fake model, was alive after the step."""
        self._living.clear()

    def begin(self, phase: str) -> None:
        """Enter a phase of the step."""
        self.scope = phase
        self.phases.append((phase, self.clock))

    def file(self, category: str, scope: str) -> None:
        """Put what lives and was made in a scope into a category."""
        for allocation in self._living.values():
            if allocation.scope == scope:
                allocation.category = category

    def file_tensors(self, category: str, tensors: list[torch.Tensor]) -> None:
        """Put the storages of these tensors into a category."""
        for tensor in tensors:
            self._living[tensor.untyped_storage()._cdata].category = category


def record_step(
    config: TreeDiffConfig,
    batch_size: int,
    length: int,
    precision: str,
    accumulation: int,
    gradient_checkpointing: bool,
    ema: bool,
) -> Ledger:
    """Run one optimizer step of a model of this config and return what it allocated; see `plan_memory`."""
    with torch.device("meta"):
        model = TreeDiffForDiffusionLM(config).train()
    if gradient_checkpointing:
        checkpoint_activations(model)
    shapes, ledger = model.state_dict(), Ledger()
    with FakeTensorMode(), norms_as_on_cuda(), ledger:
        average = _make_state(model, shapes, ledger, ema)
        optimizer = _make_optimizer(model, ledger)
        _watch_head(model, ledger)
        batch = _make_batch(batch_size, length)
        for _ in range(min(accumulation, 2)):  # the second pass finds the gradients of the first; further ones too
            _pass(model, batch, precision, ledger)
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
    def forward(ctx: Any, features: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
        ctx.save_for_backward(features, features.new_empty(features.shape[:-1], dtype=torch.float32), weight)
        return torch.empty_like(features)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # noqa: ANN401
        features, _, weight = ctx.saved_tensors
        return torch.empty_like(features), torch.empty_like(weight)


def norms_as_on_cuda() -> AbstractContextManager:
    """Give every RMSNorm the memory, not the values, of CUDA's kernel."""
    return patch.object(F, "rms_norm", lambda features, shape, weight, eps: _NormKernel.apply(features, weight))


def _make_state(
    model: TreeDiffForDiffusionLM, shapes: dict[str, torch.Tensor], ledger: Ledger, ema: bool
) -> list[torch.Tensor]:
    """Give the meta model fake tensors; return the average of its parameters, if wanted."""
    state = {name: torch.empty(value.shape, dtype=value.dtype) for name, value in shapes.items()}
    model.load_state_dict(state, assign=True)
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


def _make_batch(batch_size: int, length: int) -> dict[str, torch.Tensor]:
    ids = {name: torch.zeros(batch_size, length, dtype=torch.long) for name in ("input_ids", "labels")}
    return ids | {"timesteps": torch.ones(batch_size)}


def _watch_head(model: TreeDiffForDiffusionLM, ledger: Ledger) -> None:
    """Let the scope be "head and logits" between the backbone's forward and its backward."""

    def leave(module: torch.nn.Module, args: Any, hidden: torch.Tensor) -> None:  # noqa: ANN401
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
