"""Lean operations: the same values and gradients as a plain block, less kept, and plain where they must be."""

import pytest
import torch
from helpers.models import tiny_model
from modeling_treediff.lean_operations_treediff import as_autocast, can_be_lean, lean_linears
from torch import nn
from torch.nn import functional as F

from modeling_treediff import VocabularyTree, corrupt
from modeling_treediff.backbone_treediff import TreeDiffBlock, rotary_tables, rotate
from modeling_treediff.configuration_treediff import TreeDiffConfig

SIZES = {
    "vocab_size": 50,
    "hidden_size": 48,
    "num_attention_heads": 4,
    "intermediate_size": 104,
    "num_hidden_layers": 1,
}
TREE = VocabularyTree.random(50, 8, 2)


def make_block(recompute=False, dtype=torch.float32):
    torch.manual_seed(0)
    config = TreeDiffConfig(**SIZES, recompute_mlp_layers=int(recompute))
    config._attn_implementation = "sdpa"
    block = TreeDiffBlock(config, 0).train()
    for parameter in block.parameters():
        nn.init.normal_(parameter, 1.0 if parameter.ndim == 1 else 0.0, 0.2)
    return block.to(dtype)


def plain_block(block, hidden, rotation):
    """The block written out, each operation kept by autograd as it stands."""
    attention, mlp = block.self_attn, block.mlp
    normed = block.input_layernorm(hidden)
    shape = (*hidden.shape[:-1], -1, attention.head_dim)
    heads = [
        layer(normed).view(shape).transpose(1, 2) for layer in (attention.q_proj, attention.k_proj, attention.v_proj)
    ]
    mixed = F.scaled_dot_product_attention(rotate(heads[0], rotation), rotate(heads[1], rotation), heads[2])
    hidden = hidden + attention.o_proj(mixed.transpose(1, 2).reshape(hidden.shape))
    normed = block.post_attention_layernorm(hidden)
    return hidden + mlp.down_proj(F.silu(mlp.gate_proj(normed)) * mlp.up_proj(normed))


def run(function, block, dtype, autocast=False):
    """Output, and gradients of the input and all parameters, of one pass on fixed numbers."""
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(3, 7, 48, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(3, 7, 48, generator=generator, dtype=torch.float64).to(dtype)
    rotation = tuple(table.to(dtype) for table in rotary_tables(7, 12, 100.0, hidden.device))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = function(block, hidden, rotation)
    (output * weight).sum().backward()
    named = {name: parameter.grad for name, parameter in block.named_parameters()}
    return {"output": output.detach(), "input": hidden.grad, **named}


def lean(block, hidden, rotation):
    return block(hidden, rotation, None)


@pytest.mark.parametrize("recompute", [False, True])
def test_values_and_gradients_are_the_plain_blocks(recompute):
    plain = run(plain_block, make_block(dtype=torch.float64), torch.float64)
    ours = run(lean, make_block(recompute, torch.float64), torch.float64)
    assert ours.keys() == plain.keys() and len(plain) == 11
    for name in plain:
        torch.testing.assert_close(ours[name], plain[name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("recompute", [False, True])
def test_bf16_error_is_bounded_by_the_plain_blocks(recompute):
    """Under autocast, distance to the fp64 truth at most that of the plain block plus bf16's own rounding, by norm."""
    truth = run(plain_block, make_block(dtype=torch.float64), torch.float64)
    plain = run(plain_block, make_block(), torch.float32, autocast=True)
    ours = run(lean, make_block(recompute), torch.float32, autocast=True)
    assert torch.equal(ours["output"], plain["output"])  # forward is the same, to the bit
    for name, exact in truth.items():
        assert ours[name].dtype == torch.float32
        allowed = 1.1 * (plain[name] - exact).norm() + 2**-9 * exact.norm()
        assert (ours[name] - exact).norm() <= allowed, name


@pytest.mark.parametrize("recompute", [False, True])
def test_finite_differences_agree(recompute):
    block = make_block(recompute, torch.float64)
    rotation = tuple(table.double() for table in rotary_tables(2, 12, 100.0, torch.device("cpu")))
    hidden = torch.randn(1, 2, 48, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda hidden: block(hidden, rotation, None), (hidden,), fast_mode=True)


def kept_bytes(function, block, autocast=True):
    """Bytes of the distinct storages that autograd keeps for backward, parameters not counted."""
    kept, owned = {}, {tensor.untyped_storage().data_ptr() for tensor in (*block.parameters(), *block.buffers())}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in owned:
            kept[storage.data_ptr()] = storage
        return tensor

    hidden = torch.randn(2, 64, 48, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            function(block, hidden, rotary_tables(64, 12, 100.0, hidden.device))
    return sum(storage.nbytes() for storage in kept.values())


def test_a_block_keeps_what_its_matrix_products_made_and_its_input():
    """Per position, bytes: fp32 input 4 E; bf16 q, k, v, mixed and projected heads 10 E; bf16 gate and up 4 I."""
    positions, width, inner = 2 * 64, 48, 104
    rotation = 2 * 64 * 12 * 2 * 2  # cos and sin in bf16, once for q and once for k
    log_sums = positions * 4 * 4  # flash attention's fp32 logsumexp, 4 heads
    exact = positions * (14 * width + 4 * inner) + log_sums + rotation
    assert kept_bytes(lean, make_block()) == exact
    assert kept_bytes(lean, make_block(recompute=True)) == exact - positions * 4 * inner
    assert kept_bytes(plain_block, make_block()) > 1.9 * exact


def test_gradients_only_where_they_are_needed():
    """Frozen weights, a frozen input and no gradients at all; what is needed stays the same."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(5, 6, generator=generator) for _ in range(2))
    weights = [torch.randn(3, 6, generator=generator) for _ in range(2)]

    def dense(left, right, first, second):
        value = torch.sin(left) * right
        return F.linear(value, first).sum() + (2 * F.linear(value, second)).sum()

    def ours(left, right, first, second):
        some, other = lean_linears(lambda left, right: torch.sin(left) * right, (left, right), (first, second))
        return some.sum() + (2 * other).sum()

    for mask in range(1, 16):
        grads = []
        for function in (dense, ours):
            tensors = [
                tensor.clone().requires_grad_(bool(mask >> index & 1))
                for index, tensor in enumerate([left, right, *weights])
            ]
            function(*tensors).backward()
            grads.append([tensor.grad for tensor in tensors])
        for expected, found in zip(*grads, strict=True):
            assert (expected is None) == (found is None)
            if expected is not None:
                torch.testing.assert_close(found, expected)
    with torch.no_grad():
        assert not lean_linears(torch.sin, (left,), weights)[0].requires_grad


def test_layers_that_do_more_than_their_class_are_called():
    """A hook, a replaced forward and a layer of another class each have their effect."""
    block = make_block()
    assert can_be_lean(block.input_layernorm, *(module for module in block.modules() if type(module) is nn.Linear))
    before = run(lean, block, torch.float32)["output"]
    linears = {name for name, module in block.named_modules() if type(module) is nn.Linear}
    assert len(linears) == 7
    for name in sorted(linears):
        handle = block.get_submodule(name).register_forward_hook(lambda module, args, output: output + 1)
        assert not torch.equal(run(lean, block, torch.float32)["output"], before), name
        handle.remove()
        parent, _, child = name.rpartition(".")
        original = block.get_submodule(name)
        wider = nn.Sequential(original, nn.Dropout(1.0))
        setattr(block.get_submodule(parent), child, wider)
        assert not torch.equal(
            lean(block, torch.ones(1, 2, 48), rotary_tables(2, 12, 100.0, torch.device("cpu"))), before[:1, :2]
        )
        setattr(block.get_submodule(parent), child, original)
    assert torch.equal(run(lean, block, torch.float32)["output"], before)


@pytest.mark.parametrize("recompute", [False, True])
def test_a_plain_fallback_has_the_same_gradients(recompute):
    ours = run(lean, make_block(recompute), torch.float32)
    hooked = make_block(recompute)
    for module in hooked.modules():
        if type(module) is nn.Linear:
            module.register_forward_hook(lambda module, args, output: None)
    fallback = run(lean, hooked, torch.float32)
    for name, grad in ours.items():
        torch.testing.assert_close(fallback[name], grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("recompute", [0, 1, 2])
def test_the_compiled_step_is_the_eager_one(recompute):
    """Forward and backward in one graph each, same loss and gradients."""
    grads = []
    for compiled in (False, True):
        model = tiny_model(TREE, recompute_mlp_layers=recompute).train()
        tokens = torch.arange(20).view(2, 10)
        batch = corrupt(tokens, model.tree, model.schedule, generator=torch.Generator().manual_seed(0))
        step = torch.compile(model, fullgraph=True, backend="aot_eager") if compiled else model
        loss = step(batch.input_ids, labels=batch.labels, timesteps=batch.timesteps).loss
        loss.backward()
        grads.append([loss.detach(), *(parameter.grad for parameter in model.parameters())])
        torch._dynamo.reset()
    for eager, ours in zip(*grads, strict=True):
        torch.testing.assert_close(ours, eager, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("recompute", [0, 2])
def test_the_compiled_step_keeps_no_more(recompute):
    model = tiny_model(TREE, max_position_embeddings=64, recompute_mlp_layers=recompute).train()
    batch = corrupt(torch.zeros(4, 64, dtype=torch.long), model.tree, model.schedule)

    def step(function):
        def loss(block, hidden, rotation):
            function(batch.input_ids, labels=batch.labels, timesteps=batch.timesteps)

        return loss

    compiled = torch.compile(model, fullgraph=True, backend="aot_eager_decomp_partition")
    assert kept_bytes(step(compiled), model) <= kept_bytes(step(model), model)
    torch._dynamo.reset()


def test_recomputing_only_matters_in_training():
    nodes = torch.arange(10)[None]
    scores = [tiny_model(TREE, recompute_mlp_layers=layers)(nodes).logits for layers in (0, 2)]
    assert torch.equal(*scores)
    with pytest.raises(ValueError, match="recompute_mlp_layers must not be negative"):
        tiny_model(TREE, recompute_mlp_layers=-1)


def test_as_autocast_follows_the_context():
    ones = torch.ones(2)
    assert as_autocast(ones) is ones
    with torch.autocast("cpu", torch.bfloat16):
        assert as_autocast(ones).dtype == torch.bfloat16
