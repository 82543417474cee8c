"""Tokens that a text does not have: no cluster of theirs alone, and places beside tokens like them."""

import numpy as np
import pytest
from scipy import sparse

from modeling_treediff.building import build_tree
from modeling_treediff.building.balanced import frequency_tree, smallest_branching
from modeling_treediff.building.tree_builder import METHODS
from modeling_treediff.building.tree_measures import counts_below
from modeling_treediff.building.unseen_tokens import best_match, place_unseen, spelling_features

SHAPES = [(12, 2), (250, 2), (60, 3), (90, 4), (40, 5)]
SEEN = [0.98, 0.6]


def made_up(vocab_size, share, generator):
    """Counts with zeros, names, and neighbours of the seen tokens."""
    counts = generator.integers(1, 50, vocab_size) * (generator.random(vocab_size) < share)
    seen = np.flatnonzero(counts)
    names = ["".join(generator.choice(list("abZ.▁1"), generator.integers(1, 5))) for _ in counts]
    pairs = generator.choice(seen, (2, 5 * len(seen)))
    follows = sparse.csr_array((np.ones(pairs.shape[1]), tuple(pairs)), shape=(vocab_size, vocab_size))
    return counts, names, follows


def of_internal_nodes(tree, counts):
    """The count of each internal node."""
    return counts_below(tree, counts)[tree.vocab_size :]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("vocab_size", "depth"), SHAPES)
@pytest.mark.parametrize(("share", "spare"), [(0.98, 0), (0.6, 2)])
def test_no_internal_node_is_without_a_seen_token(method, vocab_size, depth, share, spare):
    """For every method and every source of likeness; if twice as many tokens are seen as parents of leaves need."""
    generator = np.random.default_rng([vocab_size, spare])
    branching = smallest_branching(vocab_size, depth) + spare
    counts, names, follows = made_up(vocab_size, share, generator)
    assert np.count_nonzero(counts) >= 2 * vocab_size / branching
    embeddings = generator.normal(size=(vocab_size, 4))
    for source, given in ((embeddings, None), (embeddings * (counts > 0)[:, None], names), (0 * embeddings, names)):
        tree = build_tree(source, branching, depth, method, token_counts=counts, follows=follows, names=given)
        assert of_internal_nodes(tree.validate(), counts).min() > 0


@pytest.mark.parametrize(("vocab_size", "depth"), SHAPES)
@pytest.mark.parametrize("share", SEEN)
def test_no_node_of_a_tree_by_frequency_is_without_a_seen_token(vocab_size, depth, share):
    """If as many tokens are seen as leaves have parents; siblings of these stand by falling frequency."""
    counts = made_up(vocab_size, share, np.random.default_rng(vocab_size))[0]
    tree = frequency_tree(counts, smallest_branching(vocab_size, depth), depth).validate()
    parents = (tree.depth == depth - 1).sum()
    assert (of_internal_nodes(tree, counts) == 0).sum() <= max(0, parents - np.count_nonzero(counts)) * depth
    for row in tree.children.numpy()[tree.depth.numpy()[tree.vocab_size :] == depth - 1]:
        assert np.all(np.diff(counts[row[row >= 0]]) <= 0)


def test_too_few_seen_tokens_still_give_a_tree():
    counts = np.zeros(100, dtype=int)
    for seen in (0, 1, 5):
        counts[:seen] = 3
        for tree in (build_tree(np.eye(100), 5, 3, token_counts=counts), frequency_tree(counts, 5, 3)):
            assert tree.validate().vocab_size == 100
            assert np.count_nonzero(of_internal_nodes(tree, counts)[1:] > 0) >= min(seen, 1)


def test_where_all_are_seen_names_change_nothing():
    counts, names, follows = made_up(200, 1.0, np.random.default_rng(0))
    points = np.random.default_rng(1).normal(size=(200, 3))
    for method in METHODS:
        trees = [
            build_tree(points, 15, 2, method, token_counts=counts, follows=follows, names=given)
            for given in (names, None)
        ]
        assert trees[0].sha256 == trees[1].sha256


def test_unseen_tokens_stand_with_those_that_are_spelled_alike():
    seen, unseen = ["▁cat", "▁dog", "12", "345", "?!", ";", "ing", "ed"], ["7", "▁cow", ".", "ings"]
    names = seen + unseen
    cluster = np.array([0, 0, 1, 1, 2, 2, 3, 3, -1, -1, -1, -1])
    placed = place_unseen(cluster, cluster >= 0, np.full(4, 4), spelling_features(names), np.zeros((12, 2)))
    assert placed.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 1, 0, 2, 3]


def test_unseen_tokens_stand_with_those_of_like_embeddings():
    points = np.array([[1.0, 0], [0, 1], [2, 0.1], [0.1, 3]])
    placed = place_unseen(np.array([0, 1, -1, -1]), np.array([True, True, False, False]), np.full(2, 2), None, points)
    assert placed.tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize("seed", range(50))
def test_the_match_is_the_one_that_takes_the_best_pairs_first(seed):
    generator = np.random.default_rng(seed)
    rows, columns = generator.integers(1, 30), generator.integers(1, 8)
    scores = generator.integers(0, generator.integers(1, 40) + 1, (rows, columns)).astype(np.int32)  # many are equal
    room = generator.multinomial(rows + generator.integers(0, 4), np.ones(columns) / columns)
    left, expected = room.copy(), np.full(rows, -1)
    for row, column in sorted(np.ndindex(rows, columns), key=lambda pair: -scores[pair]):
        if expected[row] < 0 and left[column]:
            expected[row], left[column] = column, left[column] - 1
    assert np.array_equal(best_match(scores, room), expected)


def test_features_do_not_depend_on_the_order_of_names():
    names = ["▁the", "The", "12", "▁é", "", "a"]
    rows = spelling_features(names)
    likeness = (rows @ rows.T).toarray()
    assert np.allclose(np.diag(likeness), 1)
    order = np.random.default_rng(0).permutation(len(names))
    other = spelling_features([names[i] for i in order])
    assert np.allclose((other @ other.T).toarray(), likeness[np.ix_(order, order)])
