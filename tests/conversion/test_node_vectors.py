"""Vectors of nodes are the means of their tokens'."""

import pytest
import torch

from modeling_treediff.building.balanced import random_tree
from modeling_treediff.conversion.node_vectors import factorised_vectors, node_vectors, path_increments


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_the_path_gives_every_node_the_mean_of_its_tokens(depth):
    tree = random_tree(60, branching=60 if depth == 1 else 8, depth=depth)
    token_VE = torch.randn(60, 5, generator=torch.Generator().manual_seed(0))
    vector_NE = node_vectors(token_VE, tree)
    increment_NE = path_increments(vector_NE, tree)
    for node in range(tree.num_nodes):
        below = [token for token in range(60) if node in tree.ancestors[token].tolist()]
        torch.testing.assert_close(vector_NE[node], token_VE[below].mean(dim=0), rtol=1e-6, atol=1e-6)
        path = tree.ancestors[below[0], : int(tree.depth[node]) + 1]
        torch.testing.assert_close(increment_NE[path].sum(dim=0), vector_NE[node], rtol=1e-6, atol=1e-6)
    assert torch.equal(vector_NE[:60], token_VE)


@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize("rank", [1, 3, 5, 8])
def test_a_factorisation_is_the_best_of_its_rank(depth, rank):
    tree = random_tree(60, branching={1: 60, 2: 8, 4: 3}[depth], depth=depth)
    token_VE = torch.randn(60, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    increment_NE = path_increments(node_vectors(token_VE, tree), tree)
    found = factorised_vectors(increment_NE, 60, rank)
    assert found.nodes.shape == (tree.num_nodes - 1, rank) and found.projection.shape == (5, rank)
    assert torch.equal(found.internal, increment_NE[60:])
    left, length, right = torch.linalg.svd(increment_NE[:60], full_matrices=False)
    best_VE = left[:, :rank] * length[:rank] @ right[:rank]
    torch.testing.assert_close(found.nodes[:60] @ found.projection.mT, best_VE)
    rest = length[rank:].square().sum().sqrt() / length.square().sum().sqrt()
    assert found.error == pytest.approx(float(rest), abs=1e-12)
    assert not found.nodes[60:].any()
    torch.testing.assert_close(found.nodes[:60, :5].square().mean(), torch.tensor(1.0 / rank, dtype=torch.float64))


@pytest.mark.parametrize("kept", [0, 2])
def test_a_factorisation_of_vectors_that_have_fewer_directions(kept):
    directions, numbers = (torch.randn(*shape, dtype=torch.float64) for shape in ((kept, 6), (30, kept)))
    vector_NE = torch.cat([numbers @ directions, torch.ones(1, 6, dtype=torch.float64)])
    found = factorised_vectors(vector_NE, 30, 4)
    torch.testing.assert_close(found.nodes @ found.projection.mT, vector_NE[:30])
    assert found.error < 1e-12 and found.nodes.isfinite().all()
