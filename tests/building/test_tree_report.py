"""A tree's figures against identities and slow references; the page against hostile names."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from helpers.processes import SAMPLE
from scipy import sparse
from transformers import AutoTokenizer

from modeling_treediff import VocabularyTree
from modeling_treediff.building import count_text, encode_documents
from modeling_treediff.building.order import tree_from_order
from modeling_treediff.building.report_tables import report_tables
from modeling_treediff.building.tree_measures import class_bigram_information, entropy, mean_cosine, unit_rows
from modeling_treediff.building.tree_report import _matched_shuffle, report_kinds, report_tree
from modeling_treediff.text import KINDS, iterate_documents
from modeling_treediff.viewing.tree_map.tree_page import page_data, render_page


def some_follows(vocab_size: int, seed: int = 0) -> sparse.csr_array:
    random = np.random.default_rng(seed)
    counts = random.integers(1, 9, (vocab_size, vocab_size)) * (random.random((vocab_size, vocab_size)) < 0.2)
    return sparse.csr_array(counts)


@pytest.fixture
def uneven() -> VocabularyTree:
    """Three clusters of 4, 2 and 1 tokens; slot 1 of the root is empty, tokens are not in order."""
    return VocabularyTree.from_paths(np.array([[3, 0], [0, 2], [0, 0], [2, 1], [0, 1], [2, 0], [0, 3]]), 4)


# ---- measures ----


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


# ---- report ----


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


# ---- page ----


class Elements(HTMLParser):
    """What a browser would make of the page: its elements, and the content of its data element."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.data = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.tags and self.tags[-1][1].get("id") == "data":
            self.data += data


def test_every_token_stands_once_in_the_page(uneven):
    counts, kinds = np.arange(10, 17), np.arange(7)
    names = [f"token {index}" for index in range(7)]
    data = json.loads(Elements(render_page(uneven, names, report_tree(uneven), "A tree", kinds, counts)).data)
    assert data == page_data(uneven, names, kinds, counts)
    assert data["ids"] == [2, 4, 1, 6, 5, 3, 0]  # by path
    assert data["names"] == [names[token] for token in data["ids"]]
    assert data["counts"] == [10 + token for token in data["ids"]] and data["kinds"] == data["ids"]
    assert data["children"] == [[3], [4, 2, 1]]
    assert data["slots"] == [[0, 2, 3], [0, 1, 2, 3, 0, 1, 0]]
    assert [[data["ids"][at] for at in level] for level in data["representative"]] == [[0], [1, 3, 0]]


def test_the_page_data_give_back_every_path(tree):
    data = page_data(tree, [""] * tree.vocab_size)
    paths: list[tuple[int, ...]] = [()]
    for children, slots in zip(data["children"], data["slots"], strict=True):
        parents = [path for path, number in zip(paths, children, strict=True) for _ in range(number)]
        paths = [(*path, slot) for path, slot in zip(parents, slots, strict=True)]
    assert [list(path) for path in paths] == tree.paths[data["ids"]].tolist()


def test_no_name_becomes_markup(uneven):
    hostile = ["</script><img src=x onerror=alert(1)>", "<!--<script>", "{{data}}", '"&amp;', "]]>", "\u2028", "\ud800"]
    tree = VocabularyTree.from_paths(uneven.paths, 4, metadata={"source": hostile[0], "{{script}}": hostile[2]})
    clean = Elements(render_page(uneven, list("abcdefg"), report_tree(uneven), "A tree"))
    page = render_page(tree, hostile, report_tree(tree), hostile[0])
    assert page.encode("utf-8")
    elements = Elements(page)
    new = [tag for tag, _ in elements.tags if tag not in ("tr", "td", "th")]
    assert new == [tag for tag, _ in clean.tags if tag not in ("tr", "td", "th")]
    data = json.loads(elements.data)
    assert sorted(data["names"]) == sorted(hostile)


def test_the_page_loads_nothing(uneven):
    page = render_page(uneven, list("abcdefg"), report_tree(uneven), "A tree")
    assert not re.search(r"https?://|@import|\burl\(", page)
    assert all("src" not in attributes for _, attributes in Elements(page).tags)
    assert "default-src 'none'" in page
    assert re.search(r"\{\{\w+\}\}", page) is None


def test_a_page_needs_a_name_for_every_token(uneven):
    with pytest.raises(ValueError, match="names has 2 entries, the tree 7 tokens"):
        render_page(uneven, ["a", "b"], report_tree(uneven), "A tree")


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
    tree = VocabularyTree.random(100, 10, 2)
    with pytest.raises(ValueError, match="100 leaves"):
        report_tree(tree, AutoTokenizer.from_pretrained(SAMPLE))
    with pytest.raises(ValueError, match="NaN"):
        report_tree(tree, embeddings=np.full((100, 3), np.nan))


def test_provenance_cannot_control_a_terminal():
    tree = VocabularyTree.random(10, 4, 2, metadata={"source": "\x1b[31mred\x07"})
    shown = "".join(cell for table in report_tables(report_tree(tree)) for row in table.rows for cell in row)
    assert "\x1b" not in shown and "\x07" not in shown and "<U+001B>[31mred" in shown
