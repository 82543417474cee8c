"""Clusters by neighbouring classes: planted classes are found, limits hold, sums are exact, unseen tokens stay put."""

import math

import numpy as np
import pytest
from scipy import sparse

from modeling_treediff.building import METHODS, build_tree, count_text
from modeling_treediff.building.balanced_kmeans import quantise
from modeling_treediff.building.class_bigrams import (
    LOG_UNIT,
    SMOOTHING,
    _log_likelihoods,
    cluster_by_neighbours,
    neighbour_classes,
)
from modeling_treediff.building.tree_measures import class_bigram_information

TOKENS, CLASSES = 120, 12


@pytest.fixture(scope="module")
def planted():
    """Classes follow each other in a noisy cycle, tokens of a class are drawn freely; return labels and counts."""
    generator = np.random.default_rng(0)
    label = generator.permutation(np.arange(TOKENS) % CLASSES)
    members = [np.flatnonzero(label == c) for c in range(CLASSES)]
    classes = np.cumsum(generator.choice([1, 1, 1, 5], size=20_000)) % CLASSES
    text = np.array([generator.choice(members[c]) for c in classes])
    return label, count_text([text], TOKENS).follows


def improve(cluster, follows, points, capacity=TOKENS // CLASSES, clusters=CLASSES):
    return cluster_by_neighbours(
        cluster, clusters, capacity, lambda now: neighbour_classes((follows, follows.T.tocsr()), now, clusters), points
    )


def test_planted_classes_are_found_from_a_damaged_start(planted):
    label, follows = planted
    generator = np.random.default_rng(1)
    damaged = np.where(generator.random(TOKENS) < 0.5, generator.integers(CLASSES, size=TOKENS), label)
    found = improve(damaged, follows, np.zeros((TOKENS, 2)))
    assert len(set(zip(found.tolist(), label.tolist(), strict=True))) == CLASSES
    assert class_bigram_information(follows, found) > 1.5 * class_bigram_information(follows, damaged)


def test_contexts_equal_a_loop(planted):
    label, follows = planted
    context = neighbour_classes((follows, follows.T.tocsr()), label, CLASSES).toarray()
    expected = np.zeros((TOKENS, 2 * CLASSES))
    for left, right, count in zip(*follows.tocoo().coords, follows.tocoo().data, strict=True):
        expected[left, label[right]] += count
        expected[right, CLASSES + label[left]] += count
    assert np.array_equal(context, expected)


def test_scores_are_exact_integers_and_equal_a_loop(planted):
    label, follows = planted
    context = neighbour_classes((follows, follows.T.tocsr()), label, CLASSES)
    score, dense = _log_likelihoods(label, CLASSES, context), context.toarray()
    for token in range(0, TOKENS, 17):
        for cluster in range(CLASSES):
            expected = 0
            for side in (slice(0, CLASSES), slice(CLASSES, 2 * CLASSES)):
                counts = dense[label == cluster, side].sum(axis=0) + SMOOTHING
                logs = [round(LOG_UNIT * math.log(count / counts.sum())) for count in counts]
                expected += sum(int(n) * log for n, log in zip(dense[token, side], logs, strict=True))
            assert score[token, cluster] == expected


@pytest.mark.parametrize("capacity", [10, 11, 120])
def test_no_cluster_outgrows_its_capacity(planted, capacity):
    _, follows = planted
    start = np.arange(TOKENS) % CLASSES
    found = improve(start, follows, np.zeros((TOKENS, 2)), capacity)
    assert np.bincount(found, minlength=CLASSES).max() <= capacity
    assert (found >= 0).all() and (found < CLASSES).all()


def test_tokens_without_text_stay_with_their_like(planted):
    """Half of every class never occurs; only embeddings say where it belongs."""
    label, follows = planted
    seen = np.random.default_rng(2).permutation(TOKENS) < TOKENS // 2
    thinned = sparse.csr_array(follows * np.outer(seen, seen))
    points = quantise(np.eye(CLASSES)[label])
    assert np.array_equal(improve(label, thinned, points, capacity=TOKENS), label)


def test_every_depth_gives_a_valid_tree_and_needs_counts(planted):
    label, follows = planted
    for branching, depth in ((120, 1), (11, 2), (5, 3), (4, 4), (2, 7)):
        tree = build_tree(np.eye(CLASSES)[label], branching, depth, "class-bigrams", follows=follows).validate()
        assert (tree.vocab_size, tree.tree_depth) == (TOKENS, depth)
    empty = sparse.csr_array((TOKENS, TOKENS), dtype=np.int64)
    build_tree(np.eye(CLASSES)[label], 11, 2, "class-bigrams", follows=empty).validate()
    for wrong in (None, follows[:5]):
        with pytest.raises(ValueError, match=r"needs `follows`.*\(120, 120\)"):
            build_tree(np.eye(CLASSES)[label], 11, 2, "class-bigrams", follows=wrong)


def test_the_first_level_of_a_tree_follows_the_text(planted):
    """Embeddings that say nothing: only the text can bring the planted classes together."""
    label, follows = planted
    blind = np.random.default_rng(5).normal(size=(TOKENS, 3))
    levels = [build_tree(blind, 12, 2, method, follows=follows).paths[:, 0].numpy() for method in METHODS]
    without, with_text = (class_bigram_information(follows, level) for level in levels)
    assert with_text > 1.5 * without


def test_tokens_of_which_nothing_is_known_go_together(planted):
    """Ids 120 to 179 have no embedding and no neighbour; the known classes stay as they were without them."""
    label, follows = planted
    points = np.concatenate([np.eye(CLASSES)[label], np.zeros((60, CLASSES))])
    larger = sparse.csr_array(
        (follows.data, follows.indices, np.pad(follows.indptr, (0, 60), "edge")), shape=(180, 180)
    )
    for method in METHODS:
        tree = build_tree(points, 20, 2, method, follows=larger).validate()
        node = tree.paths[:, 0].numpy()
        assert len(np.unique(node[120:])) == 3 and not set(node[:120]) & set(node[120:])
        assert node[120:140].tolist() == [node[120]] * 20  # in the order of their ids
        nothing = build_tree(np.zeros((50, 3)), 8, 2, method, follows=sparse.csr_array((50, 50))).validate()
        assert nothing.vocab_size == 50
