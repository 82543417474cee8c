"""The ready trees: whole, for the tokenizer beside them, as recorded, and better than chance on held-out text."""

import json
import shutil

import pytest
import torch
from helpers.processes import REPOSITORY, run_python
from transformers import AutoTokenizer

from modeling_treediff.text.tree_tokenizer import check_tokenizer
from modeling_treediff.vocabulary_tree import VocabularyTree

ARTIFACTS, RECORDS = REPOSITORY / "tree_artifacts", REPOSITORY / "benchmarks" / "results" / "trees"
SHAPES = {
    "sotu-8k": (8192, 2, 91),
    "gpt2": (50257, 2, 225),
    "gpt2-d3": (50257, 3, 37),
    "bert-base-uncased": (30522, 2, 175),
}
TEXT = "The 3 states' Congress, in 1848: naïve 漢字 \n\n of   peace."


def record(name):
    return json.loads((RECORDS / f"{name}.json").read_text(encoding="utf-8"))


def test_every_folder_is_a_ready_tree():
    assert {folder.name for folder in ARTIFACTS.iterdir() if folder.is_dir()} == set(SHAPES)


@pytest.mark.parametrize("name", SHAPES)
def test_a_ready_tree_is_whole_and_says_where_it_comes_from(name):
    tree = VocabularyTree.from_pretrained(ARTIFACTS / name).validate()
    assert (tree.vocab_size, tree.tree_depth, tree.max_branching) == SHAPES[name]
    tokenizer = AutoTokenizer.from_pretrained(ARTIFACTS / name)
    check_tokenizer(tree, tokenizer)
    assert tokenizer.eos_token_id is not None  # training puts it between documents
    assert {"license", "source", "method", "seed", "tokenizer"} <= tree.metadata.keys()
    readme = (ARTIFACTS / name / "README.md").read_text(encoding="utf-8")
    assert "license" in readme.lower() and "provenance" in readme.lower()
    assert record(name)["report"]["sha256"] == tree.sha256
    assert not any(folder in json.dumps(tree.metadata) for folder in ("/", "\\\\"))  # names, not places


@pytest.mark.parametrize("name", ["sotu-8k", "gpt2"])
def test_byte_level_tokenizers_give_texts_back(name):
    tokenizer = AutoTokenizer.from_pretrained(ARTIFACTS / name)
    assert tokenizer.decode(tokenizer(TEXT)["input_ids"]) == TEXT


def test_the_trees_of_one_vocabulary_have_one_tokenizer():
    for file in ("tokenizer.json", "LICENSE.tokenizer"):
        contents = {(ARTIFACTS / name / file).read_bytes() for name in ("gpt2", "gpt2-d3")}
        assert len(contents) == 1


@pytest.mark.parametrize(
    "name", [*SHAPES, "cl100k", "o200k", *(f"help-{lang}" for lang in ("de", "fr", "ja", "zh-cn"))]
)
def test_the_coarse_level_beats_random_trees_on_held_out_text(name):
    coarse = record(name)["report"]["levels"][1]
    assert coarse["bigram_information"] > 1.5 * coarse["random_bigram_information"]
    assert coarse["bigram_information"] > 1.5 * coarse["matched_bigram_information"]


@pytest.mark.parametrize("name", ["gpt2-text-only", "gpt2-d4"])
def test_so_do_the_other_trees_built_with_a_text(name):
    coarse = record(name)["report"]["levels"][1]
    assert coarse["bigram_information"] > 1.5 * coarse["matched_bigram_information"]


def test_embeddings_alone_gather_the_frequent_tokens():
    """Less information than a random tree, which spreads them; more than one that gathers as many of them at random."""
    coarse = record("gpt2-embeddings-only")["report"]["levels"][1]
    assert coarse["matched_bigram_information"] < coarse["bigram_information"] < coarse["random_bigram_information"]


def test_the_recorded_reports_are_of_clean_commits():
    for file in RECORDS.glob("*.json"):
        assert "dirty" not in record(file.stem)["commit"]


def test_a_tree_comes_from_a_hub_repository(tmp_path):
    """From the cache as the Hub's client leaves it, offline, by revision and subfolder, in a fresh process."""
    repository, commit = tmp_path / "hub" / "models--someone--trees", "b" * 40
    snapshot = repository / "snapshots" / commit / "gpt2"
    shutil.copytree(ARTIFACTS / "gpt2", snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "v1").write_text(commit)
    code = (
        "from modeling_treediff import VocabularyTree\n"
        "tree = VocabularyTree.from_pretrained('someone/trees', revision='v1', subfolder='gpt2')\n"
        "print(tree.sha256)"
    )
    ran = run_python(code=code, HF_HUB_CACHE=str(tmp_path / "hub"))
    assert ran.returncode == 0, ran.stderr
    expected = VocabularyTree.from_pretrained(ARTIFACTS / "gpt2")
    assert ran.stdout.split()[-1] == expected.sha256
    assert torch.equal(expected.ancestors[:, -1], torch.arange(50257))
