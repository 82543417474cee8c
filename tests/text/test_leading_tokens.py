"""Tokens that stand for a node: all that lie below it, in an order that people expect."""

import numpy as np

from modeling_treediff.text import leading_tokens


def test_the_tokens_are_those_below_the_node(tree):
    for node in range(tree.num_nodes):
        below = [token for token in range(tree.vocab_size) if node in tree.ancestors[token]]
        found = leading_tokens(tree, node)
        assert sorted(found.tolist()) == below
        assert found[0] == int(tree.representative[node])
        rest = [tuple(tree.paths[token].tolist()) for token in found[1:]]
        assert rest == sorted(rest)


def test_frequent_tokens_come_first(tree):
    counts = np.random.default_rng(0).integers(0, 4, tree.vocab_size)
    found = leading_tokens(tree, tree.root_id, counts)
    assert (np.diff(counts[found]) <= 0).all() and sorted(found.tolist()) == list(range(tree.vocab_size))
