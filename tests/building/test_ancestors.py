import numpy as np
import pytest
import torch

from modeling_treediff.building.ancestors import tree_from_ancestors


def test_from_ancestors_renumbers_any_internal_ids(tree):
    scrambled = tree.ancestors.clone()
    internal = np.random.default_rng(0).permutation(np.arange(tree.vocab_size, tree.num_nodes)) + 1000
    inner = scrambled[:, :-1] - tree.vocab_size
    scrambled[:, :-1] = torch.from_numpy(internal)[inner]
    again = tree_from_ancestors(scrambled, max_branching=5).validate()
    # The same tokens are together at every depth.
    for level in range(tree.tree_depth):
        same = tree.ancestors[:, level, None] == tree.ancestors[None, :, level]
        assert torch.equal(same, again.ancestors[:, level, None] == again.ancestors[None, :, level])


def broken(**changes):
    """Ancestors of a proper tree of 4 tokens (root 4, inner nodes 5 and 6) with some entries overwritten."""
    table = torch.tensor([[4, 5, 0], [4, 5, 1], [4, 6, 2], [4, 6, 3]])
    for place, value in changes.items():
        row, column = map(int, place.split("_")[1:])
        table[row, column] = value
    return table


@pytest.mark.parametrize(
    ("ancestors", "message"),
    [
        (broken(at_0_1=1), "Leaf 1 stands at depth 1"),
        (broken(at_2_2=3), "Token 2 does not end its own row"),
        (torch.tensor([[2, 3, 5, 0], [2, 4, 5, 1]]), "Node 5 has 2 parents"),
        (broken(at_0_1=4, at_1_1=4), "cycle"),
        (torch.tensor([[2, 3, 0], [3, 2, 1]]), "several roots"),
        (broken(at_2_1=5, at_3_1=5), "has 4 children, at most 3"),
    ],
    ids=["leaf too high", "wrong leaf", "two parents", "cycle", "two roots", "fan-out"],
)
def test_impossible_trees_are_refused(ancestors, message):
    with pytest.raises(ValueError, match=message):
        tree_from_ancestors(ancestors, max_branching=3)
