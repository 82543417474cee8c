"""Of what to build a tree: what must be given, and what contradicts it."""

import pytest
from helpers.options import parse, refusal

GIVEN = ("--output", "tree")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ([], "give either --tokenizer or --train-tokenizer"),
        (["--tokenizer", "x", "--train-tokenizer", "300"], "not both"),
        (["--tokenizer", "x"], "give --text, --embeddings or --extend"),
        (["--train-tokenizer", "300", "--method", "random"], "--train-tokenizer needs --text"),
        (["--train-tokenizer", "300", "--text", "t.txt", "--embeddings", "e.npy"], "to a tokenizer that exists"),
        (["--tokenizer", "x", "--extend", "y", "--depth", "3", "--text", "t.txt"], "leave out --text, --depth"),
        (["--train-tokenizer", "300", "--extend", "y"], "leave out --train-tokenizer"),
        (["--tokenizer", "x", "--method", "flat", "--depth", "2"], "leave out --depth and --branching"),
        (["--tokenizer", "x", "--method", "random", "--embeddings", "e.npy"], "does not look at --embeddings"),
        (["--tokenizer", "x", "--method", "random", "--text", "t.txt"], "does not look at --text"),
        (["--tokenizer", "x", "--method", "class-bigrams", "--embeddings", "e.npy"], "class-bigrams needs --text"),
        (["--tokenizer", "x", "--embeddings", "e.npy", "--tensor", "w"], "--tensor names a matrix"),
    ],
)
def test_contradictions_are_refused(line, message):
    assert message in refusal("build-tree", *line, *GIVEN)


@pytest.mark.parametrize(
    "line",
    [
        ["--train-tokenizer", "300", "--text", "a.txt", "b.txt"],
        ["--train-tokenizer", "300", "--text", "a.txt", "--method", "flat"],
        ["--tokenizer", "x", "--method", "frequency"],
        ["--tokenizer", "x", "--embeddings", "e.safetensors", "--tensor", "w"],
        ["--tokenizer", "x", "--extend", "y"],
    ],
)
def test_what_belongs_together_is_taken(line):
    vocabulary, _, _, tree = parse("build-tree", *line, *GIVEN)
    assert (vocabulary.tokenizer, vocabulary.train_tokenizer) in [("x", None), (None, 300)] and str(
        tree.output
    ) == "tree"


def test_the_output_must_be_named():
    assert "required: --output" in refusal("build-tree", "--tokenizer", "x")
