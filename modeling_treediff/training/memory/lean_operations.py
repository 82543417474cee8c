"""Linear layers whose inputs backward computes again instead of keeping them. They know no transformer.

Autograd keeps the input of every matrix product until backward. Often that input is an elementwise function (a norm, an
activation, a cast to bf16) of tensors that are kept anyway. Here only the function's arguments are kept, and backward
evaluates the function once more. The idea is that of activation checkpointing (arXiv 1604.06174), applied to operations
that cost no matrix product (as in arXiv 2205.05198).

While compiling, every function is its dense form, and `keep_products` tells the compiler what to keep.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Protocol

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.autograd.graph import get_gradient_edge
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

TensorFunction = Callable[..., torch.Tensor]
PRODUCTS = [
    getattr(torch.ops.aten, name).default
    for name in (
        "mm",
        "bmm",
        "addmm",
        "_scaled_dot_product_cudnn_attention",
        "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_flash_attention_for_cpu",
    )
]


def normed_projections(
    addends: Sequence[torch.Tensor], norm: nn.RMSNorm, linears: Sequence[nn.Linear]
) -> tuple[torch.Tensor, ...]:
    """Return linear(norm(sum of the addends)) of every linear layer, keeping the addends alone.

    Args:
        addends: tensors (..., E), such as the residual stream and a sub-layer's output.
        norm: applied to their sum.
        linears: layers without bias, on the same input.

    """
    if can_be_lean(norm, *linears):
        inputs = (*addends, norm.weight)
        return lean_linears(_normed(norm), inputs, [linear.weight for linear in linears])
    normed = norm(sum(addends[1:], addends[0]))
    return tuple(linear(normed) for linear in linears)


def projection(features: torch.Tensor, linear: nn.Linear) -> torch.Tensor:
    """Return linear(features), keeping the features and no copy of the weight in another precision."""
    return lean_linears(_same, (features,), [linear.weight])[0] if can_be_lean(linear) else linear(features)


def gated_projection(gate: torch.Tensor, up: torch.Tensor, down: nn.Linear) -> torch.Tensor:
    """Return down(silu(gate) * up), keeping `gate` and `up` alone."""
    if can_be_lean(down):
        return lean_linears(_gated, (gate, up), [down.weight])[0]
    return down(_gated(gate, up))


def recomputed_gated_projection(
    addends: Sequence[torch.Tensor], norm: nn.RMSNorm, gate: nn.Linear, up: nn.Linear, down: nn.Linear
) -> torch.Tensor:
    """Return down(silu(gate(x)) * up(x)) for x = norm(sum of the addends), keeping the addends alone.

    Backward repeats two of the three matrix products, those of `gate` and `up`. All layers must be able to be lean.
    """

    def hidden(*inputs: torch.Tensor) -> torch.Tensor:
        *norm_inputs, gate_weight, up_weight = inputs
        normed = _normed(norm)(*norm_inputs)
        return _gated(F.linear(normed, gate_weight), F.linear(normed, up_weight))

    return lean_linears(hidden, (*addends, norm.weight, gate.weight, up.weight), [down.weight])[0]


def recomputed(function: TensorFunction, *inputs: torch.Tensor) -> torch.Tensor:
    """Return function(*inputs), keeping the inputs alone; the function draws no random numbers."""
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)


def keep_products(function: TensorFunction, *inputs: torch.Tensor) -> torch.Tensor:
    """Return function(*inputs), keeping its inputs and the results of matrix products and attention (`PRODUCTS`).

    The same for compiled models as `lean_linears` for others, by torch's selective activation checkpointing. Without a
    compiler that would call Python for each operation, twice.
    """
    return checkpoint(
        function,
        *inputs,
        use_reentrant=False,
        preserve_rng_state=False,
        context_fn=partial(create_selective_checkpoint_contexts, PRODUCTS),
    )


def can_be_lean(*modules: nn.Module) -> bool:
    """Whether the modules do nothing but what their class says, so that their weights may be used without calling them.

    Not so with hooks, with layers put in their place (LoRA, quantisation) or a replaced `forward` (offloading), nor
    while compiling.
    """
    return all(
        type(module) in (nn.Linear, nn.RMSNorm) and getattr(module, "bias", None) is None for module in modules
    ) and may_be_passed_over(*modules)


def may_be_passed_over(*modules: nn.Module) -> bool:
    """Whether nothing would be missed if `forward` were done elsewhere: no hooks, none replaced, no compiling."""
    return not torch.compiler.is_compiling() and not any(
        "forward" in module.__dict__
        or module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        for module in modules
    )


def lean_linears(
    function: TensorFunction, inputs: Sequence[torch.Tensor], weights: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, ...]:
    """Matrix products of an input that is not kept: dense identity F.linear(function(*inputs), weight) for each weight.

    Under autocast the input is cast once for all weights. Gradients are summed in the function's own precision.

    Args:
        function: of tensors alone; it must give the same again in backward.
        inputs: its arguments, which are kept.
        weights: (out, in) each.

    """
    return _LeanLinears.apply(function, len(inputs), *inputs, *weights)


def as_autocast(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor as autocast gives it to a matrix product, or as it is where there is no autocast."""
    device = tensor.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return tensor.to(torch.get_autocast_dtype(device))
    return tensor


class BackwardContext(Protocol):
    """What an autograd function has from forward to backward."""

    saved_tensors: tuple[torch.Tensor, ...]
    needs_input_grad: tuple[bool, ...]

    def save_for_backward(self, *tensors: torch.Tensor) -> None:
        """Keep the tensors; in backward they are `saved_tensors`."""


class _LeanContext(BackwardContext, Protocol):
    function: TensorFunction
    count: int
    autocast: Callable[[], AbstractContextManager[object]]


class _LeanLinears(torch.autograd.Function):
    """See `lean_linears`."""

    @staticmethod
    def forward(
        ctx: _LeanContext, function: TensorFunction, count: int, *tensors: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Keep the arguments of the function, and the weights as they are: not their casts to bf16."""
        ctx.save_for_backward(*tensors)
        ctx.function, ctx.count, ctx.autocast = function, count, _current_autocast(tensors[0].device.type)
        value = as_autocast(function(*tensors[:count]))
        return tuple(F.linear(value, as_autocast(weight)) for weight in tensors[count:])

    @staticmethod
    @once_differentiable
    def backward(ctx: _LeanContext, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Evaluate the function again; differentiate the products by hand and the function by autograd."""
        needed = ctx.needs_input_grad[2:]
        saved = zip(ctx.saved_tensors, needed, strict=True)
        tensors = [tensor.detach().requires_grad_(needs) for tensor, needs in saved]
        inputs, weights = tensors[: ctx.count], tensors[ctx.count :]
        wanted = [tensor for tensor in inputs if tensor.requires_grad]
        with ctx.autocast():
            with torch.enable_grad():
                value = ctx.function(*inputs)
            grad_weights = _weight_gradients(grads, as_autocast(value.detach()), weights)
            grad_value = _input_gradient(grads, weights, value.dtype) if wanted else None
        found: Iterator[torch.Tensor] = iter(())
        if wanted:
            edge = get_gradient_edge(value)
            del value  # its gradient needs its graph, not its numbers
            found = iter(torch.autograd.grad(edge, wanted, grad_value))
        return (None, None, *(next(found) if tensor.requires_grad else None for tensor in inputs), *grad_weights)


def _weight_gradients(
    grads: Iterable[torch.Tensor], value: torch.Tensor, weights: Iterable[torch.Tensor]
) -> list[torch.Tensor | None]:
    """(..., out) gradients of the products, (..., in) input -> (out, in) for each weight that needs it."""
    rows = value.flatten(0, -2)
    return [
        (grad.flatten(0, -2).mT @ rows).to(weight.dtype) if weight.requires_grad else None
        for grad, weight in zip(grads, weights, strict=True)
    ]


def _input_gradient(grads: Iterable[torch.Tensor], weights: Iterable[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    """(..., out) gradients of the products -> (..., in), their sum in `dtype`."""
    terms = (grad @ weight for grad, weight in zip(grads, weights, strict=True))
    total = next(terms).to(dtype)
    for term in terms:
        total += term
    return total


def _current_autocast(device: str) -> Callable[[], AbstractContextManager[object]]:
    """Return what makes the autocast of now again in backward, which runs outside of it."""
    if not torch.amp.is_autocast_available(device):
        return nullcontext
    dtype, enabled = torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
    return partial(torch.autocast, device, dtype=dtype, enabled=enabled, cache_enabled=False)


def _normed(norm: nn.RMSNorm) -> TensorFunction:
    def normed(*tensors: torch.Tensor) -> torch.Tensor:
        *addends, weight = tensors
        return F.rms_norm(sum(addends[1:], addends[0]), norm.normalized_shape, weight, norm.eps)

    return normed


def _same(features: torch.Tensor) -> torch.Tensor:
    return features.view_as(features)


def _gated(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    return F.silu(gate) * up
