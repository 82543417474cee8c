"""The report on a vocabulary tree in figures: its shape, its clusters, and their information about text.

Entropies and mutual information are in nats. Shape legend: V tokens, D depth of every leaf, K largest fan-out, M nodes
of one depth, E dimensions of an embedding.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import sparse
from transformers import PreTrainedTokenizerBase

from modeling_treediff.text import KINDS, token_kinds
from modeling_treediff.text.tree_tokenizer import check_tokenizer
from modeling_treediff.vocabulary_tree import VocabularyTree

from .embedding_matrix import checked_embeddings
from .tree_measures import class_bigram_information, entropy, mean_cosine, unit_rows

RANDOM_TREES = 3  # comparisons are averages over this number of random trees


@dataclass(frozen=True)
class Spread:
    """Smallest value, mean and largest value."""

    min: int
    mean: float
    max: int


@dataclass(frozen=True)
class LevelReport:
    """The nodes of one depth; a figure that needs a text, embeddings or children is None without them.

    Attributes:
        depth: 0 is the root, D the tokens.
        nodes: M.
        leaves: tokens per node.
        balance: entropy of the nodes' shares of all tokens over log(M), 1 if all are equally large.
        fan_out: children per node.
        single_child_nodes: nodes that offer no choice.
        filled_slots: mean fan-out as a share of K.
        entropy: H(a_k | a_k-1) of a token drawn from the text; summed over all depths, the unigram entropy.
        bigram_information: I(a_k(x_i); a_k(x_i+1)), the average mutual information of the classes of two neighbouring
            tokens (Brown et al., "Class-based n-gram models of natural language", 1992).
        random_bigram_information: the same with the tokens in random places.
        bigram_factor: the former over the latter.
        matched_bigram_information: the same with tokens in the places of others about as frequent. Classes that hold
            the frequent tokens together tell little about each other, whatever else they hold; this tree shares that.
        matched_bigram_factor: the tree's own over this.
        similarity: mean cosine of the embeddings of two different tokens below the same node.
        random_similarity: the same with the tokens in random places.

    """

    depth: int
    nodes: int
    leaves: Spread
    balance: float
    fan_out: Spread | None = None
    single_child_nodes: int | None = None
    filled_slots: float | None = None
    entropy: float | None = None
    bigram_information: float | None = None
    random_bigram_information: float | None = None
    bigram_factor: float | None = None
    matched_bigram_information: float | None = None
    matched_bigram_factor: float | None = None
    similarity: float | None = None
    random_similarity: float | None = None


@dataclass(frozen=True)
class KindReport:
    """The clusters of depth 1 that hold the tokens of one kind (see `token_kinds`).

    Attributes:
        kind: its name in KINDS.
        tokens: how many there are.
        clusters: clusters that hold one or more.
        effective_clusters: exp of the entropy of their spread: as many clusters, all sharing alike, spread as widely.
        purity: the share of them in clusters of which they are more than half.

    """

    kind: str
    tokens: int
    clusters: int
    effective_clusters: float
    purity: float


@dataclass(frozen=True)
class TreeReport:
    """All figures; `levels[k]` is depth k. What needs a tokenizer (kinds) or a text is None without it."""

    vocab_size: int
    tree_depth: int
    max_branching: int
    internal_nodes: int
    sha256: str
    metadata: dict[str, Any]
    random_trees: int
    text_tokens: int | None
    coverage: float | None  # share of the vocabulary that occurs in the text
    unigram_entropy: float | None
    levels: list[LevelReport]
    kinds: list[KindReport] | None

    def to_dict(self) -> dict[str, Any]:
        """Return everything as lists, dicts, numbers and strings, ready for JSON."""
        return asdict(self)


def report_tree(
    tree: VocabularyTree,
    tokenizer: PreTrainedTokenizerBase | None = None,
    follows: sparse.csr_array | None = None,
    embeddings: np.ndarray | None = None,
    seed: int = 0,
    token_counts: np.ndarray | None = None,
) -> TreeReport:
    """Measure a tree; parts of the report whose input is missing are left out.

    Args:
        tree: any tree.
        tokenizer: says what kinds of tokens there are.
        follows: (V, V) counts; row a, column b: how often token b directly follows a in a text, best a held-out one.
        embeddings: (V, E); zero rows are left out.
        seed: where the tokens of the random trees go. These have the shape of `tree`: its tokens change places.
        token_counts: (V,) counts of the same text; by default, how often each token precedes another.

    Raises:
        ValueError: a table does not have V rows, embeddings that are not finite, or a tokenizer of other tokens.

    """
    vocab_size = tree.vocab_size
    _check_rows(vocab_size, follows=follows, embeddings=embeddings, token_counts=token_counts)
    if embeddings is not None:
        checked_embeddings(embeddings)
    if tokenizer is not None:
        check_tokenizer(tree, tokenizer)
    if token_counts is None and follows is not None:
        token_counts = follows.sum(axis=1)
    random = np.random.default_rng(seed)
    shuffles = [np.argsort(random.random(vocab_size), kind="stable") for _ in range(RANDOM_TREES)]
    matched = [] if token_counts is None else [_matched_shuffle(token_counts, random) for _ in range(RANDOM_TREES)]
    pairs = None if follows is None else sparse.coo_array(follows)
    unit_VE = None if embeddings is None else unit_rows(embeddings)
    levels = []
    for depth in range(tree.tree_depth + 1):
        node_V = _node_of_token(tree, depth)
        figures = _shape(tree, depth, node_V)
        if token_counts is not None:
            above = entropy(np.bincount(_node_of_token(tree, depth - 1), token_counts)) if depth else 0.0
            figures["entropy"] = entropy(np.bincount(node_V, token_counts)) - above
        if pairs is not None:
            figures |= _bigram_figures(pairs, node_V, shuffles, matched)
        if unit_VE is not None and depth < tree.tree_depth:
            figures["similarity"] = mean_cosine(unit_VE, node_V)
            figures["random_similarity"] = _mean([mean_cosine(unit_VE, node_V[order]) for order in shuffles])
        levels.append(LevelReport(**figures))
    return TreeReport(
        vocab_size=vocab_size,
        tree_depth=tree.tree_depth,
        max_branching=tree.max_branching,
        internal_nodes=tree.num_nodes - vocab_size,
        sha256=tree.sha256,
        metadata=dict(tree.metadata),
        random_trees=RANDOM_TREES,
        text_tokens=None if token_counts is None else int(token_counts.sum()),
        coverage=None if token_counts is None else float((token_counts > 0).mean()),
        unigram_entropy=None if token_counts is None else entropy(token_counts),
        levels=levels,
        kinds=None if tokenizer is None else report_kinds(token_kinds(tokenizer, vocab_size), _node_of_token(tree, 1)),
    )


def report_kinds(kind_V: np.ndarray, cluster_V: np.ndarray) -> list[KindReport]:
    """Report for each kind of token the clusters that hold it.

    Args:
        kind_V: (V,) index in KINDS of every token.
        cluster_V: (V,) cluster of every token, integers >= 0.

    """
    cells = np.bincount(kind_V * (cluster_V.max() + 1) + cluster_V, minlength=len(KINDS) * (cluster_V.max() + 1))
    held_KM = cells.reshape(len(KINDS), -1)
    majority_KM = held_KM > held_KM.sum(axis=0) / 2
    return [
        KindReport(
            kind=KINDS[kind],
            tokens=int(held_M.sum()),
            clusters=int((held_M > 0).sum()),
            effective_clusters=float(np.exp(entropy(held_M))),
            purity=float(held_M[majority_KM[kind]].sum() / held_M.sum()),
        )
        for kind, held_M in enumerate(held_KM)
        if held_M.any()
    ]


def _node_of_token(tree: VocabularyTree, depth: int) -> np.ndarray:
    """Return (V,) the node of this depth above each token, numbered from 0 in the order of node ids."""
    node_V = tree.ancestors[:, depth].cpu().numpy()
    return node_V - node_V.min()


def _shape(tree: VocabularyTree, depth: int, node_V: np.ndarray) -> dict[str, Any]:
    leaves_M = np.bincount(node_V)
    figures = {
        "depth": depth,
        "nodes": len(leaves_M),
        "leaves": _spread(leaves_M),
        "balance": entropy(leaves_M) / float(np.log(len(leaves_M))) if len(leaves_M) > 1 else 1.0,
    }
    if depth == tree.tree_depth:
        return figures
    first = int(tree.ancestors[:, depth].min()) - tree.vocab_size
    fan_out_M = (tree.children[first : first + len(leaves_M)] >= 0).sum(dim=1).cpu().numpy()
    return figures | {
        "fan_out": _spread(fan_out_M),
        "single_child_nodes": int((fan_out_M == 1).sum()),
        "filled_slots": float(fan_out_M.mean() / tree.max_branching),
    }


def _matched_shuffle(token_counts: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Permute tokens (V,) within octaves of their frequency rank: 1, 2 to 3, 4 to 7, and so on."""
    ranked = np.argsort(-token_counts, kind="stable")
    octave = np.frexp(np.arange(1, len(ranked) + 1))[1]
    shuffled = np.empty_like(ranked)
    shuffled[ranked] = ranked[np.lexsort((random.random(len(ranked)), octave))]
    return shuffled


def _bigram_figures(
    pairs: sparse.coo_array, node_V: np.ndarray, shuffles: list[np.ndarray], matched: list[np.ndarray]
) -> dict[str, Any]:
    information = class_bigram_information(pairs, node_V)
    by_chance, matched_by_chance = (
        _mean([class_bigram_information(pairs, node_V[order]) for order in orders]) for orders in (shuffles, matched)
    )
    return {
        "bigram_information": information,
        "random_bigram_information": by_chance,
        "bigram_factor": information / by_chance if by_chance else None,
        "matched_bigram_information": matched_by_chance,
        "matched_bigram_factor": information / matched_by_chance if matched_by_chance else None,
    }


def _spread(number_M: np.ndarray) -> Spread:
    return Spread(int(number_M.min()), float(number_M.mean()), int(number_M.max()))


def _mean(figures: list[Any]) -> float | None:
    return None if None in figures else float(np.mean(figures))


def _check_rows(vocab_size: int, **tables: Any) -> None:
    for name, table in tables.items():
        if table is not None and table.shape[0] != vocab_size:
            raise ValueError(f"{name} has {table.shape[0]} rows, the tree has {vocab_size} tokens.")
