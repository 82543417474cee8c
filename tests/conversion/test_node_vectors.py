"""Vectors of nodes are the means of their tokens'."""

import pytest
import torch

from modeling_treediff.building.balanced import random_tree
from modeling_treediff.conversion.node_vectors import node_vectors, path_increments


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
