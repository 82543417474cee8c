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


@pytest.mark.parametrize("rank", [1, 3, 5, 8])
def test_a_factorisation_is_the_best_of_its_rank(rank):
    token_VE = torch.randn(60, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = factorised_vectors(token_VE, rank)
    assert found.tokens.shape == (60, rank) and found.projection.shape == (5, rank)
    left, length, right = torch.linalg.svd(token_VE, full_matrices=False)
    best_VE = left[:, :rank] * length[:rank] @ right[:rank]
    torch.testing.assert_close(found.tokens @ found.projection.mT, best_VE)
    rest = length[rank:].square().sum().sqrt() / length.square().sum().sqrt()
    assert found.error == pytest.approx(float(rest), abs=1e-12)
    kept_VR = found.tokens[:, :5]
    torch.testing.assert_close(kept_VR.square().mean(), torch.tensor(1.0 / rank, dtype=torch.float64))


@pytest.mark.parametrize("kept", [0, 2])
def test_columns_without_a_direction_change_nothing_and_can_learn(kept):
    """Where both factors were 0, so would their gradients be."""
    torch.manual_seed(0)
    token_VE = torch.randn(30, kept, dtype=torch.float64) @ torch.randn(kept, 6, dtype=torch.float64)
    found = factorised_vectors(token_VE, 4)
    torch.testing.assert_close(found.tokens @ found.projection.mT, token_VE)
    assert found.error < 1e-7 and (found.tokens.square().mean(0) * 4 > 0.3).all()
    assert (found.projection.norm(dim=0) > 0).sum() == kept
