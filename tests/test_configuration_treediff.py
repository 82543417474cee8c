"""The config: what older formats become, and what it refuses."""

import json

import pytest
from helpers.models import IDS, TREES, tiny_model
from transformers import AutoConfig

from modeling_treediff import TreeDiffConfig
from modeling_treediff.building.balanced import random_tree
from modeling_treediff.building.budget import count_parameters
from modeling_treediff.configuration_treediff import FORMAT_VERSION

FORMAT_1 = {
    "model_type": "treediff",
    "format_version": 1,
    "vocab_size": 20,
    "tree_depth": 2,
    "max_branching": 6,
    "num_tree_nodes": 25,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "schedule": "sequential",
    "window_lengths": [3.0, 1.0],
    "recompute_mlp_layers": 2,
    "loss_chunk_size": None,
}


@pytest.mark.parametrize("load", [TreeDiffConfig.from_pretrained, AutoConfig.from_pretrained])
def test_a_config_of_format_1_is_read_and_saved_in_the_format_of_now(tmp_path, load):
    """Intervals have their new name; what training kept in memory is no part of a model."""
    (tmp_path / "config.json").write_text(json.dumps(FORMAT_1))
    config = load(tmp_path)
    assert config.level_durations == [3.0, 1.0] and config.format_version == FORMAT_VERSION == 3
    assert not any(hasattr(config, name) for name in ("window_lengths", "recompute_mlp_layers", "loss_chunk_size"))
    config.save_pretrained(tmp_path / "again")
    saved = json.loads((tmp_path / "again" / "config.json").read_text())
    assert saved["format_version"] == 3 and saved["level_durations"] == [3.0, 1.0]
    assert not {"window_lengths", "recompute_mlp_layers", "loss_chunk_size"} & saved.keys()
    again = load(tmp_path / "again")
    assert all(getattr(again, name) == getattr(config, name) for name in TreeDiffConfig.__annotations__)


def test_a_config_of_format_1_may_leave_intervals_open():
    for intervals in ({"window_lengths": None}, {}):
        fields = {name: value for name, value in FORMAT_1.items() if name != "window_lengths"}
        assert TreeDiffConfig(**fields, **intervals).level_durations is None


@pytest.mark.parametrize("name", ["window_lengths", "recompute_mlp_layers", "loss_chunk_size"])
def test_a_field_of_an_older_format_is_refused_with_its_new_name(name):
    with pytest.raises(ValueError, match=f"{name} is no field of the config any more: use "):
        TreeDiffConfig(**{name: [3, 1]})


def test_a_newer_format_is_refused():
    with pytest.raises(ValueError, match=f"saved in format {FORMAT_VERSION + 1}, .* reads up to {FORMAT_VERSION}"):
        TreeDiffConfig(format_version=FORMAT_VERSION + 1)


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
