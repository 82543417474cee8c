"""A tree from a text in one call."""

import numpy as np
import pytest
from helpers.processes import SAMPLE, run_here

from modeling_treediff import VocabularyTree
from modeling_treediff.building import build_tree_from_text
from modeling_treediff.text import Corpus, read_documents
from modeling_treediff.text.tree_tokenizer import check_tokenizer, load_tokenizer


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text("\n\n".join(document[:3000] for document in read_documents(SAMPLE / "validation.txt.xz")))
    return file


@pytest.fixture(scope="module")
def commanded(text, tmp_path_factory):
    """What the command makes of it."""
    folder = tmp_path_factory.mktemp("built") / "tree"
    ran = run_here("build-tree", "--text", text, "--train-tokenizer", 400, "--seed", 3, "--output", folder)
    assert ran.returncode == 0, ran.stderr
    return folder


def test_it_is_the_tree_that_the_command_builds(text, commanded):
    tree, tokenizer = build_tree_from_text(text, 400, seed=3)
    assert tree.sha256 == VocabularyTree.from_pretrained(commanded).sha256
    assert tokenizer.get_vocab() == load_tokenizer(commanded).get_vocab()
    check_tokenizer(tree, tokenizer)
    assert build_tree_from_text(text, 400, seed=4)[0].sha256 != tree.sha256


def test_a_tokenizer_and_a_text_are_taken_as_objects_or_by_name(text, commanded):
    trees = [
        build_tree_from_text(*arguments, depth=3, branching=9, seed=3, license="PDDL-1.0")[0]
        for arguments in ((text, commanded), (Corpus(text), load_tokenizer(commanded)))
    ]
    assert trees[0].sha256 == trees[1].sha256 and (trees[0].tree_depth, trees[0].max_branching) == (3, 9)
    for tree in trees:
        assert {name: tree.metadata[name] for name in ("source", "tokenizer", "license")} == {
            "source": "text.txt", "tokenizer": "tree", "license": "PDDL-1.0"
        }  # fmt: skip


def test_what_cannot_be_is_refused(text):
    with pytest.raises(OSError, match=r"none.txt"):
        build_tree_from_text(text.parent / "none.txt", 400)
    with pytest.raises(ValueError, match="The text is too small for 100000 tokens"):
        build_tree_from_text(text, 100_000)
    for branching in (0, 2):
        with pytest.raises(ValueError, match="400 "):
            build_tree_from_text(text.parent / "never read.txt", np.int64(400), branching=branching)
