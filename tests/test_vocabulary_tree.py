import json
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.models import SHAPES
from safetensors import safe_open
from safetensors.torch import save_file

from modeling_treediff import VocabularyTree
from modeling_treediff.building.balanced import random_tree


@pytest.mark.parametrize(("vocab_size", "branching", "depth"), SHAPES)
def test_random_trees_are_trees(vocab_size, branching, depth):
    tree = random_tree(vocab_size, branching, depth, seed=3).validate()
    ancestors, parent = tree.ancestors, tree.parent
    assert (tree.vocab_size, tree.tree_depth, tree.max_branching) == (vocab_size, depth, branching)
    assert ancestors[:, 0].unique().tolist() == [tree.root_id]
    assert ancestors[:, -1].tolist() == list(range(vocab_size))
    for level in range(1, depth + 1):  # climbing by parents gives the ancestors; slots lead back down
        node = ancestors[:, level]
        assert torch.equal(parent[node], ancestors[:, level - 1])
        assert torch.equal(tree.children[parent[node] - vocab_size, tree.child_slot[node]], node)
        assert (tree.depth[node] == level).all()
    fan_out = (tree.children >= 0).sum(dim=1)
    assert fan_out.min() >= 1 and fan_out.max() <= branching
    assert sorted(tree.children[tree.children >= 0].tolist()) == sorted(set(range(tree.num_nodes)) - {tree.root_id})
    assert len({tuple(path) for path in tree.paths.tolist()}) == vocab_size


def test_flat_tree_has_every_token_below_the_root():
    tree = VocabularyTree.flat(7).validate()
    assert tree.children.tolist() == [list(range(7))]
    assert tree.num_nodes == 8 and tree.root_id == 7


def test_random_tree_depends_on_the_seed_alone():
    trees = [random_tree(50, 8, 2, seed=seed).sha256 for seed in (0, 0, 1)]
    assert trees[0] == trees[1] != trees[2]


def test_infeasible_tree_names_a_fan_out_that_fits():
    with pytest.raises(ValueError, match="use fan-out 5"):
        random_tree(17, branching=4, depth=2)
    random_tree(17, branching=5, depth=2)


def test_the_representative_is_the_lowest_token_below(tree):
    tree = VocabularyTree.from_paths(tree.paths, tree.max_branching)
    for node in range(tree.num_nodes):
        assert tree.representative[node] == (tree.ancestors == node).any(dim=1).nonzero().min()


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (np.array([[0, 1], [0, 1]]), "Tokens 0 and 1 share the path"),
        (np.array([[0, 0], [2, 1]]), "Token 1 .*a fan-out of at most 2"),
        (np.array([0, 1]), "shape"),
        (np.array([[0.5, 1]]), "integers"),
    ],
)
def test_impossible_paths_are_refused(paths, message):
    with pytest.raises(ValueError, match=message):
        VocabularyTree.from_paths(paths, max_branching=2)


@pytest.mark.parametrize("table", VocabularyTree.TABLES)
def test_validate_notices_any_changed_table(tree, table):
    values = getattr(tree, table)
    places = [(0,) * values.ndim, tuple(size - 1 for size in values.shape), (values.shape[0] // 2,) * values.ndim]
    noticed = 0
    for place in (tuple(min(i, n - 1) for i, n in zip(p, values.shape, strict=True)) for p in places):
        original = int(values[place])
        # Another representative below the node would be as valid: step out of the tokens.
        step = 100 if table == "representative" else 1
        for value in (original + step, original - step):
            values[place] = value
            with pytest.raises(ValueError):
                tree.validate()
            noticed += 1
        values[place] = original
    assert noticed == 6
    tree.validate()
    with pytest.raises(ValueError):
        replace(tree, **{table: values[:-1]}).validate()


def test_saved_tree_comes_back_with_its_provenance(tree, tmp_path):
    tree.metadata.update(method="random", seed=1, license="CC0", tokenizer="a test")
    tree.save_pretrained(tmp_path)
    again = VocabularyTree.from_pretrained(tmp_path)
    for table in VocabularyTree.TABLES:
        assert torch.equal(getattr(again, table), getattr(tree, table))
    assert again.metadata == tree.metadata and again.sha256 == tree.sha256
    facts = json.loads((tmp_path / "vocabulary_tree.json").read_text())
    recorded = {"tokenizer": "a test", "vocab_size": 100, "method": "random", "seed": 1, "license": "CC0"}
    assert recorded.items() <= facts.items() and facts["sha256"] == tree.sha256


def test_same_tree_gives_the_same_bytes(tree, tmp_path):
    for name in ("a", "b"):
        random_tree(100, 5, 3, seed=1).save_pretrained(tmp_path / name)
    for file in ("vocabulary_tree.safetensors", "vocabulary_tree.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_damaged_and_changed_files_are_refused(tree, tmp_path):
    tree.save_pretrained(tmp_path)
    file = tmp_path / "vocabulary_tree.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="damaged"):
        VocabularyTree.from_pretrained(tmp_path)
    paths = tree.paths.to(torch.int32).numpy().tobytes()
    start = content.index(paths)
    swapped = paths[12:24] + paths[:12] + paths[24:]  # two tokens change places
    file.write_bytes(content[:start] + swapped + content[start + len(paths) :])
    with pytest.raises(ValueError, match="changed after it was saved"):
        VocabularyTree.from_pretrained(tmp_path)
    file.write_bytes(content)
    readable = tmp_path / "vocabulary_tree.json"
    readable.write_text(readable.read_text().replace(tree.sha256, "0" * 64))
    with pytest.raises(ValueError, match="changed after it was saved"):
        VocabularyTree.from_pretrained(tmp_path)
    for content in ("", "{}", "[]"):
        readable.write_text(content)
        with pytest.raises(ValueError, match="vocabulary_tree.json beside it is damaged"):
            VocabularyTree.from_pretrained(tmp_path)
    with pytest.raises(OSError):
        VocabularyTree.from_pretrained(tmp_path / "nowhere")


def rewritten(file, tables=None, **facts):
    """The same file with other tables, or other facts in its header."""
    with safe_open(file, framework="pt") as archive:
        before = {name: archive.get_tensor(name) for name in archive.keys()}  # noqa: SIM118 -- no mapping
        header = json.loads(archive.metadata()["vocabulary_tree"])
    save_file(before | (tables or {}), file, metadata={"vocabulary_tree": json.dumps(header | facts)})


@pytest.mark.parametrize("fan_out", [10**7, 10**30, 1e30, 101, 0, -1, "5", None, [5]])
def test_a_fan_out_that_no_tree_has_is_refused_before_anything_is_allocated(tree, tmp_path, fan_out):
    tree.save_pretrained(tmp_path)
    rewritten(tmp_path / "vocabulary_tree.safetensors", max_branching=fan_out)
    tracemalloc.start()
    with pytest.raises(ValueError, match="is damaged, or was changed"):
        VocabularyTree.from_pretrained(tmp_path)
    assert tracemalloc.get_traced_memory()[1] < 10**7
    tracemalloc.stop()


@pytest.mark.parametrize(
    "tables",
    [
        {"paths": torch.zeros(8, 10**5, dtype=torch.int32)},  # deeper than any tree of 8 tokens
        {"paths": torch.zeros(100, 3).to(torch.float8_e4m3fn)},
        {"paths": torch.zeros(100, 3)},
        {"paths": torch.zeros(100, dtype=torch.int32)},
        {"representative": torch.zeros(1, dtype=torch.int32)},
        {"representative": torch.full((131,), 2**31 - 1, dtype=torch.int32)},
    ],
    ids=lambda tables: " ".join(f"{name} {tuple(one.shape)} {one.dtype}" for name, one in tables.items()),
)
def test_tables_of_another_shape_or_type_are_refused(tree, tmp_path, tables):
    tree.save_pretrained(tmp_path)
    rewritten(tmp_path / "vocabulary_tree.safetensors", tables)
    with pytest.raises(ValueError, match="is damaged, or was changed"):
        VocabularyTree.from_pretrained(tmp_path)


def test_mostly_empty_places_are_refused_before_they_are_allocated():
    tracemalloc.start()
    with pytest.raises(ValueError, match="places for children, most of them empty, are over"):
        VocabularyTree.from_paths(np.stack([np.arange(20_000), np.zeros(20_000, np.int64)], axis=1), 20_000)
    assert tracemalloc.get_traced_memory()[1] < 10**8
    tracemalloc.stop()


@pytest.mark.parametrize("facts", [{"vocab_size": 99}, {"tree_depth": 2}, {"num_tree_nodes": 5}, {"format_version": 0}])
def test_facts_that_are_not_the_trees_are_refused(tree, tmp_path, facts):
    tree.save_pretrained(tmp_path)
    rewritten(tmp_path / "vocabulary_tree.safetensors", **facts)
    with pytest.raises(ValueError, match="is damaged, or was changed"):
        VocabularyTree.from_pretrained(tmp_path)


@pytest.mark.parametrize(("paths", "fan_out"), [([[0], [1]], 3), ([[0, 0, 0], [0, 0, 1]], 2)])
def test_more_children_or_levels_than_tokens_are_refused(paths, fan_out):
    with pytest.raises(ValueError, match="is more than 2 tokens can use"):
        VocabularyTree.from_paths(paths, fan_out)


@pytest.mark.parametrize("tree", [VocabularyTree.flat(5), random_tree(3000, 55, 2), random_tree(20, 3, 3)], ids=str)
def test_a_tree_is_printed_as_its_sizes_and_provenance(tree):
    shown = f"{tree.vocab_size} tokens, depth {tree.tree_depth}, fan-out {tree.max_branching}, {tree.num_nodes} nodes"
    assert repr(tree) == str(tree) == f"VocabularyTree({shown}, metadata={tree.metadata})"
    assert "tensor" not in repr(tree) and "meta" in repr(tree.to("meta"))
