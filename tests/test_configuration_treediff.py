"""The config: what older formats become, and what it refuses."""

import itertools
import json

import pytest
import torch
from helpers.models import IDS, TREES, tiny_model
from helpers.untraced import untraced
from transformers import AutoConfig

from modeling_treediff import TreeDiffConfig, TreeDiffForDiffusionLM
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
    assert config.level_durations == [3.0, 1.0] and config.format_version == FORMAT_VERSION == 5
    assert not any(hasattr(config, name) for name in ("window_lengths", "recompute_mlp_layers", "loss_chunk_size"))
    config.save_pretrained(tmp_path / "again")
    saved = json.loads((tmp_path / "again" / "config.json").read_text())
    assert saved["format_version"] == 5 and saved["level_durations"] == [3.0, 1.0]
    assert not {"window_lengths", "recompute_mlp_layers", "loss_chunk_size"} & saved.keys()
    again = load(tmp_path / "again")
    assert all(getattr(again, name) == getattr(config, name) for name in TreeDiffConfig.__annotations__)


def test_a_config_of_format_1_may_leave_intervals_open():
    for intervals in ({"window_lengths": None}, {}):
        fields = {name: value for name, value in FORMAT_1.items() if name != "window_lengths"}
        assert TreeDiffConfig(**fields, **intervals).level_durations is None
    with pytest.raises(ValueError, match="level_durations must be .*, got '31'"):
        TreeDiffConfig(**(FORMAT_1 | {"window_lengths": "31"}))


@pytest.mark.parametrize("name", ["window_lengths", "recompute_mlp_layers", "loss_chunk_size"])
def test_a_field_of_an_older_format_is_refused_with_its_new_name(name):
    with pytest.raises(ValueError, match=f"{name} is no field of the config any more: use "):
        TreeDiffConfig(**{name: [3, 1]})


def test_a_newer_format_is_refused():
    with pytest.raises(ValueError, match=f"saved in format {FORMAT_VERSION + 1}, .* reads up to {FORMAT_VERSION}"):
        TreeDiffConfig(format_version=FORMAT_VERSION + 1)


EMBEDDINGS = [
    {},
    {"node_embedding": "factorised", "embedding_rank": 5},
    {"node_embedding": "factorised", "head": "node", "embedding_rank": 6, "tie_word_embeddings": True},
    {"node_embedding": "factorised", "head": "node", "head_rank": 7, "tie_word_embeddings": True},
]
NAN, INFINITY = float("nan"), float("inf")
WRONG_VALUES = {
    "not whole numbers": (["vocab_size", "tree_depth", "hidden_size", "num_timesteps"], ["8192", True, 1.5, [8], {}]),
    "not numbers": (["rope_theta", "rms_norm_eps", "initializer_range"], ["1", True, NAN, INFINITY, []]),
    "nothing": (["rms_norm_eps", "initializer_range"], [None]),
    "not positive": (["rope_theta", "rms_norm_eps", "initializer_range", "head_rank", "num_hidden_layers"], [0, -1]),
    "beyond all sizes": (["vocab_size", "tree_depth", "hidden_size", "head_rank", "num_timesteps"], [10**12, 10**400]),
    "not texts": (["head", "schedule", "tree_sha256", "tokenizer_sha256"], [1, True, ["node"], {}]),
    "no choice": (["head", "schedule", "time_warp", "node_embedding"], ["", "leaves"]),
    "no version": (["format_version"], [None, "3", 2.5, [3], 10**12]),
    "no durations": (["level_durations"], ["31", [True, 1], ["3"], [INFINITY, 1], 3]),
    "no type of numbers": (["dtype"], [1, True, [], ["float32"], "float99"]),
    "what transformers reads": (["id2label", "torch_dtype"], ["x", 5]),
}


@untraced
@pytest.mark.parametrize("kind", WRONG_VALUES)
@pytest.mark.parametrize("load", [TreeDiffConfig.from_pretrained, AutoConfig.from_pretrained])
def test_a_config_of_wrong_types_or_ranges_is_refused_in_a_sentence(tmp_path, kind, load):
    names, values = WRONG_VALUES[kind]
    good = TreeDiffConfig.from_tree(random_tree(20, 6, 2)).to_dict()
    for name, value in itertools.product(names, values):
        (tmp_path / "config.json").write_text(json.dumps(good | {name: value}))
        with pytest.raises(ValueError) as error:
            load(tmp_path)
        assert "\n" not in str(error.value) and 10 < len(str(error.value)) < 600, (name, value)
        if name not in ("format_version", "torch_dtype", "id2label"):
            assert name in str(error.value) or str(value) in str(error.value), (name, value, error.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_branching": 4}, "20 tokens do not fit a tree of depth 2 with fan-out 4"),
        ({"max_branching": 21}, "20 tokens do not fit a tree of depth 2 with fan-out 21"),
        ({"tree_depth": 21}, "20 tokens do not fit a tree of depth 21"),
        ({"num_tree_nodes": 21}, "num_tree_nodes=21 is impossible for 20 leaves at depth 2"),
        ({"num_tree_nodes": 42}, "num_tree_nodes=42 is impossible for 20 leaves at depth 2"),
        ({"num_attention_heads": 5}, "hidden_size=768 must be an even multiple of num_attention_heads=5"),
        ({"level_durations": [3, 1]}, "level_durations belong to schedule='sequential'"),
    ],
)
def test_values_that_contradict_each_other_are_refused(fields, message):
    good = TreeDiffConfig.from_tree(random_tree(20, 6, 2)).to_dict()
    assert TreeDiffConfig(**good).to_dict() == good
    with pytest.raises(ValueError, match=message):
        TreeDiffConfig(**(good | fields))


def test_whole_numbers_are_numbers():
    assert (
        TreeDiffConfig(rope_theta=100, initializer_range=1, schedule="sequential", level_durations=[2]).rope_theta
        == 100
    )


def test_outputs_as_tuples_are_what_a_config_may_ask_for(tmp_path):
    model = tiny_model(TREES[1])
    text = model.generate(max_new_tokens=4, num_steps=4, generator=torch.Generator().manual_seed(0))
    model.config.return_dict = False
    model.save_pretrained(tmp_path)
    loaded = TreeDiffForDiffusionLM.from_pretrained(tmp_path)
    assert isinstance(loaded(text), tuple)
    again = loaded.generate(max_new_tokens=4, num_steps=4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again, text)


@pytest.mark.parametrize("tree", TREES, ids=IDS)
@pytest.mark.parametrize("fields", EMBEDDINGS)
def test_parameter_count_is_the_models(tree, fields):
    model = tiny_model(tree, num_hidden_layers=3, **fields)
    parts = count_parameters(model.config)
    embedded = {id(parameter) for parameter in model.model.embed_nodes.parameters()}
    assert parts["embedding"] == sum(parameter.numel() for parameter in model.model.embed_nodes.parameters())
    own = [parameter for parameter in model.head.parameters() if id(parameter) not in embedded]  # the others are shared
    assert parts["head"] == sum(parameter.numel() for parameter in own)
    assert parts["layers"] == sum(parameter.numel() for parameter in model.model.backbone.layers.parameters())
    assert sum(parts.values()) == sum(parameter.numel() for parameter in model.parameters())


def test_an_invalid_tree_makes_no_model():
    tree = random_tree(20, 6, 2)
    tree.children[0, 0] = 3
    with pytest.raises(ValueError, match="children"):
        tiny_model(tree)
