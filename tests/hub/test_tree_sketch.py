"""The sketch of a tree in a card."""

import re

import pytest

from modeling_treediff import VocabularyTree
from modeling_treediff.building.balanced import random_tree
from modeling_treediff.hub.card import render_card
from modeling_treediff.hub.tree_sketch import BRANCHES, sketch_tree


@pytest.mark.parametrize("depth", [1, 2, 3, 6])
def test_the_sketch_counts_and_names_what_is_below(depth):
    tree = random_tree(64, branching=round(64 ** (1 / depth)), depth=depth, seed=3)
    lines = sketch_tree(tree).splitlines()
    shown = [re.fullmatch(r"(root, the mask: |[│ ]*[├└]── )([\d,]+)(: [\d …]+)?", line) for line in lines]
    assert shown[0][2] == "64" and len(lines) <= 1 + BRANCHES * (BRANCHES + 2) + 1
    for line, match in zip(lines, shown, strict=True):
        if match is None:
            assert re.fullmatch(r"[│ ]*└── and \d+ more", line)
        elif match[3]:  # a node whose tokens are listed: they have an ancestor in common
            tokens = [int(token) for token in re.findall(r"\d+", match[3])]
            level = min(2, depth - 1)
            node = int(tree.ancestors[tokens[0], level])
            assert (tree.ancestors[tokens, level] == node).all() and tokens[0] == int(tree.representative[node])
            assert int(match[2]) == int((tree.ancestors[:, level] == node).sum()) >= len(tokens)


def test_the_sketch_shows_words_where_there_is_a_tokenizer(loaded, checkpoint):
    assert '" the" ' in render_card(loaded, checkpoint)
    (checkpoint / "tokenizer.json").unlink()
    assert '" the" ' not in render_card(loaded, checkpoint)
    special = {0: "```", 1: 'a\n"', 2: "\N{REPLACEMENT CHARACTER}", 3: "<|end|>"}
    assert sketch_tree(VocabularyTree.flat(4), special.get) == r'root, the mask: 4: "```" "a\n\"" "<|end|>" …'
