"""Texts of the quality benchmark as tokens in one file, with the trees built from the training part of them.

A packed folder is all that a run needs: `tokens.safetensors` (one row of uint16 tokens per text), `trees/NAME` with the
tokenizer, and `manifest.json`, which says by name and hash which file was trained on, held out, or kept for zero-shot,
and how much of what is measured also stands in the training text.
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
from safetensors.numpy import load_file, save_file
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from benchmarks.contenders import Contender
from modeling_treediff import VocabularyTree
from modeling_treediff.building import build_tree, count_text, token_embeddings, train_tokenizer
from modeling_treediff.building.balanced import random_tree, smallest_branching
from modeling_treediff.files.atomic_files import write_atomically
from modeling_treediff.text import (
    TokenWindows,
    is_held_out,
    pack_windows,
    read_documents,
    token_names,
    tokenize_documents,
    tokenizer_fingerprint,
)
from modeling_treediff.text.tree_tokenizer import tokenizer_size

TRAINING, VALIDATION, ZERO_SHOT = "training", "validation", "zero_shot"
SELECTION = "selection"  # windows of the validation text that learning rates and leaders are chosen by
RESERVED = (TRAINING, VALIDATION, SELECTION)
LARGEST_VOCABULARY = 2**16
SHORT_DOCUMENT = 5000  # characters
SHARED_TOKENS = 13  # a run of this length that also stands in the training text counts as shared


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
        """Read what `pack` wrote; ValueError if there is nothing, or not all."""
        if not (folder / "manifest.json").exists():
            raise ValueError(f"{folder} holds no packed texts: make them with benchmarks.quality.perplexity pack.")
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        return cls(folder, manifest, load_file(folder / "tokens.safetensors"))

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of all texts."""
        return AutoTokenizer.from_pretrained(self.folder / "trees" / "d2")

    @property
    def measured(self) -> list[str]:
        """Names of what models are measured on: the two parts of the validation text, then the zero-shot texts."""
        return [SELECTION, VALIDATION, *(name for name in self.rows if name not in RESERVED)]

    @property
    def training_sha256(self) -> str:
        """Hash of the training tokens."""
        return hashlib.sha256(self.rows[TRAINING].astype("<i8").tobytes()).hexdigest()

    def windows(self, name: str, length: int) -> TokenWindows:
        """Cut a text into windows."""
        return TokenWindows(pack_windows(self.rows[name], length, name))

    def measured_windows(self, name: str, length: int, count: int) -> torch.Tensor:
        """Return `count` windows (W, T) of what is measured, or fewer if there are, evenly spread over the text.

        Those for selection and those for validation take turns.
        """
        if name not in (SELECTION, VALIDATION):
            return spread(self.windows(name, length), count)
        return spread(self.windows(VALIDATION, length), 2 * count)[name == VALIDATION :: 2]

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
    vocab_size: int | None = None,
) -> None:
    """Tokenise the texts and build the trees; without a validation text every n-th training document is held out.

    With a vocab_size, a tokenizer of as many tokens is learned from what is trained on, in place of the given one.

    Raises:
        ValueError: a file is named as training and as zero-shot text, or has the same content as one; two zero-shot
            texts of one name, or a reserved name; a vocabulary that 16 bits do not number.

    """
    check_apart(training, zero_shot)
    names = [path.name.split(".")[0] for path in zero_shot]
    if unusable := {name for name in names if name in RESERVED or names.count(name) > 1}:
        raise ValueError(f"Zero-shot texts need names of their own, other than {unusable.pop()}: rename the file.")
    every = None if validation else hold_out_every
    held_out: list[str] = long_documents(validation) if validation else []
    trained: list[str] = []
    for path in training:
        for number, document in enumerate(long_documents(path)):
            (held_out if is_held_out(number, every) else trained).append(document)
    if vocab_size is None:
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_source)
    else:
        tokenizer = train_tokenizer(trained, vocab_size)
    if (size := tokenizer_size(tokenizer)) > LARGEST_VOCABULARY:
        raise ValueError(f"{size} tokens are too many for a packed folder, which takes {LARGEST_VOCABULARY}.")
    texts = {TRAINING: trained, VALIDATION: held_out}
    texts |= {name: long_documents(path) for name, path in zip(names, zero_shot, strict=True)}
    rows = {name: tokenize_documents(documents, tokenizer) for name, documents in texts.items()}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").unlink(missing_ok=True)  # written last: what has one is whole
    manifest: dict[str, Any] = {
        TRAINING: [fingerprint(path) for path in training],
        VALIDATION: fingerprint(validation) if validation else {"every": hold_out_every, "of": TRAINING},
        ZERO_SHOT: [fingerprint(path) for path in zero_shot],
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "tokens": {name: len(row) for name, row in rows.items()},
        "bytes": {name: sum(len(one.encode()) for one in documents) for name, documents in texts.items()},
        "shared_with_training": {
            name: shared_tokens(rows[TRAINING], row) for name, row in rows.items() if name != TRAINING
        },
        "trees": build_trees(folder, rows[TRAINING], tokenizer, depths),
    }
    packed = {name: row.astype(np.uint16) for name, row in rows.items()}
    write_atomically(folder / "tokens.safetensors", lambda path: save_file(packed, path))
    text = json.dumps(manifest, indent=2) + "\n"
    write_atomically(folder / "manifest.json", lambda path: path.write_text(text, encoding="utf-8"))


def long_documents(path: Path) -> list[str]:
    """Return the documents of a text; short ones, such as the paragraphs of a manual, are joined with the next."""
    joined: list[str] = []
    parts: list[str] = []
    for document in read_documents(path):
        parts.append(document)
        if sum(map(len, parts)) >= SHORT_DOCUMENT:
            joined.append("\n\n".join(parts))
            parts = []
    return [*joined, "\n\n".join(parts)] if parts else joined


def shared_tokens(training: np.ndarray, row: np.ndarray) -> float:
    """Return the share of the runs of 13 tokens in a row (N,) that also stand somewhere in the training row."""

    def hashes(tokens: np.ndarray) -> np.ndarray:
        count = len(tokens) - SHARED_TOKENS + 1
        total = np.zeros(max(count, 0), np.uint64)
        for shift in range(SHARED_TOKENS):
            total = total * np.uint64(0x9E3779B97F4A7C15) + tokens[shift : shift + count].astype(np.uint64)
        return total

    own = hashes(row)
    return float(np.isin(own, hashes(training)).mean()) if len(own) else 0.0


def build_trees(
    folder: Path, training: np.ndarray, tokenizer: PreTrainedTokenizerBase, depths: Iterable[int]
) -> dict[str, str]:
    """Build a tree of each depth from the training tokens, and a random one of depth 2; return their hashes."""
    vocab_size = tokenizer_size(tokenizer)
    counts = count_text(np.split(training, np.flatnonzero(training == tokenizer.eos_token_id) + 1), vocab_size)
    embeddings, names = token_embeddings(counts.follows), token_names(tokenizer, vocab_size)
    trees = {
        f"d{depth}": build_tree(
            embeddings,
            smallest_branching(vocab_size, depth),
            depth,
            "class-bigrams",
            token_counts=counts.token_counts,
            follows=counts.follows,
            names=names,
        )
        for depth in depths
    }
    trees["random"] = random_tree(vocab_size, smallest_branching(vocab_size, 2), 2)
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
