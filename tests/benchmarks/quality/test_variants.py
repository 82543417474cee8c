"""Variants change one thing and keep a budget."""

import math
from dataclasses import replace

import pytest
from helpers.contenders import SIZES

from benchmarks.contenders import budget_config, reference_parameters, same_depth_config
from benchmarks.quality import perplexity, variants
from modeling_treediff import VocabularyTree
from modeling_treediff.building.balanced import random_tree
from modeling_treediff.building.budget import count_parameters


def test_every_variant_changes_something_and_keeps_the_budget():
    base = variants.VARIANTS[variants.BASE]
    vocab_size, layers, sizes = SIZES["cpu"]
    budget = reference_parameters(vocab_size, layers, **sizes)
    for name, variant in variants.VARIANTS.items():
        same = replace(variant, group=base.group, title=base.title) == base
        assert same == (name == variants.BASE)
        branching = variant.branching or math.ceil(vocab_size ** (1 / variant.depth) - 1e-9)
        tree = random_tree(vocab_size, branching, variant.depth)
        config = budget_config(variant.contender, tree, budget, **sizes)
        assert abs(sum(count_parameters(config).values()) - budget) <= 0.01 * budget, name


def test_factorised_embeddings_keep_the_layers_or_the_parameters():
    tree, protocol = random_tree(8192, 91, 2), perplexity.PROTOCOLS["cpu"]
    base = variants.variant_config(variants.VARIANTS[variants.NODE], tree, protocol)
    same = variants.variant_config(variants.VARIANTS["own-32"], tree, protocol)
    deeper = variants.variant_config(variants.VARIANTS["own-32-deeper"], tree, protocol)
    sizes = [sum(count_parameters(config).values()) for config in (base, same, deeper)]
    assert (same.num_hidden_layers, same.intermediate_size) == (base.num_hidden_layers, base.intermediate_size)
    nodes = tree.num_nodes - 1
    assert sizes[0] - sizes[1] == 8192 * 128 - (nodes + 128) * 32 and deeper.num_hidden_layers > base.num_hidden_layers
    assert sizes[2] == pytest.approx(sizes[0], rel=0.01)


def test_a_model_of_equal_memory_has_all_layers_that_fit():
    tree, protocol = random_tree(2025, 45, 2), perplexity.PROTOCOLS["tiny"]
    flat = variants.variant_config(variants.VARIANTS["mdlm"], VocabularyTree.flat(2025), protocol)
    variant = variants.VARIANTS["own-64-memory"]
    fitting = variants.variant_config(variant, tree, protocol)
    above = same_depth_config(variant.contender, tree, fitting.num_hidden_layers + 1, **protocol.sizes)
    small, allowed, large = (variants.planned_memory(config, protocol) for config in (fitting, flat, above))
    assert small <= allowed < large
