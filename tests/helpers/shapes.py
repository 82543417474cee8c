"""What a computation holds: the sizes of all its tensors."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Shapes(TorchDispatchMode):
    """Records the sizes of everything that any operation of the graph returns, forward and backward.

    By default of floating-point numbers alone.
    """

    def __init__(self, floating_only=True):
        super().__init__()
        self.seen, self.floating_only = set(), floating_only

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and (leaf.is_floating_point() or not self.floating_only):
                self.seen.add((str(function), tuple(leaf.shape)))
        return result
