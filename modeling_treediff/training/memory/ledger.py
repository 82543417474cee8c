"""A ledger of all tensor allocations: size, lifetime and purpose."""

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

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
    """Records every storage that an operation returns, when it was allocated and freed.

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
        func: Callable[..., object],
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
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
