"""The config of a new model: sizes as given, layers as given or as a budget pays."""

import math

import pytest

from modeling_treediff import TreeDiffConfig, VocabularyTree
from modeling_treediff.building.balanced import random_tree
from modeling_treediff.building.budget import count_parameters
from modeling_treediff.cli.new_model import model_fields
from modeling_treediff.cli.options.model import SEQUENCE_LENGTH, Model, Process
from modeling_treediff.cli.unfit_settings import unfit_settings
from modeling_treediff.configuration_treediff import usual_rope_theta
from modeling_treediff.training import TrainingConfig

TREE = random_tree(300, 18, 2)


def make(process=Process(), **sizes):  # noqa: B008 -- frozen
    model = Model(**({"hidden_size": 16, "num_attention_heads": 2} | sizes))
    return TreeDiffConfig.from_tree(TREE, **model_fields(TREE, model, process, eos_token_id=5))


def test_what_is_given_is_in_the_config():
    config = make(Process(schedule="sequential", head="leaf"), num_hidden_layers=3, rope_theta=50.0, sequence_length=20)
    assert (config.num_hidden_layers, config.rope_theta, config.max_position_embeddings) == (3, 50.0, 20)
    assert (config.schedule, config.head) == ("sequential", "leaf")
    assert (config.eos_token_id, config.bos_token_id, config.pad_token_id) == (5, 5, 5)
    assert make(num_hidden_layers=1).max_position_embeddings == SEQUENCE_LENGTH


def test_a_base_of_nothing_is_not_taken_for_the_default():
    with pytest.raises(ValueError, match="rope_theta must be positive"):
        make(rope_theta=0.0, num_hidden_layers=1)


def test_a_budget_sets_the_layers():
    config = make(parameters="60e3")
    assert config.num_hidden_layers > 3 and sum(count_parameters(config).values()) == pytest.approx(60e3, rel=0.05)


def test_a_flat_model_of_the_width_that_the_guide_names_has_as_many_parameters(sample_tree):
    """As README and the guide say: `--tree flat --hidden-size 128 --heads 4` beside the default."""
    flat = Model(hidden_size=128, num_attention_heads=4), VocabularyTree.flat(sample_tree.vocab_size)
    configs = [
        TreeDiffConfig.from_tree(tree, **model_fields(tree, model, Process()))
        for model, tree in [(Model(), sample_tree), flat]
    ]
    tree_parameters, flat_parameters = (sum(count_parameters(config).values()) for config in configs)
    assert flat_parameters == pytest.approx(tree_parameters, rel=0.01)
    assert all(config.num_hidden_layers >= 3 for config in configs)


@pytest.mark.parametrize("width", [4, 8, 16, 28, 64, 128])
@pytest.mark.parametrize("length", [8, 64, 101, 512, 1000, 8192])
def test_with_the_base_by_length_no_pair_of_features_turns_half_around_too_early(width, length):
    """The slowest turns by length / base^(1 - 2 / width), at most pi over a window: left and right stay apart."""
    base = usual_rope_theta(length, width)
    assert length / base ** (1 - 2 / width) <= math.pi
    smaller = base / 10
    assert base == 100 or length > smaller or length / smaller ** (1 - 2 / width) > math.pi
    sizes = {"hidden_size": 2 * width, "sequence_length": length, "num_hidden_layers": 1}
    own = {"max_position_embeddings": length, "hidden_size": 2 * width, "num_attention_heads": 2}
    assert TreeDiffConfig.from_tree(TREE, **own).rope_theta == make(**sizes).rope_theta == base
    assert not unfit_settings(make(**sizes), TrainingConfig("x"), length, True)
