"""Which model: a saved one brings all along, a new one is as its config is by default."""

from dataclasses import fields, replace

import pytest
from helpers.options import parse, refusal
from helpers.processes import REPOSITORY

from modeling_treediff import TreeDiffConfig
from modeling_treediff.cli.options.model import FAMILY, PRESETS, Model, Process, check_source
from modeling_treediff.configuration_treediff import usual_rope_theta
from modeling_treediff.training import TrainingConfig
from modeling_treediff.training.run.optimization import peak_learning_rate


def model_of(subcommand, *words):
    return next(one for one in parse(subcommand, *map(str, words)) if isinstance(one, Model))


def test_the_defaults_of_the_process_are_the_configs():
    default = TreeDiffConfig(tree_depth=2, max_branching=300, num_tree_nodes=50257 + 300)
    derived = {"head": "node", "node_embedding": "factorised", "tie_word_embeddings": True}  # of a tree of depth 2
    derived |= {"lookahead": 1.0, "head_rank": default.hidden_size, "embedding_rank": default.hidden_size}
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
    check_source(Model("my_model", sequence_length=32), Process(lookahead=0.5, block_size=4))


@pytest.mark.parametrize("subcommand", ["train", "plan-memory"])
@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_sizes_of_which_others_can_be_given(tmp_path, subcommand, name):
    """On the command line or in a file, before or after it; its model has about as many parameters as it says."""
    model = model_of(subcommand, "--preset", name)
    assert model.num_parameters == float(name.removesuffix("M")) * 1e6
    assert model.hidden_size == 64 * model.num_attention_heads
    wider = replace(model, hidden_size=1024)
    assert model_of(subcommand, "--hidden-size", 1024, "--preset", name) == wider
    file = tmp_path / "options.yaml"
    file.write_text(f"preset: {name}\nhidden-size: 1024\n")
    assert model_of(subcommand, "--config", file) == wider
    file.write_text(f"preset: {next(other for other in PRESETS if other != name)}\n")
    assert model_of(subcommand, "--config", file, "--preset", name) == model


def test_presets_get_larger_in_all_sizes():
    models = [model_of("train", "--preset", name) for name in PRESETS]
    for names in ("num_parameters", "hidden_size", "sequence_length"):
        sizes = [getattr(model, names) for model in models]
        assert sizes == sorted(set(sizes))


@pytest.mark.parametrize("name", PRESETS)
def test_the_guide_to_training_has_the_sizes_of_presets_and_what_follows_from_them(name):
    model = model_of("train", "--preset", name)
    guide = (REPOSITORY / "docs" / "how_to" / "training.md").read_text(encoding="utf-8")
    (line,) = (line for line in guide.splitlines() if line.startswith(f"| `{name}` |"))
    *sizes, _, follows = [cell.strip() for cell in line.strip("| ").split("|")][1:]
    rate, base = follows.split(";")
    assert [int(size) for size in sizes] == [model.hidden_size, model.num_attention_heads, model.sequence_length]
    assert float(rate) == pytest.approx(peak_learning_rate(TrainingConfig("x"), model.hidden_size), rel=0.02)
    head = model.hidden_size // model.num_attention_heads
    assert float(base.replace(",", "")) == usual_rope_theta(model.sequence_length, head)


def test_unknown_presets_and_those_beside_a_saved_model_are_refused():
    assert "--preset: invalid choice: '20M'" in refusal("train", "--preset", "20M")
    assert "--preset: expected one argument" in refusal("train", "--preset")
    assert "leave out --preset." in refusal("train", "--from", "my_model", "--preset", "10M")


@pytest.mark.parametrize(
    ("text", "number"),
    [("10M", 10_000_000), ("2.9e6", 2_900_000), ("1.5b", 1_500_000_000), ("812k", 812_000), ("5000", 5000)],
)
def test_budgets(text, number):
    assert Model(parameters=text).num_parameters == number


@pytest.mark.parametrize("text", ["inf", "nan", "-3M", "10 MB", "1e400", "many", ""])
@pytest.mark.parametrize("subcommand", ["train", "plan-memory"])
def test_what_is_no_budget_is_refused(subcommand, text):
    assert "--parameters must be a number such as 10M" in refusal(subcommand, f"--parameters={text}")


@pytest.mark.parametrize("length", ["0", "-1"])
@pytest.mark.parametrize("subcommand", ["train", "plan-memory"])
@pytest.mark.parametrize("source", [[], ["--from", "my_model"]])
def test_a_length_of_nothing_is_not_taken_for_the_default(subcommand, length, source):
    assert "--sequence-length must be at least 1" in refusal(subcommand, f"--sequence-length={length}", *source)
