"""A lean model: the same values and gradients as the textbook, less kept, and textbook where it must be."""

import copy
import pickle

import pytest
import torch
from helpers.models import check_compiled_step, tiny_model
from helpers.untraced import untraced
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn import functional as F
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from modeling_treediff import TreeDiffForDiffusionLM, corrupt
from modeling_treediff.backbone_treediff import TreeDiffBlock, rotary_tables
from modeling_treediff.building.balanced import random_tree
from modeling_treediff.configuration_treediff import HEADS, NODE_EMBEDDINGS, TreeDiffConfig
from modeling_treediff.training.memory import make_lean, undo_lean
from modeling_treediff.training.memory.lean_operations import can_be_lean, lean_linears

SIZES = {
    "vocab_size": 50,
    "hidden_size": 48,
    "num_attention_heads": 4,
    "intermediate_size": 104,
    "num_hidden_layers": 1,
}

TREE = random_tree(50, 8, 2)


def make_block(recompute=False, dtype=torch.float32):
    """The only block of a lean model, in training."""
    torch.manual_seed(0)
    model = TreeDiffForDiffusionLM(TreeDiffConfig(**SIZES)).train()
    make_lean(model, int(recompute))
    (block,) = model.model.backbone.layers
    for parameter in block.parameters():
        nn.init.normal_(parameter, 1.0 if parameter.ndim == 1 else 0.0, 0.2)
    return block.to(dtype)


def textbook(block, hidden, rotation):
    return TreeDiffBlock.forward(block, hidden, rotation, None)


def plain_block(block, hidden, rotation):
    """The block written out, each operation kept by autograd as it stands."""
    attention, mlp = block.self_attn, block.mlp
    normed = block.input_layernorm(hidden)
    shape = (*hidden.shape[:-1], -1, attention.head_dim)
    heads = [
        layer(normed).view(shape).transpose(1, 2) for layer in (attention.q_proj, attention.k_proj, attention.v_proj)
    ]
    query, key = apply_rotary_pos_emb(heads[0], heads[1], *(table[None].to(heads[0].dtype) for table in rotation))
    mixed = F.scaled_dot_product_attention(query, key, heads[2])
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


def test_the_textbook_block_is_the_block_written_out():
    written, ours = (run(function, make_block(), torch.float32) for function in (plain_block, textbook))
    assert all(torch.equal(ours[name], written[name]) for name in written) and len(written) == 11


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
    rotation = 2 * 64 * 12 * 2  # cos and sin in bf16
    log_sums = positions * 4 * 4  # flash attention's fp32 logsumexp, 4 heads
    exact = positions * (14 * width + 4 * inner) + log_sums + rotation
    assert kept_bytes(lean, make_block()) == exact
    assert kept_bytes(lean, make_block(recompute=True)) == exact - positions * 4 * inner
    assert kept_bytes(plain_block, make_block()) == kept_bytes(textbook, make_block()) > 1.9 * exact


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


def lean_model(recompute=0, chunk=None, **fields):
    model = tiny_model(TREE, **fields).train()
    make_lean(model, recompute, chunk)
    return model


def batch_of(model, length=10, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 50, (4, length), generator=generator)
    return vars(corrupt(tokens, model.tree, model.schedule, generator=generator))


def step(model, forward=None):
    """Loss and gradients by name of one pass."""
    model.zero_grad()
    loss = (forward or model)(**batch_of(model)).loss
    loss.backward()
    return {"loss": loss.detach()} | {name: parameter.grad for name, parameter in model.named_parameters()}


def assert_same(first, second):
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first if first[name] is not None)


def assert_close(first, second, rtol=1e-4, atol=1e-6):
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(
            first[name], second[name], rtol=rtol, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("recompute", [0, 1, 2])
@pytest.mark.parametrize("embedding", NODE_EMBEDDINGS)
@pytest.mark.parametrize("head", HEADS)
def test_the_lean_model_is_the_textbook_model_and_undone_it_is_the_textbook_to_the_bit(head, embedding, recompute):
    model = tiny_model(TREE, head=head, node_embedding=embedding).train()
    names, before = list(model.state_dict()), step(model)
    for chunk in (None, 7):
        make_lean(model, recompute, chunk)
        lean = step(model)
        assert chunk or torch.equal(lean["loss"], before["loss"])  # forward is the same, to the bit
        assert_close(lean, before)
        assert list(model.state_dict()) == names and type(model.model.backbone.layers[0]) is TreeDiffBlock
    assert any(not torch.equal(lean[name], before[name]) for name in lean)  # it was another way
    undo_lean(model)
    assert_same(step(model), before)
    assert not {"forward", "child_cross_entropy"} & {name for module in model.modules() for name in vars(module)}


@pytest.mark.parametrize("head", HEADS)
def test_the_lean_model_of_perturbed_nodes_is_the_textbook_model(head):
    model = tiny_model(TREE, head=head, perturbation=0.3).train()
    before = step(model)
    make_lean(model, recompute_mlp=1)
    lean = step(model)
    assert torch.equal(lean["loss"], before["loss"])
    assert_close(lean, before)
    with pytest.raises(ValueError, match="leave out loss_chunk"):
        make_lean(model, loss_chunk=8)
    assert_same(step(model), lean)


def test_making_lean_again_replaces_the_settings():
    model, other = lean_model(2, 7), lean_model()
    make_lean(model)
    assert kept_bytes(loss_of(model), model) == kept_bytes(loss_of(other), other)
    assert_same(step(model), step(other))


@pytest.mark.parametrize(
    "clone", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copy", "pickle"]
)
def test_a_copy_is_lean_on_its_own_parameters(clone):
    model = lean_model(recompute=1, chunk=7)
    before = step(model)
    own = clone(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert_same(step(own), before)
    undo_lean(model)
    assert_same(step(own), before)


def test_what_is_saved_is_the_plain_model(tmp_path):
    model = lean_model(recompute=1, chunk=7)
    model.save_pretrained(tmp_path)
    saved = TreeDiffForDiffusionLM.from_pretrained(tmp_path)
    assert not {"recompute_mlp", "loss_chunk"} & saved.config.to_dict().keys()
    assert_same(saved.state_dict(), model.state_dict())
    assert "forward" not in vars(saved.model.backbone.layers[0])


def test_the_bound_is_the_textbooks():
    model, tokens = tiny_model(TREE), torch.arange(30).view(3, 10)
    bounds = []
    for change in (undo_lean, make_lean):
        change(model)
        bounds.append(model.nelbo(tokens, num_samples=2, generator=torch.Generator().manual_seed(0)).value)
    make_lean(model, loss_chunk=3)
    chunked = model.nelbo(tokens, num_samples=2, generator=torch.Generator().manual_seed(0)).value
    assert bounds[0] == bounds[1] == pytest.approx(chunked, rel=1e-5)


@pytest.mark.parametrize("recompute", [0, 2])
def test_under_gradient_checkpointing_it_is_the_same_and_keeps_no_more_than_the_textbook(recompute):
    found = []
    for lean in (False, True):
        model = tiny_model(TREE).train()
        if lean:
            make_lean(model, recompute)
        without = kept_bytes(loss_of(model), model)
        model.gradient_checkpointing_enable({"use_reentrant": False})
        found.append((kept_bytes(loss_of(model), model), step(model)))
        assert found[-1][0] < without
    assert found[1][0] <= found[0][0]
    assert_close(found[1][1], found[0][1])


def test_adapters_train_as_on_the_textbook_model():
    """LoRA in place of some layers: these are called, the rest is lean, and the adapters' gradients are the same."""
    found = []
    for lean in (False, True):
        model = tiny_model(TREE).train()
        if lean:
            make_lean(model, recompute_mlp=1)
        torch.manual_seed(0)
        targets = ["q_proj", "v_proj", "down_proj"]
        adapted = get_peft_model(model, LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
        loss = adapted(**batch_of(model)).loss
        loss.backward()
        grads = {name: parameter.grad for name, parameter in adapted.named_parameters() if parameter.requires_grad}
        found.append({"loss": loss.detach()} | grads)
    assert len(found[0]) == 1 + 2 * 3 * 2 and all(grad.abs().max() > 0 for grad in found[0].values())
    assert_close(found[1], found[0])


def test_hooks_of_sublayers_see_what_the_textbook_gives_them():
    """On attention, MLP or norm: the same arguments and results, and what a hook changes counts."""
    names = ("self_attn", "mlp", "input_layernorm", "post_attention_layernorm")
    seen = []
    for lean in (False, True):
        model, calls = tiny_model(TREE).train(), []
        if lean:
            make_lean(model, recompute_mlp=1)
        for layer in model.model.backbone.layers:
            for name in names:

                def note(module, args, output, name=name, calls=calls):
                    calls.append((name, args[0].detach(), output.detach()))
                    return 2 * output

                layer.get_submodule(name).register_forward_hook(note)
        loss = model(**batch_of(model)).loss
        seen.append((loss, calls))
        loss.backward()
    (plain, plain_calls), (lean_loss, lean_calls) = seen
    assert torch.equal(plain, lean_loss)
    for expected, found in zip(plain_calls[:8], lean_calls[:8], strict=True):
        assert expected[0] == found[0] and torch.equal(expected[1], found[1]) and torch.equal(expected[2], found[2])


def test_a_forward_that_something_else_has_replaced_stays():
    model = tiny_model(TREE)
    block = model.model.backbone.layers[0]
    block.forward = forward = lambda hidden, *_: hidden
    make_lean(model)
    undo_lean(model)
    assert block.forward is forward and "forward" not in vars(model.model.backbone.layers[1])


@untraced
@pytest.mark.parametrize(("recompute", "chunk", "checkpointing"), [(0, None, False), (1, None, True), (2, 30, False)])
def test_the_compiled_step_is_the_eager_one(recompute, chunk, checkpointing):
    """Forward and backward in one graph each, the same loss and gradients, and no other graph for other batches."""
    model = lean_model(recompute, chunk)
    if checkpointing:
        model.gradient_checkpointing_enable()
    check_compiled_step(model, [batch_of(model, seed=seed) for seed in range(3)], rtol=1e-4, atol=1e-6)


def loss_of(forward, length=10):
    """A pass of a model, as `kept_bytes` calls it."""
    model = getattr(forward, "_orig_mod", forward)
    batch = batch_of(model, length)
    return lambda block, hidden, rotation: forward(**batch).loss


@untraced
def test_the_compiled_step_keeps_no_more():
    model = lean_model(2, max_position_embeddings=64)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager_decomp_partition")
    assert kept_bytes(loss_of(compiled, 64), model) <= kept_bytes(loss_of(model, 64), model)
    torch._dynamo.reset()


def test_recomputing_only_matters_in_training():
    nodes, model = torch.arange(10)[None], tiny_model(TREE)
    scores = [model(nodes).logits]
    for recompute in (0, 2):
        make_lean(model, recompute)
        scores.append(model(nodes).logits)
    assert torch.equal(scores[0], scores[1]) and torch.equal(scores[0], scores[2])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"recompute_mlp": -1}, "recompute_mlp must not be negative, got -1"),
        ({"loss_chunk": 0}, "loss_chunk must be at least 1 position, got 0"),
    ],
)
def test_impossible_settings_change_nothing(settings, message):
    model = tiny_model(TREE)
    with pytest.raises(ValueError, match=message):
        make_lean(model, **settings)
    assert "child_cross_entropy" not in vars(model)
