"""Words of given kinds: what a tree model takes as input and a flat one meets by chance."""

import json
import sys

import pytest

from benchmarks.generation import kinds
from benchmarks.record_schema import read_record


def measure(monkeypatch, tree, flat, output):
    options = ["--tree", str(tree), "--flat", str(flat), "--windows", "16", "--gaps", "2", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", ["kinds", *options])
    kinds.main()


def test_a_tree_model_writes_words_of_the_clusters_it_is_given_and_a_flat_one_only_by_chance(
    folders, monkeypatch, tmp_path
):
    measure(monkeypatch, folders / "tree", folders / "flat", output := tmp_path / "kinds.json")
    record = read_record(output, kinds.SCHEMA)
    tree, flat = record["models"]["tree"], record["models"]["flat"]
    assert tree["of_the_kind"] == tree["texts_of_the_kinds"] == 1
    assert flat["of_the_kind"] < 0.5  # untrained: one of some dozen clusters
    restricted = record["models"]["flat_restricted"]
    assert restricted["of_the_kind"] == restricted["texts_of_the_kinds"] == 1 > flat["of_the_kind"]
    assert "| tree, given the clusters | " in kinds.kinds_table(json.loads(output.read_text("utf-8")))


def test_models_in_each_others_place_are_refused(folders, monkeypatch, tmp_path):
    with pytest.raises(SystemExit, match="--flat must be a flat model"):
        measure(monkeypatch, folders / "flat", folders / "tree", tmp_path / "kinds.json")
    assert not list(tmp_path.iterdir())
