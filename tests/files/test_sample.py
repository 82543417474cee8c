"""The embedded sample is found; ready trees that are not here are said to be elsewhere."""

import json

import pytest
from helpers.processes import REPOSITORY, SAMPLE, run_python

from modeling_treediff import VocabularyTree
from modeling_treediff.files.sample import FLAT, SAMPLE_NAME, TRAINING_TEXT, VALIDATION_TEXT, find_tree, sample_folder
from modeling_treediff.text import read_documents


def test_tree_and_texts_of_the_sample_are_there():
    assert sample_folder() == SAMPLE
    assert VocabularyTree.from_pretrained(find_tree(SAMPLE_NAME)).vocab_size == 8192
    assert all(read_documents(sample_folder() / name) for name in (TRAINING_TEXT, VALIDATION_TEXT))


def test_a_folder_of_that_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / SAMPLE_NAME).mkdir()
    assert find_tree(SAMPLE_NAME) == SAMPLE_NAME


def test_ready_trees_lie_in_a_clone(tmp_path, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    assert find_tree("tree_artifacts/gpt2") == "tree_artifacts/gpt2"
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="no tree_artifacts/gpt2 here: .* lie in tree_artifacts/ of a clone"):
        find_tree("tree_artifacts/gpt2")
    assert find_tree(FLAT) == FLAT


def test_an_installed_package_trains_on_the_sample_without_a_clone(site, tmp_path):
    """By the command that the wheel installs, in a folder of which the package knows nothing."""
    sizes = ["--hidden-size", "16", "--heads", "2", "--layers", "1", "--sequence-length", "16", "--batch-size", "2"]
    steps = ["--max-steps", "1", "--warmup-steps", "0", "--save-every", "0", "--output", "model"]
    where = {"cwd": str(tmp_path), "PYTHONPATH": str(site), "ACCELERATE_USE_CPU": "true"}
    ran = run_python(site / "bin" / "treediff", "train", *sizes, *steps, **where)
    assert ran.returncode == 0, ran.stderr
    record = json.loads((tmp_path / "model" / "result.json").read_text())
    assert record["command"].startswith("treediff train ") and record["text"]["name"] == TRAINING_TEXT
    assert record["validation_text"]["name"] == VALIDATION_TEXT
    assert record["tree_sha256"] == VocabularyTree.from_pretrained(SAMPLE).sha256
    ran = run_python(site / "bin" / "treediff", "plan-memory", "--tree", "tree_artifacts/gpt2", **where)
    assert ran.returncode == 1 and "lie in tree_artifacts/ of a clone" in ran.stderr
