"""Building a tree: valid for every shape, the same everywhere, and meaningful on real text."""

import filecmp
import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from modeling_treediff.building import build_tree
from modeling_treediff.building.balanced import frequency_tree, random_tree, smallest_branching, smallest_depth
from modeling_treediff.text import read_documents
from modeling_treediff.vocabulary_tree import VocabularyTree

REPOSITORY = Path(__file__).resolve().parents[2]
SAMPLE = REPOSITORY / "tree_artifacts" / "sotu-8k"
BUILT_FILES = ("tokenizer.json", "tokenizer_config.json", "vocabulary_tree.json", "vocabulary_tree.safetensors")
SHAPES = [
    (1, 1, 1), (2, 2, 1), (2, 2, 2), (4, 2, 4), (5, 5, 5), (12, 12, 2), (5, 5, 1), (7, 2, 3), (8, 2, 3), (9, 3, 2),
    (10, 4, 2), (64, 8, 2), (63, 8, 2), (27, 3, 3), (100, 50, 2), (250, 16, 2), (200, 6, 3), (200, 3, 5), (30, 2, 12),
]  # fmt: skip


def random_points(rows, columns=5, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, columns))


def same_partition(left, right):
    pairs = len(set(zip(np.asarray(left).tolist(), np.asarray(right).tolist(), strict=True)))
    return pairs == len(np.unique(left)) == len(np.unique(right))


class TestTree:
    @pytest.mark.parametrize(("vocab_size", "branching", "depth"), SHAPES)
    @pytest.mark.parametrize("kind", ["random", "duplicates", "zeros"])
    def test_every_shape_and_embedding_gives_a_valid_tree(self, vocab_size, branching, depth, kind):
        points = random_points(vocab_size)
        points = {"random": points, "duplicates": points[np.arange(vocab_size) // 7], "zeros": 0 * points}[kind]
        tree = build_tree(points, branching, depth).validate()
        assert (tree.vocab_size, tree.tree_depth, tree.max_branching) == (vocab_size, depth, branching)
        assert torch.equal(tree.ancestors[:, -1], torch.arange(vocab_size))  # every token once
        present = tree.children >= 0
        assert present.sum(dim=1).max() <= branching
        assert torch.equal(present, present.cummin(dim=1).values)  # slots without gaps

    def test_every_small_feasible_shape(self):
        for branching, depth in itertools.product(range(1, 5), range(1, 4)):
            for vocab_size in range(max(branching, depth), branching**depth + 1):
                build_tree(random_points(vocab_size), branching, depth).validate()

    def test_siblings_are_ordered_by_frequency(self):
        counts = np.random.default_rng(3).integers(0, 6, size=120)
        tree = build_tree(random_points(120), 11, 2, token_counts=counts)
        below = [counts[(tree.ancestors == node).any(dim=1).numpy()].sum() for node in range(tree.num_nodes)]
        lowest = [int((tree.ancestors == node).any(dim=1).nonzero()[0]) for node in range(tree.num_nodes)]
        for row in tree.children.tolist():
            siblings = [node for node in row if node >= 0]
            assert siblings == sorted(siblings, key=lambda node: (-below[node], lowest[node]))

    def test_planted_classes_become_the_first_level(self):
        labels = np.random.default_rng(0).permutation(np.arange(256) % 16)
        points = random_points(16, columns=16)[labels] + 0.01 * random_points(256, columns=16, seed=1)
        assert same_partition(build_tree(points, 16, 2).paths[:, 0], labels)

    def test_loose_branching_keeps_classes_of_natural_size(self):
        labels = np.repeat(np.arange(8), [12, 12, 12, 12, 12, 12, 18, 6])
        assert same_partition(build_tree(random_points(8)[labels], 20, 2).paths[:, 0], labels)

    def test_torch_and_numpy_and_precision_do_not_matter(self):
        points = torch.from_numpy(random_points(100)).to(torch.bfloat16)
        expected = build_tree(points.double().numpy(), 10, 2).sha256
        assert build_tree(points.requires_grad_(), 10, 2).sha256 == expected
        assert build_tree(points.detach().double() * 2.0**900, 10, 2).sha256 == expected

    def test_metadata_and_seed(self):
        first, second = (build_tree(random_points(200), 15, 2, seed=s, metadata={"license": "x"}) for s in (0, 1))
        assert first.metadata == {"license": "x", "method": "balanced-kmeans", "seed": 0}
        assert first.sha256 != second.sha256
        assert first.sha256 == build_tree(random_points(200), 15, 2, seed=0).sha256

    def test_errors_say_what_is_wrong(self):
        points = random_points(10)
        broken = points.copy()
        broken[[3, 8], 1] = np.nan, np.inf
        for arguments, message in [
            ((broken, 4, 2), "tokens 3, 8"),
            ((points[:, 0], 4, 2), r"\(10,\)"),
            ((points, 3, 2), "use fan-out 4"),
            ((points, 4, 0), "at least 1"),
            ((points, 4, 2, "ward"), "balanced-kmeans"),
            ((points, 4, 2, "balanced-kmeans", 0, np.ones(9)), r"shape \(10,\)"),
            ((points, 4, 2, "balanced-kmeans", 0, -np.ones(10)), "not negative"),
        ]:
            with pytest.raises(ValueError, match=message):
                build_tree(*arguments)
        for names in (["a"] * 9, ["a"] * 11, [None] * 10):
            with pytest.raises(ValueError, match="names must be 10 texts"):
                build_tree(points, 4, 2, names=names)
        for counts in ([1.0, -1, 1], [1.0, np.nan, 1]):
            with pytest.raises(ValueError, match="not negative"):
                frequency_tree(counts, 2, 2)

    def test_smallest_branching_is_the_exact_root(self):
        for number, degree in itertools.product([1, 2, 8191, 8192, 8281, 8282, 50257, 10**6, 10**6 + 1], range(1, 7)):
            root = smallest_branching(number, degree)
            assert root**degree >= number and (root == 1 or (root - 1) ** degree < number)


class TestSample:
    @pytest.fixture(scope="class")
    def validation_ids(self):
        tokenizer = AutoTokenizer.from_pretrained(SAMPLE)
        return [np.array(ids) for ids in tokenizer(read_documents(SAMPLE / "validation.txt.xz"))["input_ids"]]

    def test_parts_share_no_document(self):
        parts = [read_documents(SAMPLE / f"{name}.txt.xz") for name in ("train", "validation")]
        assert [len(part) for part in parts] == [222, 11] and not set(parts[0]) & set(parts[1])

    def test_rebuild_is_byte_for_byte(self, tmp_path):
        """On one thread, in a fresh process, elsewhere; the files in the repository were made on two threads."""
        output = tmp_path / "sotu-8k"
        command = [
            sys.executable,
            "-m",
            "modeling_treediff.cli.main",
            "build-tree",
            "--text",
            SAMPLE / "train.txt.xz",
            "--train-tokenizer",
            8192,
            "--seed",
            0,
        ]
        command += ["--license", "PDDL-1.0", "--output", output]
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"), "1")
        environment = os.environ | threads | {"PYTHONPATH": str(REPOSITORY), "PYTHONHASHSEED": "1"}
        subprocess.run([str(part) for part in command], env=environment, check=True)
        assert sorted(file.name for file in output.iterdir()) == sorted(BUILT_FILES)
        assert filecmp.cmpfiles(output, SAMPLE, BUILT_FILES, shallow=False)[0] == list(BUILT_FILES)

    def test_classes_predict_each_other_on_unseen_text(self, validation_ids):
        """Mutual information of neighbouring classes: the built tree's against a random tree of the same shape."""

        def information(tree):
            classes = tree.paths[:, 0].numpy()
            joint = np.zeros((91, 91))
            for ids in validation_ids:
                np.add.at(joint, (classes[ids[:-1]], classes[ids[1:]]), 1)
            joint /= joint.sum()
            independent = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0)
            seen = joint > 0
            return (joint[seen] * np.log(joint[seen] / independent[seen])).sum()

        tree = VocabularyTree.from_pretrained(SAMPLE)
        assert (tree.vocab_size, tree.max_branching, tree.tree_depth) == (8192, 91, 2)
        assert information(tree) > 2 * information(random_tree(8192, 91, 2))


def test_the_smallest_depth_is_the_exact_logarithm():
    for vocab_size, branching in itertools.product([1, 2, 9, 10, 81, 82, 50257], [2, 3, 9, 225]):
        depth = smallest_depth(vocab_size, branching)
        assert branching**depth >= vocab_size and (depth == 1 or branching ** (depth - 1) < vocab_size)
    assert smallest_depth(1, 1) == 1
    with pytest.raises(ValueError, match="fan-out 1"):
        smallest_depth(2, 1)
