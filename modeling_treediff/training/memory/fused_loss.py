"""A cross-entropy loss with less memory: computed in chunks, or by Liger's fused kernel.

Shape legend: B sequences, T positions, n = B T, E hidden size, K largest fan-out.
"""

from collections.abc import Callable
from functools import cache
from importlib.metadata import version

import torch
from torch import nn
from torch.torch_version import TorchVersion
from torch.utils.checkpoint import checkpoint
from transformers.utils import is_liger_kernel_available

from modeling_treediff.node_layers_treediff import ChildHead, LeafHead, TreeHead, child_cross_entropy
from modeling_treediff.vocabulary_tree import VocabularyTree

from .lean_operations import as_autocast

FusedKernel = Callable[..., torch.Tensor]


def lean_cross_entropy(
    head: TreeHead,
    hidden: torch.Tensor,
    input_ids: torch.Tensor,
    slots: torch.Tensor,
    tree: VocabularyTree,
    chunk: int | None = None,
    level: int | None = None,
) -> torch.Tensor:
    """Return the cross-entropy of the true child at every position: (B, T) nats, in fp32 at least.

    Dense identity: child_cross_entropy(head, hidden, input_ids, slots, tree). Under autocast the hidden states are cast
    once for all levels of a call, each of which keeps its input.

    Args:
        head: any of `node_layers_treediff.py`.
        hidden: (B, T, E) hidden states.
        input_ids: (B, T) nodes.
        slots: (B, T) slot of the true child under the node, -100 where not counted.
        tree: the vocabulary tree, on the same device.
        chunk: positions whose logits are alive at a time, computed in forward and again in backward; by default all.
            It saves memory where logits are as wide as the vocabulary. On CUDA, where liger-kernel (0.8.5 or later) is
            installed, the flat tree uses its fused kernel instead, which chooses the size itself.
        level: the depth of all nodes but leaves, if it is one.

    """

    def nats(hidden_nE: torch.Tensor, input_ids_n: torch.Tensor, slot_n: torch.Tensor) -> torch.Tensor:
        return child_cross_entropy(head, as_autocast(hidden_nE), input_ids_n, slot_n, tree, level)

    flat = (hidden.flatten(0, -2), input_ids.flatten(), slots.flatten())
    if chunk is None:
        return nats(*flat).view_as(slots)
    if hidden.is_cuda and not torch.compiler.is_compiling() and (kernel := fused_kernel()) is not None:
        if (layer_and_rows := flat_layer(head, flat[2], tree)) is not None:
            return kernel_cross_entropy(kernel, flat[0], *layer_and_rows).view_as(slots)
    chunks = zip(*(part.split(chunk) for part in flat), strict=True)
    parts = [checkpoint(nats, *some, use_reentrant=False, preserve_rng_state=False) for some in chunks]
    return torch.cat(parts).view_as(slots)


def kernel_cross_entropy(
    kernel: FusedKernel, hidden_nE: torch.Tensor, layer: nn.Linear, rows_n: torch.Tensor
) -> torch.Tensor:
    """Return F.cross_entropy(layer(hidden), rows, reduction="none") by Liger's kernel: (n,) nats in fp32 at least.

    It computes the logits in chunks, again in backward, where it needs the positions' weights.
    """
    return kernel(
        hidden_nE, layer.weight, rows_n, layer.bias, ignore_index=-100, reduction="none", accum_dtype=torch.float32
    )


def flat_layer(head: TreeHead, slot_n: torch.Tensor, tree: VocabularyTree) -> tuple[nn.Linear, torch.Tensor] | None:
    """Return the plain layer that is the whole head on the flat tree, and the rows of its outputs for the slots."""
    if tree.children.shape != (1, tree.vocab_size):
        return None
    if isinstance(head, ChildHead):
        layer, rows_n = head.levels[0], slot_n
    elif isinstance(head, LeafHead):
        layer, rows_n = head.tokens, torch.where(slot_n < 0, slot_n, tree.children[0][slot_n.clamp(min=0)])
    else:
        return None
    return (layer, rows_n) if type(layer) is nn.Linear else None  # an adapter must be called


@cache
def fused_kernel() -> FusedKernel | None:
    """Return Liger's fused linear layer and cross-entropy, of releases that can weigh positions in backward."""
    if is_liger_kernel_available() and TorchVersion(version("liger-kernel")) >= "0.8.5":
        from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

        return liger_fused_linear_cross_entropy
    return None
