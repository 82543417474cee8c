"""Trees that the ablations compare: where the clusters come from, and in which order siblings stand."""

from collections.abc import Callable
from functools import cached_property

import numpy as np
import torch
from safetensors.numpy import load_file
from scipy.optimize import linear_sum_assignment
from transformers import AutoTokenizer

from benchmarks.quality.packed_data import TRAINING, PackedData
from modeling_treediff import VocabularyTree
from modeling_treediff.building import TextCounts, build_tree, count_text, reduce_embeddings, token_embeddings
from modeling_treediff.building.balanced import frequency_tree, random_tree, smallest_branching
from modeling_treediff.building.tree_measures import counts_below
from modeling_treediff.text import token_names
from modeling_treediff.text.tree_tokenizer import tokenizer_size

ALIGNMENT_ROUNDS = 8


class TreeSources:
    """Builds trees from the training text of a packed folder, or from another model's embeddings of GPT-2's tokens."""

    def __init__(self, data: PackedData, embeddings: str, gpt2: str) -> None:
        """Take the file of the embeddings, needed by their trees alone, and the folder of GPT-2's tokenizer."""
        self.data, self.embeddings_file, self.gpt2 = data, embeddings, gpt2
        self.vocab_size = tokenizer_size(data.tokenizer)

    @cached_property
    def counts(self) -> TextCounts:
        """Tokens and neighbours of the training text."""
        row = self.data.rows[TRAINING]
        documents = np.split(row, np.flatnonzero(row == self.data.tokenizer.eos_token_id) + 1)
        return count_text(documents, self.vocab_size)

    @cached_property
    def names(self) -> list[str]:
        """How each token reads."""
        return token_names(self.data.tokenizer, self.vocab_size)

    @cached_property
    def text_embeddings(self) -> np.ndarray:
        """(V, E) from the neighbours in the text."""
        return token_embeddings(self.counts.follows)

    @cached_property
    def model_embeddings(self) -> np.ndarray:
        """(V, E): for each token the mean vector of the GPT-2 tokens that its text has."""
        if not self.embeddings_file:
            raise ValueError("Clusters of another model's embeddings need these: give --embeddings.")
        matrix = load_file(self.embeddings_file)["embedding"].astype(np.float32)
        gpt2 = AutoTokenizer.from_pretrained(self.gpt2)
        texts = [self.data.tokenizer.decode([token]) for token in range(self.vocab_size)]
        rows = [gpt2(text, add_special_tokens=False)["input_ids"] for text in texts]
        vectors = [matrix[row].mean(axis=0) if row else np.zeros(matrix.shape[1], np.float32) for row in rows]
        return reduce_embeddings(np.stack(vectors))

    def build(self, source: str, order: str, depth: int, branching: int | None) -> VocabularyTree:
        """Return the tree; by default of the smallest fan-out possible."""
        branching = branching or smallest_branching(self.vocab_size, depth)
        tree = self._clustered(source, branching, depth)
        if order == "random":
            generator = np.random.default_rng(0)
            return reordered(tree, lambda children: generator.permutation(len(children)))
        return aligned(tree, self._embeddings(source)) if order == "aligned" else tree

    def _embeddings(self, source: str) -> np.ndarray:
        return self.model_embeddings if source == "embeddings" else self.text_embeddings

    def _clustered(self, source: str, branching: int, depth: int) -> VocabularyTree:
        """Return a tree whose siblings are ordered by frequency."""
        token_counts = self.counts.token_counts
        if source == "frequency":
            return frequency_tree(token_counts, branching, depth)
        if source == "random":
            tree = random_tree(self.vocab_size, branching, depth)
            below_N = counts_below(tree, token_counts)
            return reordered(tree, lambda children: np.argsort(np.argsort(-below_N[children], kind="stable")))
        closed = source == "closed"  # tokens that the text lacks are clustered as if it had each of them once
        method = "class-bigrams" if source in ("class-bigrams", "closed") else "balanced-kmeans"
        return build_tree(
            self._embeddings(source),
            branching,
            depth,
            method,
            token_counts=np.maximum(token_counts, 1) if closed else token_counts,
            follows=self.counts.follows,
            names=self.names,
        )


def reordered(tree: VocabularyTree, slots: Callable[[np.ndarray], np.ndarray]) -> VocabularyTree:
    """Return the tree with other slots: `slots` gives those of a node's children (C,), a permutation of 0..C-1."""
    slot_N = tree.child_slot.numpy().copy()
    for row in tree.children.numpy():
        children = row[row >= 0]
        slot_N[children] = slots(children)
    return VocabularyTree.from_paths(slot_N[tree.ancestors.numpy()[:, 1:]], tree.max_branching)


def aligned(tree: VocabularyTree, embeddings: np.ndarray) -> VocabularyTree:
    """Give slots a meaning: children of different parents that differ alike from their parent share a slot.

    What a child's centroid adds to its parent's is assigned to centroids shared by all parents of a level (Hungarian
    algorithm per parent), which are then the means of what was assigned to them; eight rounds.
    """
    ancestor_VD, num_nodes = tree.ancestors.numpy(), tree.num_nodes
    total_NE = np.zeros((num_nodes, embeddings.shape[1]))
    count_N = np.zeros(num_nodes)
    for column in ancestor_VD.T:
        np.add.at(total_NE, column, embeddings)
        np.add.at(count_N, column, 1)
    mean_NE = total_NE / count_N[:, None]
    slot_N = tree.child_slot.numpy().copy()
    depth_N = tree.depth.numpy()
    for depth in range(tree.tree_depth):
        parents = [row[row >= 0] for row in tree.children.numpy()[depth_N[tree.vocab_size :] == depth]]
        offset = {c[0]: mean_NE[c] - mean_NE[ancestor_of(tree, c[0])] for c in parents}
        for _ in range(ALIGNMENT_ROUNDS):
            centre_KE = np.zeros((tree.max_branching, embeddings.shape[1]))
            filled_K = np.zeros(tree.max_branching)
            for children in parents:
                np.add.at(centre_KE, slot_N[children], offset[children[0]])
                np.add.at(filled_K, slot_N[children], 1)
            centre_KE /= np.maximum(filled_K, 1)[:, None]
            for children in parents:
                cost = torch.cdist(torch.tensor(offset[children[0]]), torch.tensor(centre_KE)).square().numpy()
                slot_N[children] = linear_sum_assignment(cost)[1]
    return VocabularyTree.from_paths(slot_N[ancestor_VD[:, 1:]], tree.max_branching)


def ancestor_of(tree: VocabularyTree, node: int) -> int:
    """Return a node's parent."""
    return int(tree.ancestors[tree.representative[node], tree.depth[node] - 1])
