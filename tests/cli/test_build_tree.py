"""Building as people do it: every source of similarity, every control, every mistake."""

import filecmp

import numpy as np
import pytest
import torch
from helpers.processes import SAMPLE, last_line, run_here
from safetensors.numpy import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoTokenizer, GPT2Config, GPT2Model, PreTrainedTokenizerFast

from modeling_treediff.building import train_tokenizer
from modeling_treediff.building.tree_measures import counts_below
from modeling_treediff.text.tree_tokenizer import check_tokenizer
from modeling_treediff.vocabulary_tree import VocabularyTree


def build(*arguments):
    """Run the command; return what it says in the end if it fails."""
    ran = run_here("build-tree", *arguments)
    return last_line(ran) if ran.returncode else None


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A folder with a tokenizer of 300 tokens, its text, and embeddings of every form."""
    folder = tmp_path_factory.mktemp("small")
    text = " ".join(f"word{n} is {n * n} or thing" for n in range(200))
    (folder / "text.txt").write_text(text)
    tokenizer = train_tokenizer([text], 300)
    tokenizer.save_pretrained(folder / "tokenizer")
    model = GPT2Model(GPT2Config(vocab_size=320, n_embd=16, n_layer=1, n_head=2))  # 20 rows more than tokens
    model.save_pretrained(folder / "checkpoint")
    matrix = model.wte.weight.detach().numpy()
    np.save(folder / "matrix.npy", matrix)
    save_file({"embedding": matrix}, folder / "matrix.safetensors")
    return folder


def arguments(*parts):
    return ("--tokenizer", "{folder}/tokenizer", *parts)


@pytest.mark.parametrize(
    ("parts", "method", "shape"),
    [
        (("--text", "{folder}/text.txt"), "class-bigrams", (2, 18)),
        (("--embeddings", "{folder}/checkpoint"), "balanced-kmeans", (2, 18)),
        (("--embeddings", "{folder}/matrix.npy", "--depth", 3), "balanced-kmeans", (3, 7)),
        (("--embeddings", "{folder}/matrix.safetensors", "--branching", 20), "balanced-kmeans", (2, 20)),
        (("--embeddings", "{folder}/matrix.npy", "--text", "{folder}/text.txt"), "class-bigrams", (2, 18)),
        (("--text", "{folder}/text.txt", "--method", "balanced-kmeans", "--branching", 5), "balanced-kmeans", (4, 5)),
        (("--method", "frequency"), "frequency", (2, 18)),
        (("--method", "frequency", "--text", "{folder}/text.txt"), "frequency", (2, 18)),
        (("--method", "random", "--depth", 4), "random", (4, 5)),
        (("--method", "flat"), "flat", (1, 300)),
    ],
)
def test_every_source_and_control(small, tmp_path, parts, method, shape):
    """Twice into folders of the same name: the same bytes. The folder is all that training needs."""
    given = [str(part).format(folder=small) for part in arguments(*parts)]
    for place in ("first", "second"):
        assert build(*given, "--output", tmp_path / place / "tree") is None
    first, second = (tmp_path / place / "tree" for place in ("first", "second"))
    names = [file.name for file in first.iterdir()]
    assert filecmp.cmpfiles(first, second, names, shallow=False)[0] == names
    tree = VocabularyTree.from_pretrained(first).validate()
    assert (tree.tree_depth, tree.max_branching) == shape
    assert tree.metadata["method"] == method and tree.metadata["tokenizer"] == "tokenizer"
    check_tokenizer(tree, AutoTokenizer.from_pretrained(first))
    assert "local" not in (first / "tokenizer_config.json").read_text()  # where it was loaded from is no part of it


def test_frequency_puts_the_most_frequent_tokens_first(small, tmp_path, capsys):
    """Those that the text has, that is; the others are shared out."""
    given = [part.format(folder=small) for part in arguments("--method", "frequency", "--text", "{folder}/text.txt")]
    assert build(*given, "--output", tmp_path) is None
    tree, tokenizer = VocabularyTree.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    counts = np.bincount(tokenizer((small / "text.txt").read_text())["input_ids"], minlength=300)
    by_path = np.lexsort(tree.paths.numpy().T[::-1])
    in_order = counts[by_path]
    said = capsys.readouterr().out
    below = counts_below(tree, counts)[300:]
    warning = f"tree: {(below == 0).sum()} of {len(below)} clusters hold no token of the text"
    assert (warning in said) == (below == 0).any()
    assert (np.diff(in_order[in_order > 0]) <= 0).all()


def test_tokens_added_later_extend_a_tree(small, tmp_path):
    given = [str(part).format(folder=small) for part in arguments("--embeddings", "{folder}/matrix.npy")]
    assert build(*given, "--output", tmp_path / "old") is None
    tokenizer = AutoTokenizer.from_pretrained(small / "tokenizer")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|assistant|>"]})
    tokenizer.save_pretrained(tmp_path / "larger")
    larger = ("--tokenizer", tmp_path / "larger", "--output", tmp_path / "new")
    assert build(*larger, "--extend", tmp_path / "old") is None
    old, new = (VocabularyTree.from_pretrained(tmp_path / name) for name in ("old", "new"))
    assert new.vocab_size == 302 and torch.equal(new.paths[:300], old.paths)
    check_tokenizer(new, AutoTokenizer.from_pretrained(tmp_path / "new"))
    assert "none is new" in build(*larger, "--extend", tmp_path / "new")
    assert new.metadata["extended_from"] == old.sha256 and new.metadata["tokenizer"] == "larger"
    stop = build("--tokenizer", SAMPLE, "--extend", tmp_path / "old", "--output", tmp_path / "wrong")
    assert "with tokens added" in stop and "id 257 is" in stop
    few = tmp_path / "few.npy"
    np.save(few, np.ones((300, 4)))
    assert "300 rows" in build(*larger, "--embeddings", few)


def test_holes_in_the_ids_become_leaves(tmp_path):
    vocabulary = {"[UNK]": 0, "a": 1, "b": 2, "c": 7}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(vocabulary, "[UNK]")), unk_token="[UNK]")
    tokenizer.save_pretrained(tmp_path / "holes")
    text = tmp_path / "text.txt"
    text.write_text("a")
    given = ("--tokenizer", tmp_path / "holes", "--method", "frequency", "--text", text, "--output", tmp_path / "tree")
    assert build(*given) is None
    tree = VocabularyTree.from_pretrained(tmp_path / "tree").validate()
    assert tree.vocab_size == 8
    check_tokenizer(tree, AutoTokenizer.from_pretrained(tmp_path / "tree"))


@pytest.mark.parametrize(
    ("content", "parts", "message"),
    [
        (b"", ("--train-tokenizer", 300), "holds no text"),
        (b"caf\xe9 au lait", ("--train-tokenizer", 300), "not UTF-8"),
        (b"a b c", ("--train-tokenizer", 300, "--branching", 4, "--depth", 2), "do not fit"),
        (b"a b c", ("--tokenizer", SAMPLE, "--branching", 1), "fan-out 1"),
        (b"a b c", ("--tokenizer", SAMPLE, "--embeddings", "nowhere.npy"), "nowhere.npy"),
        (b"a b c", ("--tokenizer", SAMPLE, "--embeddings", "{folder}/nan.npy"), "tokens 7"),
    ],
)
def test_bad_input_is_one_line_and_touches_nothing(content, parts, message, tmp_path):
    text, output = tmp_path / "bad.txt", tmp_path / "output"
    text.write_bytes(content)
    matrix = np.ones((8192, 2))
    matrix[7] = np.nan
    np.save(tmp_path / "nan.npy", matrix)
    output.mkdir()
    (output / "vocabulary_tree.json").write_text("kept")
    stop = build("--text", text, "--output", output, *(str(part).format(folder=tmp_path) for part in parts))
    assert message in stop and stop.startswith("treediff build-tree: error: ") and "\n" not in stop
    assert [file.name for file in output.iterdir()] == ["vocabulary_tree.json"]


def test_options_that_contradict_each_other_make_no_folder(tmp_path):
    ran = run_here("build-tree", "--tokenizer", "x", "--method", "flat", "--depth", 2, "--output", tmp_path / "output")
    assert ran.returncode == 2 and "leave out --depth and --branching" in last_line(ran)
    assert not (tmp_path / "output").exists()


def test_a_failed_save_keeps_the_old_tree(small, tmp_path, monkeypatch):
    given = [str(part).format(folder=small) for part in arguments("--method", "frequency", "--output", tmp_path)]
    assert build(*given) is None
    before = VocabularyTree.from_pretrained(tmp_path).sha256

    def no_space(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr("modeling_treediff.vocabulary_tree.save", no_space)
    assert "No space left" in build(*given, "--depth", 3)
    assert VocabularyTree.from_pretrained(tmp_path).sha256 == before
    assert not list(tmp_path.glob(".*"))
