"""Configurations count the parameters of their model, and belong to one tree."""

import pytest
from helpers.models import IDS, TREES, tiny_model

from modeling_treediff.building.balanced import random_tree
from modeling_treediff.building.budget import count_parameters


@pytest.mark.parametrize("tree", TREES, ids=IDS)
def test_parameter_count_is_the_models(tree):
    model = tiny_model(tree, num_hidden_layers=3)
    parts = count_parameters(model.config)
    assert parts["embedding"] == model.model.embed_nodes.weight.numel()
    assert parts["head"] == sum(parameter.numel() for parameter in model.head.parameters())
    assert parts["layers"] == sum(parameter.numel() for parameter in model.model.backbone.layers.parameters())
    assert sum(parts.values()) == sum(parameter.numel() for parameter in model.parameters())


def test_an_invalid_tree_makes_no_model():
    tree = random_tree(20, 6, 2)
    tree.children[0, 0] = 3
    with pytest.raises(ValueError, match="children"):
        tiny_model(tree)
