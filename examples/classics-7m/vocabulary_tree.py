"""The vocabulary tree: which internal nodes a token passes through between the root (the mask) and itself.

Shape legend: V tokens (= leaves), D depth of every leaf, K largest fan-out, I internal nodes, N = V + I nodes.

Node ids. A leaf's id is its token id, 0..V-1. Internal nodes follow level by level, so the root is V, and nodes
of one level are numbered by their parent and then by their slot. A clean text is therefore a valid sequence of nodes.

A tree is stored as its *paths*: the (V, D) child slots that lead from the root to each token. Any V distinct paths
with slots in 0..K-1 are a valid tree, and every table below follows from them.
"""

import hashlib
import json
import os
from contextlib import suppress
from dataclasses import dataclass, field, replace
from operator import index
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from transformers.utils import cached_file

TREE_WEIGHTS_NAME = "vocabulary_tree.safetensors"  # the tables and, in its header, the facts
TREE_CONFIG_NAME = "vocabulary_tree.json"  # the same facts, for people and for web pages
FORMAT_VERSION = 1  # of these two files
MOST_PLACES = 2**27  # internal nodes times the largest fan-out: 1 GiB of numbers
# What says where on the Hub a file is found; passed on from `from_pretrained`.
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
Table = np.ndarray | torch.Tensor
Folder = str | os.PathLike[str]
HubOption = str | bool | os.PathLike[str] | None


@dataclass(frozen=True, eq=False)
class VocabularyTree:
    """A tree over a vocabulary, as integer tables; build one with `flat` or `from_paths`.

    The constructor takes ready tables without checking them (a model wraps its buffers this way, on any device);
    `validate` checks them. All tables are int64.
    """

    TABLES: ClassVar[tuple[str, ...]] = ("ancestors", "children", "child_slot", "depth", "representative")

    ancestors: torch.Tensor  # (V, D+1); [x, k] is the node of depth k above token x: the root at 0, x itself at D
    children: torch.Tensor  # (I, K); [n - V, s] is the child of internal node n in slot s, -1 where there is none
    child_slot: torch.Tensor  # (N,); the slot a node takes under its parent, 0 for the root
    depth: torch.Tensor  # (N,); 0 for the root, D for every leaf
    representative: torch.Tensor  # (N,); a token below each node: the most frequent, or here the lowest
    # Provenance, free-form JSON; by convention `tokenizer`, `method`, `seed`, `license`, `source`.
    metadata: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_paths(cls, paths: Table, max_branching: int, metadata: dict[str, Any] | None = None) -> "VocabularyTree":
        """Build the tree whose token x is reached from the root through the child slots paths[x].

        Args:
            paths: (V, D) integers in 0..K-1, rows distinct; ValueError for others.
            max_branching: K, the largest fan-out allowed; the width of the prediction head.
            metadata: provenance to keep with the tree.
        """
        path_VD = as_int64(paths, "paths")
        if path_VD.ndim != 2 or 0 in path_VD.shape:
            raise ValueError(f"paths must have shape (tokens, depth) with at least one of each, got {path_VD.shape}.")
        vocab_size, depth = path_VD.shape
        if max(max_branching, depth) > vocab_size:
            raise ValueError(f"Depth {depth} or fan-out {max_branching} is more than {vocab_size} tokens can use.")
        if path_VD.min() < 0 or path_VD.max() >= max_branching:
            token = int(np.argwhere((path_VD < 0) | (path_VD >= max_branching))[0, 0])
            path = path_VD[token].tolist()
            raise ValueError(f"Token {token} has the path {path}: a fan-out of at most {max_branching} was asked for.")
        ancestor_VD, slot_N = _number_nodes(path_VD, max_branching)
        if (places := (len(slot_N) - vocab_size) * max_branching) > MOST_PLACES:
            raise ValueError(f"{places:,} places for children, most of them empty, are over {MOST_PLACES:,}.")
        depth_N = np.full(len(slot_N), depth)
        children_IK = np.full((len(slot_N) - vocab_size, max_branching), -1)
        for level in range(depth):
            depth_N[ancestor_VD[:, level]] = level
            parent, child = ancestor_VD[:, level], ancestor_VD[:, level + 1]
            children_IK[parent - vocab_size, slot_N[child]] = child
        representative_N = np.arange(len(slot_N))
        for level in range(depth):
            representative_N[ancestor_VD[::-1, level]] = np.arange(vocab_size)[::-1]  # the last write wins
        tables = zip(cls.TABLES, (ancestor_VD, children_IK, slot_N, depth_N, representative_N), strict=True)
        tensors = {name: torch.from_numpy(table.astype(np.int64)) for name, table in tables}
        return cls(**tensors, metadata=dict(metadata or {}))

    @classmethod
    def flat(cls, vocab_size: int, metadata: dict[str, Any] | None = None) -> "VocabularyTree":
        """Return the tree of depth 1: every token directly below the root. With it the model is MDLM."""
        return cls.from_paths(np.arange(vocab_size)[:, None], vocab_size, {"method": "flat"} | (metadata or {}))

    def coarsen(self, node_ids: torch.Tensor, level: int) -> torch.Tensor:
        """Replace nodes, of any shape, that are deeper than level 0..D by their ancestors there: a text at a level."""
        above = self.ancestors[self.representative[node_ids], level]
        return torch.where(self.depth[node_ids] > level, above, node_ids)

    def to(self, device: torch.device | str) -> "VocabularyTree":
        """Return the same tree with its tables on another device."""
        return replace(self, **{name: getattr(self, name).to(device) for name in self.TABLES})

    def __repr__(self) -> str:
        """Return sizes and provenance, without the tables."""
        sizes = f"{self.vocab_size} tokens, depth {self.tree_depth}, fan-out {self.max_branching}"
        return f"VocabularyTree({sizes}, {self.num_nodes} nodes, metadata={self.metadata})"

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

    def validate(self) -> "VocabularyTree":
        """Check that the tables describe one tree and agree with each other, else raise ValueError; return self."""
        if self.ancestors.min() < 0 or self.ancestors.max() >= self.num_nodes:
            raise ValueError(f"The tree's table `ancestors` names nodes outside its ids 0..{self.num_nodes - 1}.")
        shown, of_nodes = self.representative, (self.num_nodes,)
        if self.child_slot.shape != of_nodes or shown.shape != of_nodes:
            raise ValueError("The tree's tables `child_slot`, `depth` and `representative` differ in length.")
        if shown.min() < 0 or shown.max() >= self.vocab_size:
            raise ValueError("A node's representative is not a token.")
        expected = VocabularyTree.from_paths(self.paths, self.max_branching)
        for name in ("ancestors", "children", "child_slot", "depth"):
            if not torch.equal(getattr(self, name).cpu(), getattr(expected, name)):
                raise ValueError(f"The tree's table `{name}` contradicts its paths.")
        if not torch.equal(self.ancestors[shown, self.depth].cpu(), torch.arange(self.num_nodes)):
            raise ValueError("The tree's table `representative` names tokens that are not below their node.")
        return self

    def _structure(self) -> dict[str, Any]:
        """Return what the files record of the tree itself, beside its provenance."""
        return {
            "vocab_size": self.vocab_size,
            "tree_depth": self.tree_depth,
            "max_branching": self.max_branching,
            "num_tree_nodes": self.num_nodes,
            "sha256": self.sha256,
            "format_version": FORMAT_VERSION,
        }

    def save_pretrained(self, save_directory: Folder) -> None:
        """Write `vocabulary_tree.safetensors` and, to read, `vocabulary_tree.json`; killed, the folder still loads."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        facts = self.metadata | self._structure()
        tables = {
            name: np.ascontiguousarray(getattr(self, name).cpu().numpy(), dtype=np.int32)
            for name in ("paths", "representative")
        }
        weights = save(tables, metadata={"vocabulary_tree": json.dumps(facts, sort_keys=True)})
        text = json.dumps(facts, indent=2, sort_keys=True) + "\n"
        with TemporaryDirectory(dir=folder, prefix=".", suffix=".partial") as partial:
            for name, content in ((TREE_WEIGHTS_NAME, weights), (TREE_CONFIG_NAME, text.encode())):
                Path(partial, name).write_bytes(content)
            with suppress(FileNotFoundError):  # set aside: never beside a tree it does not describe
                os.replace(folder / TREE_CONFIG_NAME, Path(partial, "older"))
            for name in (TREE_WEIGHTS_NAME, TREE_CONFIG_NAME):
                os.replace(Path(partial, name), folder / name)

    @classmethod
    def from_pretrained(cls, directory_or_repo: Folder, **hub_kwargs: HubOption) -> "VocabularyTree":
        """Load a tree from a folder or a Hub repository and verify its fingerprint; `hub_kwargs` as in transformers.

        Raises OSError where there is none, or one of a newer format, ValueError if it is damaged, or was changed.
        """
        file = find_tree_file(directory_or_repo, **hub_kwargs)
        if file is None:
            hint = "name a folder or repository that a tree or model was saved to; offline, one downloaded before"
            raise OSError(f"{directory_or_repo} holds no {TREE_WEIGHTS_NAME}: {hint}.")
        try:
            tables, facts, beside = _read_tree_file(file)
            tree = cls.from_paths(tables["paths"], index(facts["max_branching"]))
            tree.representative.copy_(torch.from_numpy(as_int64(tables["representative"], "representative")))
            tree.validate()
            structure = tree._structure()
            if (recorded := {name: facts[name] for name in structure}) != structure or beside != tree.sha256:
                raise ValueError(f"it is {structure}, recorded are {recorded} and {beside}")
        except (SafetensorError, AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
            wrong = f"{file} or the {TREE_CONFIG_NAME} beside it is damaged, or was changed after it was saved"
            raise ValueError(f"{wrong} ({error}). Restore the original files.") from error
        tree.metadata.update({key: value for key, value in facts.items() if key not in structure})
        if "licence" in tree.metadata:  # its name in trees saved before version 0.2
            tree.metadata["license"] = tree.metadata.pop("licence")
        return tree


def find_tree_file(directory_or_repo: Folder, **hub_kwargs: HubOption) -> Path | None:
    """Return the local path of a tree in a folder or, downloaded if need be, in a Hub repository; None without one."""
    found = cached_file(
        os.fspath(directory_or_repo), TREE_WEIGHTS_NAME, _raise_exceptions_for_missing_entries=False, **hub_kwargs
    )
    return None if found is None else Path(found)


def _read_tree_file(file: Path) -> tuple[dict[str, np.ndarray], dict[str, Any], str | None]:
    """Return tables, facts, and the fingerprint that the json beside the file, if there is one, records."""
    with safe_open(file, framework="np") as archive:
        facts = json.loads((archive.metadata() or {})["vocabulary_tree"])
        if facts["format_version"] > FORMAT_VERSION:
            raise OSError(f"{file} has a newer format than {FORMAT_VERSION}: upgrade modeling-treediff.")
        tables = {name: archive.get_tensor(name) for name in ("paths", "representative")}
    readable = file.with_name(TREE_CONFIG_NAME)
    beside = json.loads(readable.read_text(encoding="utf-8"))["sha256"] if readable.exists() else facts["sha256"]
    return tables, facts, beside


def as_int64(table: Table, name: str) -> np.ndarray:
    """Return a table of integers as int64 on the host; raise ValueError, naming it, if it holds anything else."""
    array = table.cpu().numpy() if isinstance(table, torch.Tensor) else np.asarray(table)
    if not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"{name} must hold integers, got {array.dtype}.")
    return array.astype(np.int64)


def _number_nodes(path_VD: np.ndarray, max_branching: int) -> tuple[np.ndarray, np.ndarray]:
    """Give every distinct prefix of a path a node id; return ancestors (V, D+1) and child slots (N,)."""
    vocab_size, depth = path_VD.shape
    ancestors = [np.full(vocab_size, vocab_size)]
    slots = [np.zeros(1, dtype=np.int64)]
    next_id = vocab_size + 1
    for level in range(depth - 1):
        # (parent, slot) as one number: sorting it sorts by parent, then by slot.
        keys, index = np.unique(ancestors[-1] * max_branching + path_VD[:, level], return_inverse=True)
        ancestors.append(next_id + index)
        slots.append(keys % max_branching)
        next_id += len(keys)
    leaf_keys = ancestors[-1] * max_branching + path_VD[:, -1]
    order = np.argsort(leaf_keys, kind="stable")
    clash = np.flatnonzero(np.diff(leaf_keys[order]) == 0)
    if len(clash):
        first, second = order[clash[0]], order[clash[0] + 1]
        raise ValueError(f"Tokens {first} and {second} share the path {path_VD[first].tolist()}; each needs its own.")
    return np.stack([*ancestors, np.arange(vocab_size)], axis=1), np.concatenate([path_VD[:, -1], *slots])
