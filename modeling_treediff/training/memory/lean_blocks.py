"""Lean blocks: forwards that keep fewer activations, on the same parameters, with the same values and gradients.

A textbook block keeps every tensor that autograd asks for. A lean one computes norms, activations and casts again in
backward (`lean_operations.py`), and the loss can be computed in parts (`fused_loss.py`). `make_lean` sets these
forwards as attributes of the model's own modules: classes, parameters and state dict stay the same, a copy of the model
is lean too, and a saved model is plain. Layers that do more than a matrix product (LoRA, quantised weights, hooks,
offloading) are called as usual. In a compiled model the compiler is told what to keep instead.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer

from modeling_treediff.backbone_treediff import AttentionMask, Rotation, TreeDiffBlock
from modeling_treediff.modeling_treediff import TreeDiffLanguageModel

from .fused_loss import lean_cross_entropy
from .lean_operations import (
    can_be_lean,
    gated_projection,
    keep_products,
    may_be_passed_over,
    normed_projections,
    projection,
    recomputed,
    recomputed_gated_projection,
)

# Since transformers 5.23 a block's class wraps `forward` for gradient checkpointing, which an instance's own `forward`
# passes by; before, it wraps `__call__`.
CHECKPOINTS_IN_FORWARD = "__call__" not in vars(GradientCheckpointingLayer)


def make_lean(model: TreeDiffLanguageModel, recompute_mlp: int = 0, loss_chunk: int | None = None) -> None:
    """Make a model keep less for backward, in place; call it before `accelerate.prepare`, DDP, FSDP2, `torch.compile`.

    Dense identity: the loss and gradients of the textbook model, up to rounding in the order of sums. A second call
    replaces the settings of the first; `undo_lean` puts the textbook forwards back.

    Args:
        model: a diffusion language model. A block whose `forward` other code has replaced stays as it is.
        recompute_mlp: number of layers, the first ones, whose MLPs keep nothing for backward in training and compute
            two of their three matrix products again: less memory for more time.
        loss_chunk: positions for which logits are kept at a time in the loss; by default for all. It saves memory
            where logits are as wide as the vocabulary, on the flat tree and with the "leaf" head.

    Raises:
        ValueError: a negative `recompute_mlp`, a `loss_chunk` below 1, or any for a model of perturbed nodes.

    """
    if recompute_mlp < 0:
        raise ValueError(f"recompute_mlp must not be negative, got {recompute_mlp}.")
    if loss_chunk is not None and loss_chunk < 1:
        raise ValueError(f"loss_chunk must be at least 1 position, got {loss_chunk}.")
    if loss_chunk is not None and model.schedule.perturbation:
        raise ValueError("The loss of perturbed nodes has no chunks: leave out loss_chunk.")
    for index, block in enumerate(model.model.backbone.layers):
        if "forward" not in vars(block) or _is_lean(block):
            vars(block)["forward"] = partial(_lean_block, block, index < recompute_mlp)
    vars(model)["child_cross_entropy"] = partial(_lean_loss, model, loss_chunk)


def undo_lean(model: TreeDiffLanguageModel) -> None:
    """Put back the textbook forwards that `make_lean` replaced; does nothing to a model that is not lean."""
    for block in model.model.backbone.layers:
        if _is_lean(block):
            del vars(block)["forward"]
    vars(model).pop("child_cross_entropy", None)


def _is_lean(block: nn.Module) -> bool:
    return getattr(vars(block).get("forward"), "func", None) is _lean_block


def _lean_loss(
    model: TreeDiffLanguageModel,
    chunk: int | None,
    hidden: torch.Tensor,
    input_ids: torch.Tensor,
    slots: torch.Tensor,
    level: int | None = None,
) -> torch.Tensor:
    """(B, T, E) hidden states, (B, T) nodes and slots -> (B, T) nats: the model's `child_cross_entropy`."""
    return lean_cross_entropy(model.head, hidden, input_ids, slots, model.tree, chunk, level)


def _lean_block(
    block: TreeDiffBlock,
    recompute_mlp: bool,
    hidden_BTE: torch.Tensor,
    rotation: Rotation,
    attention_mask: AttentionMask,
    past: Cache | None = None,
) -> torch.Tensor:
    """(B, T, E) -> (B, T, E): the block's `forward`."""

    def transform(hidden_BTE: torch.Tensor) -> torch.Tensor:
        mixed_BTE = _attention(block, hidden_BTE, rotation, attention_mask, past)
        # Before the MLP, so that its gradient comes after the MLP's: it takes memory.
        sum_BTE = hidden_BTE + mixed_BTE
        # The MLP keeps both addends, since their sum would be a third tensor, in fp32 under autocast.
        return sum_BTE + _mlp(block, recompute_mlp and block.training, hidden_BTE, mixed_BTE)

    if block.training and block.gradient_checkpointing and CHECKPOINTS_IN_FORWARD:
        checkpoint: Callable[..., torch.Tensor] = vars(block)["_gradient_checkpointing_func"]
        return checkpoint(transform, hidden_BTE)
    if block.training and not block.gradient_checkpointing and torch.compiler.is_compiling():
        return keep_products(transform, hidden_BTE)
    return transform(hidden_BTE)


def _attention(
    block: TreeDiffBlock,
    hidden_BTE: torch.Tensor,
    rotation: Rotation,
    attention_mask: AttentionMask,
    past: Cache | None,
) -> torch.Tensor:
    """(B, T, E) -> (B, T, E): the attention of the norm."""
    attention, norm = block.self_attn, block.input_layernorm
    if not may_be_passed_over(attention):
        return attention(norm(hidden_BTE), rotation, attention_mask, past)
    projected = normed_projections((hidden_BTE,), norm, (attention.q_proj, attention.k_proj, attention.v_proj))
    return projection(attention.mix(projected, rotation, attention_mask, past), attention.o_proj)


def _mlp(block: TreeDiffBlock, recompute: bool, before_BTE: torch.Tensor, mixed_BTE: torch.Tensor) -> torch.Tensor:
    """(B, T, E) each -> (B, T, E): the MLP of the norm of their sum."""
    mlp, norm = block.mlp, block.post_attention_layernorm
    if recompute:
        layers = norm, mlp.gate_proj, mlp.up_proj, mlp.down_proj
        if may_be_passed_over(mlp) and can_be_lean(*layers):
            return recomputed_gated_projection((before_BTE, mixed_BTE), *layers)
        return recomputed(partial(_mlp, block, False), before_BTE, mixed_BTE)
    if not may_be_passed_over(mlp):
        return mlp(norm(before_BTE + mixed_BTE))
    gate_BTI, up_BTI = normed_projections((before_BTE, mixed_BTE), norm, (mlp.gate_proj, mlp.up_proj))
    return gated_projection(gate_BTI, up_BTI, mlp.down_proj)


def checkpoint_activations(model: TreeDiffLanguageModel) -> None:
    """Let backward compute each block again instead of keeping what is inside."""
    # The name since transformers 5.23; before, its old one.
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable({"use_reentrant": False})
