"""Information and similarity against double loops and planted structures."""

import numpy as np
import pytest
from helpers.follows import some_follows
from scipy import sparse

from modeling_treediff.building.tree_measures import class_bigram_information, mean_cosine, unit_rows


def test_information_is_that_of_a_double_loop():
    follows, class_V = some_follows(12), np.arange(12) % 5
    joint = np.zeros((5, 5))
    for a in range(12):
        for b in range(12):
            joint[class_V[a], class_V[b]] += follows[a, b]
    joint /= joint.sum()
    expected = 0.0
    for i in range(5):
        for j in range(5):
            if joint[i, j]:
                expected += joint[i, j] * np.log(joint[i, j] / (joint[i].sum() * joint[:, j].sum()))
    assert class_bigram_information(follows, class_V) == pytest.approx(expected)


def test_information_of_a_planted_structure():
    # Classes take turns 0, 1, 2, 0, ...: the first says everything about the second, log 3 nats.
    class_V = np.repeat(np.arange(3), 4)
    turns = sparse.csr_array((class_V[None, :] == (class_V[:, None] + 1) % 3).astype(int))
    assert class_bigram_information(turns, class_V) == pytest.approx(np.log(3))
    assert class_bigram_information(turns, np.arange(12) % 2) == pytest.approx(0.0, abs=1e-12)  # across the classes
    independent = sparse.csr_array(np.outer(np.arange(1, 13), np.arange(2, 14)))
    assert class_bigram_information(independent, class_V) == pytest.approx(0.0, abs=1e-12)


def test_mean_cosine_is_that_of_a_double_loop():
    random = np.random.default_rng(0)
    embeddings, class_V = random.standard_normal((40, 6)) + 0.5, random.integers(0, 7, 40)
    embeddings[[3, 20]] = 0
    unit = unit_rows(embeddings)
    cosines = [
        unit[a] @ unit[b]
        for a in range(40)
        for b in range(40)
        if a != b and class_V[a] == class_V[b] and unit[a].any() and unit[b].any()
    ]
    assert mean_cosine(unit, class_V) == pytest.approx(np.mean(cosines))
    assert mean_cosine(unit, np.arange(40)) is None
