"""Where a tree errs: sums against the bound, a flat model against enumeration, perfect and constructed models."""

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.compared_models import compared_errors, compared_texts
from helpers.models import tiny_model
from helpers.vocabularies import tokenizer_of

from modeling_treediff import VocabularyTree
from modeling_treediff.building.balanced import random_tree
from modeling_treediff.evaluation import WindowProtocol, analyze_errors, check_same_tokens, cut_windows
from modeling_treediff.evaluation.error_analysis import ComparedText, compare_tokens, confusions, right_choices
from modeling_treediff.evaluation.level_terms import measure_levels

TREE = random_tree(30, 4, 3, seed=0)


def constant(tree, *level_probabilities):
    """A model whose children have the same probabilities everywhere."""
    model = tiny_model(tree, head="child", max_position_embeddings=1).double()
    for level, probabilities in zip(model.head.levels, level_probabilities, strict=True):
        torch.nn.init.zeros_(level.weight)
        level.bias.data = torch.tensor(probabilities, dtype=torch.float64).log()
    return model


def test_known_confusions_and_losses_are_found():
    """Windows of one token leave nothing to chance: clusters of 0.6, 0.3 and 0.1, so all are taken for the first."""
    tree = VocabularyTree.from_paths([[0, 0], [0, 1], [1, 0], [1, 1], [2, 0], [2, 1]], 3)
    row = np.array([0, 1, 1, 2, 2, 2, 3, 4, 5, 5])
    windows = cut_windows(row, WindowProtocol(1, 1))
    model = constant(tree, [0.6, 0.3, 0.1], [0.5, 0.5, 1e-9])
    flat = constant(VocabularyTree.flat(6), [0.1, 0.1, 0.1, 0.1, 0.3, 0.3])
    terms = [measure_levels(one, tree, windows, num_samples=2) for one in (model, flat)]
    text = ComparedText(tree, row, np.arange(10), *terms)
    first, second, third = (int(tree.ancestors[token, 1]) for token in (0, 2, 4))
    found = {(one["node"], one["taken_for"]): one for one in confusions(text)}
    assert found.keys() == {(second, first), (third, first)}
    for node, tokens, probability in ((second, 4, 0.3), (third, 3, 0.1)):
        one = found[(node, first)]
        assert one["tokens"] == pytest.approx(tokens) and one["share"] == pytest.approx(1)
        assert one["probability"] == pytest.approx(probability) and one["reference_share"] == 0
    right = right_choices(text, 1)
    assert right["model"]["value"] == pytest.approx(0.3) and right["reference"]["value"] == pytest.approx(0.3)
    facts = compare_tokens(text, row >= 4)
    assert facts["model"]["levels"][0]["value"] == pytest.approx(-math.log(0.1))
    assert facts["reference"]["levels"][0]["value"] == pytest.approx(-math.log(0.6))
    assert facts["difference"]["levels"][0]["value"] == pytest.approx(math.log(6))
    assert facts["difference"]["levels"][1]["value"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("fields", [{}, {"schedule": "binomial"}, {"schedule": "poisson"}], ids=str)
def test_shares_of_a_cluster_add_up_to_one_at_most(fields):
    """Weights of single looks do not: of a cluster of few tokens they are far from its number of tokens."""
    row = torch.randint(0, 30, (96,), generator=torch.Generator().manual_seed(0)).numpy()
    windows = cut_windows(row, WindowProtocol(8, 8))
    model = tiny_model(TREE, **fields)
    terms = measure_levels(model, TREE, windows, num_samples=3)
    text = ComparedText(TREE, row, np.arange(96) // 8, terms, terms)
    shares: dict = {}
    for one in confusions(text):
        shares[one["node"]] = shares.get(one["node"], 0) + one["share"]
        size = int((TREE.ancestors[row, one["level"]] == one["node"]).sum())
        assert one["share"] == one["reference_share"] == pytest.approx(one["tokens"] / size)
    assert max(shares.values()) == pytest.approx(1)


def test_errors_of_differences_are_those_of_the_jackknife():
    """Leaving out one window at a time, an independent estimate to second order: within 5 %."""
    random = np.random.default_rng(0)
    windows = random.integers(0, 60, 900)
    member = random.random(900) < 0.3 + 0.3 * (windows < 20)
    nats = [random.gamma(2, 1, (900, 2)) * (1 + windows[:, None] / 60) for _ in range(2)]
    terms = [SimpleNamespace(nats=one) for one in nats]
    facts = compare_tokens(ComparedText(TREE, windows, windows, *terms), member)
    difference = (nats[0] - nats[1]).sum(axis=1)

    def statistics(kept):
        mean = difference[kept & member].mean()
        return mean, mean - difference[kept].mean()

    left_out = np.array([statistics(windows != one) for one in range(60)])
    expected = np.sqrt(59 * left_out.var(axis=0))
    for name, index in (("difference", 0), ("relative", 1)):
        estimate = facts[name]["total"] if name == "difference" else facts[name]
        assert estimate["value"] == pytest.approx(statistics(windows >= 0)[index])
        assert estimate["standard_error"] == pytest.approx(expected[index], rel=0.05)


@pytest.fixture(scope="module")
def facts(tokenizer):
    return compared_errors(tokenizer)


def test_groups_of_every_grouping_add_up_to_all_tokens(facts):
    whole, *rows = facts["rows"]
    assert {row["grouping"] for row in rows} == {"frequency", "kind of token", "place in a word", "capitals"}
    for _, group in itertools.groupby(rows, key=lambda row: row["grouping"]):
        group = list(group)
        assert sum(row["tokens"] for row in group) == whole["tokens"] == facts["num_tokens"]
        assert sum(row["tokens"] * row["relative"]["value"] for row in group) == pytest.approx(0, abs=1e-6)
        for role in ("model", "reference", "difference"):
            total = sum(row["tokens"] * row[role]["total"]["value"] for row in group) / whole["tokens"]
            assert total == pytest.approx(whole[role]["total"]["value"], abs=1e-9)
    for row in facts["rows"]:
        assert sum(level["value"] for level in row["model"]["levels"]) == pytest.approx(row["model"]["total"]["value"])
        paired = row["model"]["total"]["value"] - row["reference"]["total"]["value"]
        assert row["difference"]["total"]["value"] == pytest.approx(paired)


def test_deeper_trees_have_clusters_at_every_level_above_the_tokens(tokenizer):
    tree = random_tree(8192, 21, 3)
    model = tiny_model(tree, num_hidden_layers=1, head="node", schedule="binomial")
    facts = analyze_errors(model, tokenizer, compared_texts(), num_samples=3)
    for name in ("confusions", "clusters"):
        assert {row["level"] for row in facts[name]} == {1, 2}
        assert all(tree.depth[row["node"]] == row["level"] for row in facts[name])
    for row in facts["confusions"]:
        assert tree.parent[row["node"]] == tree.parent[row["taken_for"]] and 0 < row["probability"] <= 0.5
    for row in facts["clusters"]:
        assert row["nats"] == pytest.approx(row["tokens"] * row["model"]["total"]["value"])
    assert len(facts["right"]) == len(facts["rows"][0]["model"]["levels"]) == 3


def test_tokenizers_may_differ_in_the_mask_alone():
    one, other = tokenizer_of("a", "b"), tokenizer_of("a", "b", special=("<|mask|>",))
    check_same_tokens(one, other, ["a b"])
    with pytest.raises(ValueError, match="different tokenizers"):
        check_same_tokens(one, tokenizer_of("b", "a"), ["a b"])
