"""What a budget of parameters buys."""

import pytest

from modeling_treediff import TreeDiffConfig, VocabularyTree
from modeling_treediff.building.balanced import random_tree
from modeling_treediff.building.budget import budget_config, count_parameters


@pytest.mark.parametrize("head", ["child", "node", "leaf"])
@pytest.mark.parametrize("layers", [3, 12])
def test_a_budget_buys_more_layers_with_a_tree(head, layers):
    fields = {"hidden_size": 256, "num_attention_heads": 4}
    flat = TreeDiffConfig.from_tree(VocabularyTree.flat(8192), num_hidden_layers=layers, **fields)
    budget = sum(count_parameters(flat).values())
    deep = budget_config(random_tree(8192, 91, 2), budget, head=head, **fields)
    assert abs(sum(count_parameters(deep).values()) - budget) <= 0.01 * budget
    assert deep.num_hidden_layers > layers or head == "leaf"
    given = budget_config(VocabularyTree.flat(8192), budget, intermediate_size=512, **fields)
    assert given.intermediate_size == 512
    with pytest.raises(ValueError, match="do not pay for one layer"):
        budget_config(VocabularyTree.flat(20), 1000, **fields)
