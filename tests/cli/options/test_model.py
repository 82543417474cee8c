"""Which model: a saved one brings all along, a new one is as its config is by default."""

from dataclasses import fields

import pytest

from modeling_treediff import TreeDiffConfig
from modeling_treediff.cli.options.model import FAMILY, Model, Process, check_source


def test_the_defaults_of_the_process_are_the_configs():
    default = TreeDiffConfig(tree_depth=2, max_branching=300, num_tree_nodes=50257 + 300)
    derived = {"head": "node"}  # of a tree of depth 2
    assert {name: getattr(default, name) for name in FAMILY} == vars(Process()) | derived


def test_choices_are_all_that_the_config_takes():
    for one in fields(Process):
        for choice in one.metadata.get("choices", ()):
            TreeDiffConfig(**{one.name: choice})


@pytest.mark.parametrize(
    ("model", "process", "named"),
    [
        ({"num_hidden_layers": 3}, {}, "--layers"),
        ({"tree": "flat", "num_attention_heads": 2}, {}, "--tree, --heads"),
        ({}, {"head": "leaf"}, "--head"),
    ],
)
def test_a_saved_model_brings_its_own_along(model, process, named):
    check_source(Model(**model), Process(**process))
    with pytest.raises(ValueError, match=f"leave out {named}.$"):
        check_source(Model("my_model", **model), Process(**process))
    check_source(Model("my_model", sequence_length=32), Process())
