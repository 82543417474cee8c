"""The lean loss against the dense one: values and gradients, what it holds, and what the fused kernel is given."""

import importlib.util
from functools import partial

import pytest
import torch
from helpers.heads import TREES, built, check_fused_kernel, gradients, largest_seen, layouts, slots_of
from helpers.processes import REPOSITORY, run_python
from torch.nn import functional as F

from modeling_treediff.building.balanced import random_tree
from modeling_treediff.node_layers_treediff import HEAD_CLASSES, child_cross_entropy
from modeling_treediff.training.memory.fused_loss import flat_layer, fused_kernel, lean_cross_entropy
from modeling_treediff.vocabulary_tree import VocabularyTree


@pytest.mark.parametrize("chunk", [1, 7, 39, 1000])
@pytest.mark.parametrize("name", HEAD_CLASSES)
def test_chunks_change_neither_values_nor_gradients(name, chunk):
    tree = TREES["depth 3"]
    head, nodes = built(name, tree), layouts(tree)["with leaves"]
    hidden = torch.randn(3, 13, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    slots = slots_of(tree, nodes)
    weight = torch.rand(3, 13, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    whole = child_cross_entropy(head, hidden, nodes, slots, tree)
    cut = lean_cross_entropy(head, hidden, nodes, slots, tree, chunk)
    torch.testing.assert_close(cut, whole)
    fast, slow = (gradients((weight * nats).sum(), hidden, head) for nats in (cut, whole))
    torch.testing.assert_close(fast, slow)


@pytest.mark.parametrize("name", HEAD_CLASSES)
def test_without_autocast_and_chunks_it_is_the_dense_loss_to_the_bit(name):
    tree = TREES["depth 3"]
    head, nodes = built(name, tree), layouts(tree)["with leaves"]
    hidden = torch.randn(3, 13, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    dense, lean = (
        loss(head, hidden, nodes, slots_of(tree, nodes), tree) for loss in (child_cross_entropy, lean_cross_entropy)
    )
    assert torch.equal(dense, lean)
    assert all(map(torch.equal, gradients(dense.sum(), hidden, head), gradients(lean.sum(), hidden, head)))


@pytest.mark.parametrize(("name", "depth"), [("child", 2), ("child", 3), ("node", 3)])
def test_under_autocast_the_levels_of_a_head_share_one_copy_of_the_hidden_states(name, depth):
    """And the loss is the dense one to the bit; the gradients differ in the rounding of the sum over levels."""
    tree = random_tree(40, 7, depth)
    head, nodes = built(name, tree).float(), torch.full((4, 50), tree.root_id)
    slots, found = slots_of(tree, nodes), []
    for loss in (child_cross_entropy, lean_cross_entropy):
        hidden, kept = torch.randn(4, 50, 16, generator=torch.Generator().manual_seed(0), requires_grad=True), []
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor, kept=kept: kept.append(tensor) or tensor, _same):
            with torch.autocast("cpu", torch.bfloat16):
                nats = loss(head, hidden, nodes, slots, tree)
        copies = {tensor.data_ptr() for tensor in kept if tensor.dtype == torch.bfloat16 and len(tensor) == 200}
        found.append((len(copies), nats.detach(), *gradients(nats.sum(), hidden, head)))
    (many, dense, *dense_gradients), (one, lean, *lean_gradients) = found
    assert many - one == depth - 1 and torch.equal(dense, lean)
    torch.testing.assert_close(lean_gradients, dense_gradients, rtol=0.02, atol=0.02)


def _same(tensor):
    return tensor


@pytest.mark.parametrize(("name", "depth"), [("child", 1), ("leaf", 1), ("leaf", 2)])
def test_chunked_loss_never_holds_the_logits_of_all_positions(name, depth):
    tree = VocabularyTree.flat(811) if depth == 1 else random_tree(811, 29, depth)
    head, nodes = built(name, tree).float(), torch.full((4, 50), tree.root_id)
    assert largest_seen(head, nodes, tree) >= 200 * 811
    parameters, logits = 811 * 16, 20 * tree.num_nodes
    assert largest_seen(head, nodes, tree, partial(lean_cross_entropy, chunk=20)) <= max(parameters, logits)


def test_chunked_loss_keeps_no_logits_for_backward():
    """Between forward and backward, chunks hold their inputs alone."""
    tree = VocabularyTree.flat(811)
    head, nodes = built("child", tree).float(), torch.full((4, 50), tree.root_id)
    hidden, slots = torch.randn(4, 50, 16, requires_grad=True), slots_of(tree, nodes)
    for chunk, keeps in ((None, True), (20, False)):
        sizes = []

        def note(tensor, sizes=sizes):
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            lean_cross_entropy(head, hidden, nodes, slots, tree, chunk)
        assert (sum(sizes) >= 200 * 811) == keeps


@pytest.mark.parametrize("name", ["child", "leaf"])
def test_the_fused_kernel_is_given_the_flat_trees_layer_and_rows(name):
    def stand_in(hidden, weight, rows, bias, ignore_index, reduction, accum_dtype):
        logits = F.linear(hidden, weight, bias)
        return F.cross_entropy(logits, rows, ignore_index=ignore_index, reduction=reduction)

    check_fused_kernel(stand_in, name)


@pytest.mark.parametrize("name", ["child", "leaf"])
def test_the_fused_kernel_in_tritons_interpreter(name):
    if not all(importlib.util.find_spec(package) for package in ("liger_kernel", "triton")):
        pytest.skip("needs liger-kernel and triton")
    code = f"from helpers import heads; heads.check_fused_kernel(heads.fused_kernel(), {name!r})"
    done = run_python(code=code, TRITON_INTERPRET="1", cwd=REPOSITORY / "tests")
    assert done.returncode == 0, done.stderr


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["child", "leaf"])
def test_the_fused_kernel_on_cuda(name):
    if fused_kernel() is None:
        pytest.skip("needs liger-kernel 0.8.5 or later")
    tree = VocabularyTree.flat(811)
    head, nodes = built(name, tree).float().cuda(), torch.full((4, 50), tree.root_id, device="cuda")
    hidden = torch.randn(4, 50, 16, generator=torch.Generator().manual_seed(0)).cuda().requires_grad_()
    slots = slots_of(tree, nodes.cpu()).cuda()
    found = []
    for chunk in (None, 20):
        nats = lean_cross_entropy(head, hidden, nodes, slots, tree.to("cuda"), chunk)
        found.append([nats, *gradients(nats.sum(), hidden, head)])
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["node", "leaf"])
def test_only_a_plain_layer_on_the_flat_tree_can_be_fused(name):
    tree = TREES["flat" if name == "node" else "depth 2"]
    assert flat_layer(built(name, tree), torch.zeros(3, dtype=torch.long), tree) is None
