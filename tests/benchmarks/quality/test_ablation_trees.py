"""Trees of the ablations: clusters kept, slots with a meaning."""

import numpy as np
import pytest

from benchmarks.quality import ablation_trees
from modeling_treediff import VocabularyTree


@pytest.mark.parametrize("depth", [2, 3])
def test_other_orders_of_siblings_keep_the_clusters(packed, depth):
    sources = ablation_trees.TreeSources(packed, "", "")
    trees = [sources.build("corpus", order, depth, None) for order in ("frequency", "random", "aligned")]
    internal = range(trees[0].vocab_size, trees[0].num_nodes)
    clusters = [{frozenset(np.flatnonzero((tree.ancestors == node).any(dim=1))) for node in internal} for tree in trees]
    assert clusters[0] == clusters[1] == clusters[2]
    assert len({tree.sha256 for tree in trees}) == 3


def test_alignment_gives_like_children_of_different_parents_one_slot():
    """Four clusters of three tokens, each token its cluster's centre plus one of three shared directions, shuffled."""
    generator = np.random.default_rng(0)
    centre_KE, direction_CE = 10 * generator.normal(size=(4, 3)), np.eye(3)
    shuffled = [generator.permutation(3) for _ in range(4)]
    paths = np.array([(cluster, slot) for cluster in range(4) for slot in range(3)])
    embeddings = np.array([centre_KE[cluster] + direction_CE[shuffled[cluster][slot]] for cluster, slot in paths])
    tree = ablation_trees.aligned(VocabularyTree.from_paths(paths, 4), embeddings)
    found = [tree.child_slot[tree.ancestors[3 * cluster : 3 * cluster + 3, 2]].tolist() for cluster in range(4)]
    by_direction = {
        tuple(slots[list(order).index(direction)] for direction in range(3))
        for slots, order in zip(found, shuffled, strict=True)
    }
    assert len(by_direction) == 1
