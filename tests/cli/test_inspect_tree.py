"""Reports as people ask for them; once in a fresh process."""

import json

import numpy as np
import pytest
from helpers.processes import SAMPLE, last_line, run_here

from modeling_treediff import VocabularyTree
from modeling_treediff.building.balanced import random_tree


def inspect(*arguments):
    return run_here("inspect-tree", *arguments)


def test_a_full_report(tmp_path):
    np.save(tmp_path / "embeddings.npy", np.random.default_rng(0).standard_normal((8192, 4)))
    ran = run_here(
        *["inspect-tree", SAMPLE, "--text", SAMPLE / "validation.txt.xz", "--embeddings", tmp_path / "embeddings.npy"],
        *["--search", " Government", "#0", "--html", tmp_path / "tree.html", "--json", tmp_path / "tree.json"],
    )
    assert ran.returncode == 0, ran.stderr
    report = json.loads((tmp_path / "tree.json").read_text(encoding="utf-8"))
    level = report["levels"][1]
    assert level["bigram_factor"] > 2 and level["similarity"] is not None
    assert f"{level['bigram_factor']:.2f}" in ran.stdout  # the factor is printed
    tree = VocabularyTree.from_pretrained(SAMPLE)
    path = " › ".join(map(str, tree.paths[452].tolist()))
    assert f"▁Government   id 452, path {path}" in ran.stdout
    assert "<|endoftext|>   id 0" in ran.stdout
    assert "\\u2581Government" in (tmp_path / "tree.html").read_text(encoding="utf-8")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["embeddings.npy", "tree.html", "tree.json"]


def test_a_tree_without_a_tokenizer_is_shown_by_id(tmp_path):
    random_tree(30, branching=6, depth=2).save_pretrained(tmp_path)
    ran = inspect(tmp_path, "--clusters", "2", "--words", "3")
    assert ran.returncode == 0, ran.stderr
    assert "tokens are shown by id" in ran.stderr and len(ran.stderr.splitlines()) == 1
    assert "#" in ran.stdout and "Clusters (2 of 6)" in ran.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no/such/folder"], "no/such/folder"),
        ([SAMPLE, "--text", "missing.txt"], "There is no text file missing.txt."),
        ([SAMPLE, "--words", "-1"], "must not be negative"),
        ([SAMPLE, "--embeddings", "missing.npy"], "missing.npy"),
        ([SAMPLE, "--html", "no/such/folder/tree.html"], "no/such/folder"),
    ],
)
def test_bad_input_is_one_line(arguments, message):
    ran = inspect(*arguments)
    assert last_line(ran).startswith("treediff inspect-tree: error: ") and message in last_line(ran)
    assert ran.returncode == (2 if "negative" in message else 1)


def test_a_token_that_is_not_there_does_not_end_the_report():
    ran = inspect(SAMPLE, "--search", "no such token", " war", "--clusters", "1")
    assert ran.returncode == 0, ran.stderr
    assert "No token reads 'no such token'." in ran.stdout and "▁war   id" in ran.stdout


def test_a_damaged_tokenizer_is_named(tmp_path):
    random_tree(30, branching=6, depth=2).save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_text("{")
    ran = inspect(tmp_path)
    assert ran.returncode == 1 and f"No tokenizer could be loaded from {tmp_path}" in ran.stderr.splitlines()[-1]


def test_a_tokenizer_with_more_tokens_than_the_tree_is_refused(tmp_path):
    random_tree(30, branching=6, depth=2).save_pretrained(tmp_path)
    ran = inspect(tmp_path, "--tokenizer", SAMPLE)
    assert ran.returncode == 1
    assert "they do not belong together" in ran.stderr
