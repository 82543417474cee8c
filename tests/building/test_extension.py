import numpy as np
import pytest
import torch
from helpers.models import SHAPES

from modeling_treediff import VocabularyTree
from modeling_treediff.building.balanced import random_tree
from modeling_treediff.building.extension import extend_tree


@pytest.mark.parametrize(("vocab_size", "branching", "depth"), SHAPES)
@pytest.mark.parametrize("added", [1, 3, 40])
def test_an_extended_tree_keeps_all_ids_paths_and_representatives(vocab_size, branching, depth, added):
    tree = random_tree(vocab_size, branching, depth, seed=3, metadata={"license": "x"})
    extended = extend_tree(tree, added).validate()
    assert (extended.vocab_size, extended.tree_depth) == (vocab_size + added, depth)
    assert torch.equal(extended.paths[:vocab_size], tree.paths) and extended.metadata == tree.metadata
    if branching**depth >= vocab_size + added:
        assert extended.max_branching == branching  # the head keeps its width as long as there is room
    moved = extended.ancestors[tree.representative, tree.depth]  # where the docstring says each node went
    assert len(set(moved.tolist())) == tree.num_nodes
    assert torch.equal(moved[:vocab_size], torch.arange(vocab_size))
    assert torch.equal(extended.representative[moved], tree.representative)
    for node, new in enumerate(moved.tolist()):
        if tree.depth[node] > 0:
            assert extended.parent[new] == moved[tree.parent[node]]
            assert extended.child_slot[new] == tree.child_slot[node]


def test_added_tokens_stand_together_where_an_upper_node_has_room():
    tree = VocabularyTree.from_paths(np.array([[0, 0], [0, 1], [1, 0], [1, 1]]), 4)
    assert extend_tree(tree, 5).paths[4:].tolist() == [[2, 0], [2, 1], [2, 2], [2, 3], [3, 0]]
    full = VocabularyTree.from_paths(np.array([[0, 0], [0, 1], [1, 0]]), 2)
    assert extend_tree(full, 1).paths[3:].tolist() == [[1, 1]]
    with pytest.raises(ValueError, match="1 token or more"):
        extend_tree(tree, 0)
