"""A node is shown as the most frequent token below it."""

import itertools

import numpy as np
import pytest

from modeling_treediff import VocabularyTree
from modeling_treediff.building.representatives import with_representatives

TREE = VocabularyTree.from_paths(np.array(list(itertools.product(range(3), range(3)))), 3, {"license": "mit"})


def test_representative_is_the_most_frequent_token_below():
    counts = np.array([5, 1, 9, 2, 2, 1, 0, 0, 0])
    tree = with_representatives(TREE, counts).validate()
    for node in range(tree.vocab_size, tree.num_nodes):
        below = [token for token in range(9) if node in tree.ancestors[token].tolist()]
        assert tree.representative[node] == max(below, key=lambda token: (counts[token], -token))
    assert tree.metadata == TREE.metadata and tree.sha256 != TREE.sha256


def test_without_differences_it_is_the_lowest():
    assert with_representatives(TREE, np.zeros(9)).sha256 == TREE.sha256


def test_counts_of_another_vocabulary_are_refused():
    with pytest.raises(ValueError, match=r"token_counts must have shape \(9,\), got \(3,\)"):
        with_representatives(TREE, np.ones(3))
