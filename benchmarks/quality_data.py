"""Texts of the quality benchmark as tokens in one file, with the trees built from the training part of them.

A packed folder is all that a run needs: `tokens.safetensors` (one row of uint16 tokens per text), `trees/NAME`, the
tokenizer, and `manifest.json`, which says by name and hash which file was trained on, held out, or kept for zero-shot.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contenders import Contender
from safetensors.numpy import load_file, save_file
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from modeling_treediff import VocabularyTree
from modeling_treediff.atomic_files import write_atomically
from modeling_treediff.building import build_tree, count_text, token_embeddings
from modeling_treediff.corpora import read_documents
from modeling_treediff.training import TokenWindows, pack_windows, tokenize_documents
from modeling_treediff.training.tokenizing import is_held_out
from modeling_treediff.tree_tables import smallest_branching, tokenizer_size

TRAINING, VALIDATION, ZERO_SHOT = "training", "validation", "zero_shot"
SHORTEST = 80  # characters of a paragraph that counts as shared between two texts


@dataclass(frozen=True)
class PackedData:
    """A packed folder, read.

    Attributes:
        folder: where it lies.
        manifest: which file is what.
        rows: (N,) tokens by name: "training", "validation", and the zero-shot texts by their own names.

    """

    folder: Path
    manifest: dict[str, Any]
    rows: dict[str, np.ndarray]

    @classmethod
    def load(cls, folder: Path) -> "PackedData":
        """Read what `pack` wrote."""
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        return cls(folder, manifest, load_file(folder / "tokens.safetensors"))

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of all texts."""
        return AutoTokenizer.from_pretrained(self.folder / "trees" / "d2")

    @property
    def measured(self) -> list[str]:
        """Names of the texts that models are measured on, the validation text first."""
        return [VALIDATION, *(name for name in self.rows if name not in (TRAINING, VALIDATION))]

    def windows(self, name: str, length: int) -> TokenWindows:
        """Cut a text into windows."""
        return TokenWindows(pack_windows(self.rows[name], length, name))

    def tree(self, contender: Contender) -> VocabularyTree:
        """Return a contender's tree."""
        if contender.depth == 1:
            return VocabularyTree.flat(tokenizer_size(self.tokenizer))
        name = "random" if contender.random_tree else f"d{contender.depth}"
        return VocabularyTree.from_pretrained(self.folder / "trees" / name)


def pack(
    folder: Path,
    tokenizer_source: str,
    training: list[Path],
    validation: Path | None,
    zero_shot: list[Path],
    depths: Iterable[int],
    hold_out_every: int = 20,
) -> None:
    """Tokenise the texts and build the trees; without a validation text every n-th training document is held out.

    Raises:
        ValueError: a file is named as training and as zero-shot text, or has the same content as one.

    """
    check_apart(training, zero_shot)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_source)
    every = None if validation else hold_out_every
    held_out: list[str] = read_documents(validation) if validation else []
    trained: list[str] = []
    for path in training:
        for number, document in enumerate(read_documents(path)):
            (held_out if is_held_out(number, every) else trained).append(document)
    rows = {TRAINING: tokenize_documents(trained, tokenizer), VALIDATION: tokenize_documents(held_out, tokenizer)}
    manifest: dict[str, Any] = {
        TRAINING: [fingerprint(path) for path in training],
        VALIDATION: fingerprint(validation) if validation else {"every": hold_out_every, "of": TRAINING},
        ZERO_SHOT: [],
    }
    paragraphs = {document for document in trained if len(document) >= SHORTEST}
    for path in zero_shot:
        documents = read_documents(path)
        shared = sum(document in paragraphs for document in documents) / len(documents)
        manifest[ZERO_SHOT].append(fingerprint(path) | {"paragraphs_in_training": shared})
        rows[path.name.split(".")[0]] = tokenize_documents(documents, tokenizer)
    folder.mkdir(parents=True, exist_ok=True)
    manifest["tokens"] = {name: len(row) for name, row in rows.items()}
    manifest["trees"] = build_trees(folder, rows[TRAINING], tokenizer, depths)
    packed = {name: row.astype(np.uint16) for name, row in rows.items()}
    write_atomically(folder / "tokens.safetensors", lambda path: save_file(packed, path))
    text = json.dumps(manifest, indent=2) + "\n"
    write_atomically(folder / "manifest.json", lambda path: path.write_text(text, encoding="utf-8"))


def build_trees(
    folder: Path, training: np.ndarray, tokenizer: PreTrainedTokenizerBase, depths: Iterable[int]
) -> dict[str, str]:
    """Build a tree of each depth from the training tokens, and a random one of depth 2; return their hashes."""
    vocab_size = tokenizer_size(tokenizer)
    counts = count_text(np.split(training, np.flatnonzero(training == tokenizer.eos_token_id) + 1), vocab_size)
    embeddings = token_embeddings(counts.follows)
    trees = {
        f"d{depth}": build_tree(
            embeddings,
            smallest_branching(vocab_size, depth),
            depth,
            "class-bigrams",
            token_counts=counts.token_counts,
            follows=counts.follows,
        )
        for depth in depths
    }
    trees["random"] = VocabularyTree.random(vocab_size, smallest_branching(vocab_size, 2), 2)
    for name, tree in trees.items():
        tree.save_pretrained(folder / "trees" / name)
        tokenizer.save_pretrained(folder / "trees" / name)
    return {name: tree.sha256 for name, tree in trees.items()}


def check_apart(training: list[Path], zero_shot: list[Path]) -> None:
    """Raise ValueError if a text is both trained on and kept for zero-shot, by its name or by its content."""
    trained = {value for path in training for value in fingerprint(path).values()}
    for path in zero_shot:
        if trained.intersection(fingerprint(path).values()):
            raise ValueError(f"{path} is a zero-shot text and must not be trained on: leave it out of one of the two.")


def fingerprint(path: Path) -> dict[str, str]:
    """Return a file's name and the hash of its bytes."""
    return {"name": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def spread(windows: TokenWindows, count: int) -> torch.Tensor:
    """Return `count` windows (W, T) int64, evenly spread over the text; all if there are fewer."""
    count = min(count, len(windows))
    rows = np.asarray(windows.input_ids[np.arange(count) * len(windows) // count], np.int64)
    return torch.from_numpy(rows)
