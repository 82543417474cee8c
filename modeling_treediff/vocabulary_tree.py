"""The vocabulary tree: which internal nodes a token passes through between the root (the mask) and itself.

Shape legend: V tokens (= leaves), D depth of every leaf, K largest fan-out, I internal nodes, N = V + I nodes.

Node ids. A leaf's id is its token id, 0..V-1. Internal nodes follow level by level, so the root is V, and nodes
of one level are numbered by their parent and then by their slot. A clean text is therefore a valid sequence of nodes.

A tree is stored as its *paths*: the (V, D) child slots that lead from the root to each token. Any V distinct paths
with slots in 0..K-1 are a valid tree (two parents, cycles and leaves at a wrong depth cannot be written down), and
every table below follows from them.
"""

import hashlib
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch

from .tree_files import FORMAT_VERSION, TreeFilesMixin
from .tree_tables import (
    as_int64,
    check_ancestors,
    check_feasible,
    even_paths,
    free_paths,
    most_frequent_below,
    number_nodes,
    paths_from_ancestors,
    tokenizer_size,
)


@dataclass(frozen=True, eq=False)
class VocabularyTree(TreeFilesMixin):
    """A tree over a vocabulary, as integer tables; build one with `flat`, `random`, `from_paths` or `from_ancestors`.

    The constructor takes ready tables without checking them (a model wraps its buffers this way, on any device);
    `validate` checks them. All tables are int64.

    Attributes:
        ancestors: (V, D+1); ancestors[x, k] is the node of depth k above token x: the root at 0, x itself at D.
        children: (I, K); children[n - V, s] is the child of internal node n in slot s, or -1 where there is none.
        child_slot: (N,); the slot a node takes under its parent, 0 for the root.
        depth: (N,); 0 for the root, D for every leaf.
        representative: (N,); the most frequent token below a node (itself for a leaf): how a node is shown as text.
        metadata: provenance, free-form JSON; by convention `tokenizer`, `method`, `seed`, `license`, `source`.

    """

    TABLES: ClassVar[tuple[str, ...]] = ("ancestors", "children", "child_slot", "depth", "representative")

    ancestors: torch.Tensor
    children: torch.Tensor
    child_slot: torch.Tensor
    depth: torch.Tensor
    representative: torch.Tensor
    metadata: dict[str, Any] = field(default_factory=dict)

    @staticmethod
    def table_shapes(vocab_size: int, depth: int, max_branching: int, num_nodes: int) -> dict[str, tuple[int, ...]]:
        """Shape of each table, by name; a model allocates its buffers from this."""
        return {
            "ancestors": (vocab_size, depth + 1),
            "children": (num_nodes - vocab_size, max_branching),
            "child_slot": (num_nodes,),
            "depth": (num_nodes,),
            "representative": (num_nodes,),
        }

    @classmethod
    def from_paths(
        cls,
        paths: np.ndarray | torch.Tensor,
        max_branching: int,
        token_counts: np.ndarray | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> "VocabularyTree":
        """Build the tree whose token x is reached from the root through the child slots paths[x].

        Args:
            paths: (V, D) integers in 0..max_branching-1, rows distinct.
            max_branching: K, the largest fan-out allowed; the width of the prediction head.
            token_counts: (V,) frequencies that choose each node's representative; without them, the lowest token id.
            metadata: provenance to keep with the tree.

        Raises:
            ValueError: the paths are not (V, D) integers, leave 0..K-1, or two tokens share one.

        """
        path_VD = as_int64(paths, "paths")
        if path_VD.ndim != 2 or 0 in path_VD.shape:
            raise ValueError(f"paths must have shape (tokens, depth) with at least one of each, got {path_VD.shape}.")
        if path_VD.min() < 0 or path_VD.max() >= max_branching:
            token = int(np.argwhere((path_VD < 0) | (path_VD >= max_branching))[0, 0])
            raise ValueError(
                f"Token {token} has the path {path_VD[token].tolist()}: slots must lie in 0..{max_branching - 1} "
                f"(fan-out at most {max_branching})."
            )
        ancestor_VD, slot_N = number_nodes(path_VD, max_branching)
        vocab_size, depth = path_VD.shape
        num_nodes = len(slot_N)
        depth_N = np.full(num_nodes, depth)
        children_IK = np.full((num_nodes - vocab_size, max_branching), -1)
        for level in range(depth):
            depth_N[ancestor_VD[:, level]] = level
            parent, child = ancestor_VD[:, level], ancestor_VD[:, level + 1]
            children_IK[parent - vocab_size, slot_N[child]] = child
        representative_N = most_frequent_below(ancestor_VD, num_nodes, token_counts)
        tables = dict(zip(cls.TABLES, (ancestor_VD, children_IK, slot_N, depth_N, representative_N), strict=True))
        tensors = {name: torch.from_numpy(table.astype(np.int64)) for name, table in tables.items()}
        return cls(**tensors, metadata=dict(metadata or {}))

    @classmethod
    def flat(cls, vocab_size: int, metadata: dict[str, Any] | None = None) -> "VocabularyTree":
        """Return the tree of depth 1: every token directly below the root. With it the model is MDLM."""
        if vocab_size < 1:
            raise ValueError(f"A vocabulary needs at least one token, got vocab_size={vocab_size}.")
        return cls.from_paths(
            np.arange(vocab_size)[:, None], vocab_size, metadata={"method": "flat"} | (metadata or {})
        )

    @classmethod
    def random(
        cls, vocab_size: int, branching: int, depth: int, seed: int = 0, metadata: dict[str, Any] | None = None
    ) -> "VocabularyTree":
        """Return a balanced tree with tokens in random places: the control for every tree that means something.

        Raises:
            ValueError: branching**depth leaves are fewer than the vocabulary.

        """
        order = np.argsort(np.random.default_rng(seed).random(vocab_size), kind="stable")
        return cls.from_order(order, branching, depth, {"method": "random", "seed": seed} | (metadata or {}))

    @classmethod
    def from_order(
        cls, order: np.ndarray | torch.Tensor, branching: int, depth: int, metadata: dict[str, Any] | None = None
    ) -> "VocabularyTree":
        """Return a balanced tree whose leaves, from the first slots to the last, are the tokens in `order`, (V,).

        With tokens in order of frequency, siblings are tokens equally frequent and nothing else: a control.

        Raises:
            ValueError: not a permutation of 0..V-1, or branching**depth leaves are fewer than the vocabulary.

        """
        order_V = as_int64(order, "order")
        if order_V.ndim != 1 or not np.array_equal(np.sort(order_V), np.arange(len(order_V))):
            raise ValueError(f"order must hold every token id from 0 to {len(order_V) - 1} once.")
        check_feasible(len(order_V), branching, depth)
        rank_V = np.argsort(order_V)
        return cls.from_paths(even_paths(order_V, branching, depth), branching, -rank_V, metadata)

    @classmethod
    def from_ancestors(
        cls,
        ancestors: np.ndarray | torch.Tensor,
        max_branching: int | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> "VocabularyTree":
        """Build a tree from each token's ancestors.

        Args:
            ancestors: (V, D+1) node ids, from the root to the token itself. Internal nodes may have any ids >= V;
                they are renumbered as this module's docstring says. Siblings take slots in the order of their ids.
            max_branching: K; by default the largest fan-out found.
            metadata: provenance to keep with the tree.

        Raises:
            ValueError: a leaf not at the last depth, several roots, a node at two depths (a cycle), a node with two
                parents, or a fan-out over max_branching.

        """
        ancestor_VD = as_int64(ancestors, "ancestors")
        check_ancestors(ancestor_VD)
        paths = paths_from_ancestors(ancestor_VD)
        fan_out = int(paths.max()) + 1
        if max_branching is not None and fan_out > max_branching:
            token, level = np.argwhere(paths == fan_out - 1)[0]
            raise ValueError(
                f"Node {ancestor_VD[token, level]} at depth {level} has {fan_out} children, at most {max_branching} "
                "are allowed."
            )
        return cls.from_paths(paths, max_branching or fan_out, metadata=metadata)

    def extend(self, num_tokens: int, metadata: dict[str, Any] | None = None) -> "VocabularyTree":
        """Return this tree with further tokens, ids V..V+num_tokens-1: what a user needs who adds special tokens.

        All tokens keep their ids, paths and depth, all nodes their representative. The new ones take free places, those
        nearest to the root first; where there are too few, the fan-out K grows by as little as needed. Internal nodes
        are numbered after the last token, so their ids grow: node n of this tree is
        `extended.ancestors[tree.representative[n], tree.depth[n]]`. `metadata` is added to this tree's provenance.

        Raises:
            ValueError: num_tokens is below 1.

        """
        if num_tokens < 1:
            raise ValueError(f"A tree is extended by 1 token or more, got {num_tokens}.")
        path_VD, branching = as_int64(self.paths, "paths"), self.max_branching
        while branching**self.tree_depth < self.vocab_size + num_tokens:
            branching += 1
        path_VD = np.concatenate([path_VD, free_paths(path_VD, branching, num_tokens)])
        extended = VocabularyTree.from_paths(path_VD, branching, metadata=self.metadata | (metadata or {}))
        node_N = extended.ancestors[self.representative.cpu(), self.depth.cpu()]
        extended.representative[node_N] = self.representative.cpu()
        return extended.to(self.ancestors.device)

    def coarsen(self, node_ids: torch.Tensor, level: int) -> torch.Tensor:
        """Replace nodes, of any shape, that are deeper than level 0..D by their ancestors there: a text at a level."""
        above = self.ancestors[self.representative[node_ids], level]
        return torch.where(self.depth[node_ids] > level, above, node_ids)

    def to(self, device: torch.device | str) -> "VocabularyTree":
        """Return the same tree with its tables on another device."""
        return replace(self, **{name: getattr(self, name).to(device) for name in self.TABLES})

    @property
    def vocab_size(self) -> int:
        """V, the number of tokens."""
        return self.ancestors.shape[0]

    @property
    def tree_depth(self) -> int:
        """D, the depth of every leaf."""
        return self.ancestors.shape[1] - 1

    @property
    def max_branching(self) -> int:
        """K, the width of the children table and of the prediction head."""
        return self.children.shape[1]

    @property
    def num_nodes(self) -> int:
        """N, leaves and internal nodes."""
        return self.depth.shape[0]

    @property
    def root_id(self) -> int:
        """The root's node id: the mask token."""
        return self.vocab_size

    @property
    def paths(self) -> torch.Tensor:
        """(V, D) child slots from the root to each token."""
        return self.child_slot[self.ancestors[:, 1:]]

    @property
    def parent(self) -> torch.Tensor:
        """(N,) each node's parent; -1 for the root."""
        above = self.ancestors[self.representative, (self.depth - 1).clamp(min=0)]
        return torch.where(self.depth > 0, above, -1)

    @property
    def sha256(self) -> str:
        """Fingerprint of the structure and the representatives: equal trees, equal hash, whatever the metadata."""
        digest = hashlib.sha256(f"vocabulary-tree {FORMAT_VERSION} {self.max_branching} {self.tree_depth}".encode())
        for table in (self.paths, self.representative):
            digest.update(table.cpu().numpy().astype("<i8").tobytes())
        return digest.hexdigest()

    # ---- checks -----------------------------------------------------------------------------------------------

    def validate(self) -> "VocabularyTree":
        """Check that the tables describe one tree and agree with each other; return self.

        Raises:
            ValueError: says which property fails and where.

        """
        ancestor_VD = as_int64(self.ancestors, "ancestors")
        check_ancestors(ancestor_VD)
        if ancestor_VD.max() >= self.num_nodes:
            raise ValueError(f"Node {ancestor_VD.max()} is outside the tree's ids 0..{self.num_nodes - 1}.")
        shown = self.representative
        if shown.min() < 0 or shown.max() >= self.vocab_size:
            raise ValueError("A node's representative is not a token.")
        expected = VocabularyTree.from_paths(self.paths, self.max_branching)
        for name in ("ancestors", "children", "child_slot", "depth"):
            if not torch.equal(getattr(self, name).cpu(), getattr(expected, name)):
                raise ValueError(f"The tree's table `{name}` contradicts its paths.")
        if not torch.equal(self.ancestors[shown, self.depth].cpu(), torch.arange(self.num_nodes)):
            raise ValueError("The tree's table `representative` names tokens that are not below their node.")
        return self

    def check_tokenizer(self, tokenizer: Any) -> None:  # noqa: ANN401 -- any object with a length
        """Raise ValueError unless the tokenizer's ids, as `tokenizer_size` counts them, are exactly this tree's."""
        size = tokenizer_size(tokenizer)
        if size != self.vocab_size:
            raise ValueError(
                f"The tree has {self.vocab_size} leaves but the tokenizer has {size} token ids: a leaf's id is its "
                "token id. Build a tree for this tokenizer, or load the tokenizer the tree was built for "
                f"({self.metadata.get('tokenizer', 'not recorded')})."
            )
