"""Heads of double precision on small trees, and positions for them to score."""

import torch

from helpers.shapes import Shapes
from modeling_treediff.building.balanced import random_tree, tree_from_order
from modeling_treediff.configuration_treediff import TreeDiffConfig
from modeling_treediff.node_layers_treediff import HEAD_CLASSES, child_cross_entropy
from modeling_treediff.training.memory.fused_loss import (
    flat_layer,
    kernel_cross_entropy,
    lean_cross_entropy,
)
from modeling_treediff.vocabulary_tree import VocabularyTree

TREES = {
    "flat": VocabularyTree.flat(20),
    "flat, shuffled": VocabularyTree.from_paths([[7 * token % 20] for token in range(20)], 20),
    "depth 2": random_tree(20, 6, 2),
    "depth 3": random_tree(40, 4, 3),
    "depth 4, chains": VocabularyTree.from_paths([[0, 0, 0, 0], [2, 1, 0, 0], [2, 1, 3, 1], [2, 1, 3, 2]], 4),
    "one token": VocabularyTree.flat(1),
}


def built(name, tree, seed=0, **fields):
    """A head of double precision with weights of about 0.5, biases included."""
    fields = {"hidden_size": 16, "num_attention_heads": 4, "head_rank": 6} | fields
    head = HEAD_CLASSES[name](TreeDiffConfig.from_tree(tree, head=name, **fields)).double()
    generator = torch.Generator().manual_seed(seed)
    for parameter in head.parameters():
        parameter.data = 0.5 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return head


def layouts(tree):
    """(B, T) nodes by name: at one parent, none at the root, every parent once, leaves in between, one, many."""
    generator = torch.Generator().manual_seed(1)
    internal = torch.arange(tree.vocab_size, tree.num_nodes)
    return {
        "all at the root": torch.full((2, 5), tree.root_id),
        "all at the last parent": torch.full((3, 17), tree.num_nodes - 1),
        "none at the root": internal[1:].repeat(3)[None] if len(internal) > 1 else internal[None],
        "every parent once": internal.flip(0)[None],
        "with leaves": torch.randint(0, tree.num_nodes, (3, 13), generator=generator),
        "only leaves": torch.randint(0, tree.vocab_size, (2, 3), generator=generator),
        "a single position": internal[-1:, None],
        "many": torch.randint(tree.vocab_size, tree.num_nodes, (4, 101), generator=generator),
    }


def slots_of(tree, nodes, seed=2):
    """A random existing child's slot at each position, -100 at leaves and at every fifth position."""
    generator = torch.Generator().manual_seed(seed)
    children = tree.children[(nodes - tree.vocab_size).clamp(min=0)]
    noise = torch.rand(children.shape, generator=generator).masked_fill(children < 0, -1)
    skipped = (torch.arange(nodes.numel()).view_as(nodes) % 5 == 4) | (tree.depth[nodes] == tree.tree_depth)
    return noise.argmax(-1).masked_fill(skipped, -100)


def gradients(loss, hidden, head):
    parts = torch.autograd.grad(loss, [hidden, *head.parameters()], allow_unused=True, materialize_grads=True)
    assert all(part.isfinite().all() for part in parts)
    return parts


def largest_seen(head, nodes, tree, cross_entropy=child_cross_entropy):
    """Numbers in the largest floating-point tensor that any operation returns, forward and backward."""
    hidden = torch.randn(*nodes.shape, 16, generator=torch.Generator().manual_seed(0), requires_grad=True)
    slots = slots_of(tree, nodes)
    with Shapes() as shapes:
        cross_entropy(head, hidden, nodes, slots, tree).sum().backward()
    return max(torch.Size(shape).numel() for _, shape in shapes.seen)


def check_fused_kernel(kernel, name):
    """Values and gradients by the kernel in fp32 are as close to those in fp64 as those of plain chunks."""
    tree = tree_from_order(torch.randperm(53, generator=torch.Generator().manual_seed(3)), 53, 1)
    head, nodes = built(name, tree), torch.full((3, 13), tree.root_id)
    slots, weight = slots_of(tree, nodes), torch.rand(3, 13, generator=torch.Generator().manual_seed(1))
    found = {}
    for way, dtype in (("exact", torch.float64), ("chunks", torch.float32), ("fused", torch.float32)):
        head.to(dtype)
        hidden = torch.randn(3, 13, 16, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
        if way == "fused":
            layer, rows = flat_layer(head, slots.flatten(), tree)
            nats = kernel_cross_entropy(kernel, hidden.flatten(0, 1), layer, rows).view_as(slots)
        else:
            nats = lean_cross_entropy(head, hidden, nodes, slots, tree, 7 if way == "chunks" else None)
        assert nats.dtype == dtype
        found[way] = [nats, *gradients((weight * nats).sum(), hidden, head)]
    for exact, chunks, fused in zip(*found.values(), strict=True):
        assert (fused - exact).abs().max() <= 2 * (chunks - exact).abs().max() + 1e-6 * exact.abs().max()
