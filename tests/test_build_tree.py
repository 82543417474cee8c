"""The script build_tree.py: every source of similarity, every control, every mistake."""

import runpy
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from modeling_treediff.vocabulary_tree import VocabularyTree

REPOSITORY = Path(__file__).resolve().parents[1]
SAMPLE = REPOSITORY / "tree_artifacts" / "sotu-8k"
EXAMPLE = REPOSITORY / "examples" / "build_tree.py"


@pytest.fixture
def run_example(monkeypatch):
    """Run the script in this process; return its exit value: None, or the line it prints to stderr."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["build_tree.py", *map(str, arguments)])
        try:
            runpy.run_path(str(EXAMPLE), run_name="__main__")
        except SystemExit as stop:
            return stop.code

    return run


class TestExample:
    @pytest.mark.parametrize(
        ("content", "arguments", "message"),
        [
            (b"", ("--train-tokenizer", 300), "holds no text"),
            (b"caf\xe9 au lait", ("--train-tokenizer", 300), "not UTF-8"),
            (b"a b c", ("--train-tokenizer", 300, "--branching", 4, "--depth", 2), "do not fit"),
        ],
    )
    def test_bad_input_is_one_line_and_touches_nothing(self, run_example, content, arguments, message, tmp_path):
        text, output = tmp_path / "bad.txt", tmp_path / "output"
        text.write_bytes(content)
        output.mkdir()
        (output / "vocabulary_tree.json").write_text("kept")
        stop = run_example("--text", text, "--output", output, *arguments)
        assert message in stop and stop.startswith("build_tree.py: error: ") and "\n" not in stop
        assert [file.name for file in output.iterdir()] == ["vocabulary_tree.json"]

    @pytest.mark.parametrize(("method", "shape"), [("flat", (1, 8192)), ("random", (3, 21))])
    def test_reference_trees_with_a_given_tokenizer(self, run_example, method, shape, tmp_path):
        arguments = ("--tokenizer", SAMPLE, "--method", method, "--depth", 3, "--output", tmp_path)
        assert run_example("--text", SAMPLE / "validation.txt.xz", *arguments) is None
        tree = VocabularyTree.from_pretrained(tmp_path)
        assert (tree.tree_depth, tree.max_branching) == shape
        assert tree.metadata["tokenizer"] == "sotu-8k" and tree.metadata["method"] == method
        tree.check_tokenizer(AutoTokenizer.from_pretrained(tmp_path))  # the folder is all that training needs
