import numpy as np
import pytest

from modeling_treediff.building.balanced import tree_from_order


def test_an_order_fills_the_leaves_from_the_first_slots_on():
    tree = tree_from_order(np.array([3, 1, 4, 0, 2]), 3, 2).validate()
    by_path = sorted(range(5), key=lambda token: tree.paths[token].tolist())
    assert by_path == [3, 1, 4, 0, 2]
    assert tree.representative[tree.root_id] == 3
    for wrong in ([0, 0, 1], [1, 2, 3], [[0, 1]]):
        with pytest.raises(ValueError, match="every token id"):
            tree_from_order(np.array(wrong), 3, 2)
    with pytest.raises(ValueError, match="do not fit"):
        tree_from_order(np.arange(10), 3, 2)
