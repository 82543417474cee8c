"""The page of a tree: every token once, no markup from names, nothing loaded."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from modeling_treediff import VocabularyTree
from modeling_treediff.building.tree_report import report_tree
from modeling_treediff.viewing.tree_map.tree_page import page_data, render_page


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
