import itertools
import json

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from modeling_treediff import VocabularyTree
from modeling_treediff.building.ancestors import tree_from_ancestors
from modeling_treediff.building.extension import extend_tree
from modeling_treediff.building.tree_builder import smallest_depth
from modeling_treediff.text.tree_tokenizer import check_tokenizer, tokenizer_size

SHAPES = [(1, 1, 1), (1, 3, 4), (2, 2, 1), (5, 2, 3), (16, 2, 4), (17, 5, 2), (100, 5, 3), (97, 10, 2), (30, 30, 5)]


@pytest.mark.parametrize(("vocab_size", "branching", "depth"), SHAPES)
def test_random_trees_are_trees(vocab_size, branching, depth):
    tree = VocabularyTree.random(vocab_size, branching, depth, seed=3).validate()
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
    trees = [VocabularyTree.random(50, 8, 2, seed=seed).sha256 for seed in (0, 0, 1)]
    assert trees[0] == trees[1] != trees[2]


def test_infeasible_tree_names_a_fan_out_that_fits():
    with pytest.raises(ValueError, match="use fan-out 5"):
        VocabularyTree.random(17, branching=4, depth=2)
    VocabularyTree.random(17, branching=5, depth=2)


def test_from_ancestors_renumbers_any_internal_ids(tree):
    scrambled = tree.ancestors.clone()
    internal = np.random.default_rng(0).permutation(np.arange(tree.vocab_size, tree.num_nodes)) + 1000
    inner = scrambled[:, :-1] - tree.vocab_size
    scrambled[:, :-1] = torch.from_numpy(internal)[inner]
    again = tree_from_ancestors(scrambled, max_branching=5).validate()
    # The same tokens are together at every depth.
    for level in range(tree.tree_depth):
        same = tree.ancestors[:, level, None] == tree.ancestors[None, :, level]
        assert torch.equal(same, again.ancestors[:, level, None] == again.ancestors[None, :, level])


def test_representative_is_the_most_frequent_token_below():
    paths = list(itertools.product(range(3), range(3)))
    counts = np.array([5, 1, 9, 2, 2, 1, 0, 0, 0])
    tree = VocabularyTree.from_paths(np.array(paths), 3, counts)
    for node in range(tree.vocab_size, tree.num_nodes):
        below = [token for token in range(9) if node in tree.ancestors[token].tolist()]
        assert tree.representative[node] == max(below, key=lambda token: (counts[token], -token))


def broken(**changes):
    """Ancestors of a proper tree of 4 tokens (root 4, inner nodes 5 and 6) with some entries overwritten."""
    table = torch.tensor([[4, 5, 0], [4, 5, 1], [4, 6, 2], [4, 6, 3]])
    for place, value in changes.items():
        row, column = map(int, place.split("_")[1:])
        table[row, column] = value
    return table


@pytest.mark.parametrize(
    ("ancestors", "message"),
    [
        (broken(at_0_1=1), "Leaf 1 stands at depth 1"),
        (broken(at_2_2=3), "Token 2 does not end its own row"),
        (torch.tensor([[2, 3, 5, 0], [2, 4, 5, 1]]), "Node 5 has 2 parents"),
        (broken(at_0_1=4, at_1_1=4), "cycle"),
        (torch.tensor([[2, 3, 0], [3, 2, 1]]), "several roots"),
        (broken(at_2_1=5, at_3_1=5), "has 4 children, at most 3"),
    ],
    ids=["leaf too high", "wrong leaf", "two parents", "cycle", "two roots", "fan-out"],
)
def test_impossible_trees_are_refused(ancestors, message):
    with pytest.raises(ValueError, match=message):
        tree_from_ancestors(ancestors, max_branching=3)


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (np.array([[0, 1], [0, 1]]), "Tokens 0 and 1 share the path"),
        (np.array([[0, 0], [2, 1]]), "Token 1 .*fan-out at most 2"),
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
        VocabularyTree.random(100, 5, 3, seed=1).save_pretrained(tmp_path / name)
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


def test_tokenizer_of_another_size_is_refused(tree):
    check_tokenizer(tree, range(100))
    with pytest.raises(ValueError, match="100 leaves but the tokenizer has 101"):
        check_tokenizer(tree, range(101))


def test_a_tokenizer_with_holes_in_its_ids_needs_a_leaf_for_each():
    letters = {letter: index for index, letter in enumerate("abcd")} | {"far": 8}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(letters)))
    assert (len(tokenizer), tokenizer_size(tokenizer)) == (5, 9)
    check_tokenizer(VocabularyTree.random(9, 3, 2), tokenizer)
    for size in (5, 8, 10):
        with pytest.raises(ValueError, match=f"{size} leaves but the tokenizer has 9"):
            check_tokenizer(VocabularyTree.random(size, 4, 2), tokenizer)
    tokenizer.add_tokens(["added"])
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    assert tokenizer_size(tokenizer) == 1 + max(tokenizer.convert_tokens_to_ids(["added", "<pad>", "far"]))
    assert tokenizer_size(ByT5Tokenizer()) == len(ByT5Tokenizer())
    assert tokenizer_size(range(7)) == 7


@pytest.mark.parametrize(("vocab_size", "branching", "depth"), SHAPES)
@pytest.mark.parametrize("added", [1, 3, 40])
def test_an_extended_tree_keeps_all_ids_paths_and_representatives(vocab_size, branching, depth, added):
    tree = VocabularyTree.random(vocab_size, branching, depth, seed=3, metadata={"license": "x"})
    extended = extend_tree(tree, added).validate()
    assert (extended.vocab_size, extended.tree_depth) == (vocab_size + added, depth)
    assert torch.equal(extended.paths[:vocab_size], tree.paths) and extended.metadata == tree.metadata
    if branching**depth >= vocab_size + added:
        assert extended.max_branching == branching  # the head keeps its width as long as there is room
    moved = extended.ancestors[tree.representative, tree.depth]  # where the docstring says each node went
    assert len(set(moved.tolist())) == tree.num_nodes
    assert torch.equal(moved[:vocab_size], torch.arange(vocab_size))
    assert torch.equal(extended.representative[moved], tree.representative)
    for node, new in enumerate(moved.tolist()):
        if tree.depth[node] > 0:
            assert extended.parent[new] == moved[tree.parent[node]]
            assert extended.child_slot[new] == tree.child_slot[node]


def test_added_tokens_stand_together_where_an_upper_node_has_room():
    tree = VocabularyTree.from_paths(np.array([[0, 0], [0, 1], [1, 0]]), 4)
    assert extend_tree(tree, 5).paths[3:].tolist() == [[2, 0], [2, 1], [2, 2], [2, 3], [3, 0]]
    full = VocabularyTree.from_paths(np.array([[0, 0], [0, 1], [1, 0]]), 2)
    assert full.extend(1).paths[3:].tolist() == [[1, 1]]
    with pytest.raises(ValueError, match="1 token or more"):
        extend_tree(tree, 0)


def test_an_order_fills_the_leaves_from_the_first_slots_on():
    tree = VocabularyTree.from_order(np.array([3, 1, 4, 0, 2]), 3, 2).validate()
    by_path = sorted(range(5), key=lambda token: tree.paths[token].tolist())
    assert by_path == [3, 1, 4, 0, 2]
    assert tree.representative[tree.root_id] == 3
    for wrong in ([0, 0, 1], [1, 2, 3], [[0, 1]]):
        with pytest.raises(ValueError, match="every token id"):
            VocabularyTree.from_order(np.array(wrong), 3, 2)
    with pytest.raises(ValueError, match="do not fit"):
        VocabularyTree.from_order(np.arange(10), 3, 2)


def test_the_smallest_depth_is_the_exact_logarithm():
    for vocab_size, branching in itertools.product([1, 2, 9, 10, 81, 82, 50257], [2, 3, 9, 225]):
        depth = smallest_depth(vocab_size, branching)
        assert branching**depth >= vocab_size and (depth == 1 or branching ** (depth - 1) < vocab_size)
    assert smallest_depth(1, 1) == 1
    with pytest.raises(ValueError, match="fan-out 1"):
        smallest_depth(2, 1)
