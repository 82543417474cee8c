"""A tree's figures against identities and slow references; what is refused."""

import json

import numpy as np
import pytest
from helpers.follows import some_follows
from helpers.processes import SAMPLE
from scipy import sparse
from transformers import AutoTokenizer

from modeling_treediff import VocabularyTree
from modeling_treediff.building import count_text
from modeling_treediff.building.balanced import random_tree, tree_from_order
from modeling_treediff.building.report_tables import report_tables
from modeling_treediff.building.tree_measures import entropy
from modeling_treediff.building.tree_report import _matched_shuffle, report_kinds, report_tree
from modeling_treediff.text import KINDS, encode_documents, iterate_documents


def test_entropies_sum_to_the_unigram_entropy(tree):
    counts = np.random.default_rng(0).integers(0, 50, tree.vocab_size)
    report = report_tree(tree, token_counts=counts)
    share = counts[counts > 0] / counts.sum()
    assert report.unigram_entropy == pytest.approx(-(share * np.log(share)).sum())
    assert sum(level.entropy for level in report.levels) == pytest.approx(report.unigram_entropy)
    assert report.coverage == (counts > 0).mean() and report.text_tokens == counts.sum()


def test_information_grows_with_depth_and_a_random_tree_agrees_at_both_ends(tree):
    levels = report_tree(tree, follows=some_follows(tree.vocab_size)).levels
    information = [level.bigram_information for level in levels]
    assert information == sorted(information) and information[0] == 0
    assert levels[-1].random_bigram_information == pytest.approx(information[-1])
    assert levels[0].bigram_factor is None and levels[-1].bigram_factor == pytest.approx(1)


def test_planted_clusters_beat_a_random_tree():
    clusters, size = 8, 25
    class_V = np.repeat(np.arange(clusters), size)
    tree = VocabularyTree.from_paths(np.stack([class_V, np.tile(np.arange(size), clusters)], axis=1), size)
    random = np.random.default_rng(0)
    embeddings = np.eye(clusters)[class_V] + 0.01 * random.standard_normal((len(class_V), clusters))
    follows = sparse.csr_array((class_V[None, :] == (class_V[:, None] + 1) % clusters).astype(int))
    level = report_tree(tree, follows=follows, embeddings=embeddings).levels[1]
    assert level.bigram_information == pytest.approx(np.log(clusters))
    assert level.bigram_factor > 5
    assert level.similarity == pytest.approx(1, abs=0.01)
    assert level.random_similarity == pytest.approx((size - 1) / (len(class_V) - 1), abs=0.05)


def test_shape_of_an_uneven_tree(uneven):
    root, inner, leaves = report_tree(uneven).levels
    assert (root.nodes, inner.nodes, leaves.nodes) == (1, 3, 7)
    assert (root.fan_out.min, root.fan_out.max, root.filled_slots) == (3, 3, 3 / 4)
    assert (inner.fan_out.min, inner.fan_out.mean, inner.fan_out.max) == (1, pytest.approx(7 / 3), 4)
    assert (inner.single_child_nodes, root.single_child_nodes, leaves.fan_out) == (1, 0, None)
    assert inner.balance == pytest.approx(entropy(np.array([4, 2, 1])) / np.log(3))
    assert leaves.balance == 1 and root.balance == 1


def test_report_without_inputs_and_as_json(tree):
    report = report_tree(tree)
    assert report.kinds is None and report.text_tokens is None
    assert all(level.entropy is level.bigram_information is level.similarity is None for level in report.levels)
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False))["levels"][1]["fan_out"]["max"] == 5
    assert [table.title for table in report_tables(report)] == ["Tree", "Shape by level"]


def test_a_flat_tree_and_a_tree_of_one_token_have_reports():
    for size in (1, 5):
        flat = VocabularyTree.flat(size)
        follows = sparse.csr_array(np.ones((size, size)))
        report = report_tree(flat, follows=follows, embeddings=np.ones((size, 2)))
        assert report.levels[1].bigram_information == pytest.approx(0, abs=1e-12)
        assert all(len(row) == len(table.header) for table in report_tables(report) for row in table.rows)


def test_the_seed_decides_the_random_tree(tree):
    follows = some_follows(tree.vocab_size)
    first, again, other = (report_tree(tree, follows=follows, seed=seed).levels[1] for seed in (1, 1, 2))
    assert first == again
    assert first.random_bigram_information != other.random_bigram_information
    assert first.bigram_information == other.bigram_information


def test_tables_of_the_wrong_size_are_refused(tree):
    with pytest.raises(ValueError, match="embeddings has 3 rows, the tree has 100 tokens"):
        report_tree(tree, embeddings=np.ones((3, 2)))
    with pytest.raises(ValueError, match="follows has 3 rows"):
        report_tree(tree, follows=some_follows(3))


def test_where_kinds_went():
    digit, other = KINDS.index("digit"), KINDS.index("non-Latin")
    kinds = np.array([digit] * 4 + [other] * 4)
    places = report_kinds(kinds, np.array([0, 0, 0, 1, 1, 1, 2, 2]))
    assert [(place.kind, place.tokens, place.clusters) for place in places] == [("digit", 4, 2), ("non-Latin", 4, 2)]
    assert places[0].purity == 3 / 4 and places[1].purity == 1
    assert places[1].effective_clusters == pytest.approx(2)


def test_the_embedded_tree_beats_random_on_held_out_text():
    tree, tokenizer = VocabularyTree.from_pretrained(SAMPLE), AutoTokenizer.from_pretrained(SAMPLE)
    text = count_text(encode_documents(tokenizer, iterate_documents(SAMPLE / "validation.txt.xz")), tree.vocab_size)
    report = report_tree(tree, tokenizer, text.follows, token_counts=text.token_counts)
    assert report.levels[1].bigram_factor > 2
    assert sum(place.tokens for place in report.kinds) == tree.vocab_size


def test_a_matched_tree_keeps_octaves_of_frequency_and_moves_tokens():
    counts = np.random.default_rng(0).permutation(np.arange(1000)) ** 2
    moved = _matched_shuffle(counts, np.random.default_rng(1))
    assert sorted(moved.tolist()) == list(range(1000))
    octave = np.empty(1000, dtype=int)
    octave[np.argsort(-counts)] = np.log2(np.arange(1, 1001)).astype(int)
    assert np.array_equal(octave[moved], octave)
    assert (moved != np.arange(1000)).mean() > 0.95


def test_frequency_alone_has_no_factor_over_a_matched_tree():
    """Classes by frequency, text without any order: what is left of the information is chance, alike in both."""
    text = np.random.default_rng(0).zipf(1.3, size=200_000) % 500
    counts = count_text([text], 500)
    tree = tree_from_order(np.argsort(-counts.token_counts, kind="stable"), 23, 2)
    coarse = report_tree(tree, follows=counts.follows).levels[1]
    assert 0.5 < coarse.matched_bigram_factor < 2


def test_foreign_tokenizers_and_embeddings_that_are_not_finite_are_refused():
    tree = random_tree(100, 10, 2)
    with pytest.raises(ValueError, match="100 leaves"):
        report_tree(tree, AutoTokenizer.from_pretrained(SAMPLE))
    with pytest.raises(ValueError, match="NaN"):
        report_tree(tree, embeddings=np.full((100, 3), np.nan))
