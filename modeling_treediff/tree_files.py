"""The files of a saved tree: one complete, one to read, and its tokenizer.

`vocabulary_tree.safetensors` holds the tables and, in its header, the facts; `vocabulary_tree.json` holds the same
facts for people and for web pages.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save
from transformers.utils import cached_file

from .atomic_files import write_atomically

TREE_WEIGHTS_NAME = "vocabulary_tree.safetensors"
TREE_CONFIG_NAME = "vocabulary_tree.json"
FORMAT_VERSION = 1
# What says where on the Hub a file is found; passed on from `from_pretrained`.
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")


def write_tree_files(folder: Path, tables: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> None:
    """Write both files, each whole or not at all; a kill at any moment leaves a folder that still loads."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: np.ascontiguousarray(table, dtype=np.int32) for name, table in tables.items()}
    facts = {**facts, "format_version": FORMAT_VERSION}
    content = save(tensors, metadata={"vocabulary_tree": json.dumps(facts, sort_keys=True)})
    text = json.dumps(facts, indent=2, sort_keys=True) + "\n"
    (folder / TREE_CONFIG_NAME).unlink(missing_ok=True)  # never beside a tree it does not describe
    write_atomically(folder / TREE_WEIGHTS_NAME, lambda path: path.write_bytes(content))
    write_atomically(folder / TREE_CONFIG_NAME, lambda path: path.write_text(text, encoding="utf-8"))


def write_tokenizer(tokenizer: Any, folder: Path) -> None:  # noqa: ANN401 -- any tokenizer of transformers
    """Write a tokenizer, less what transformers notes of the place it was loaded from: that is no part of it."""
    for name in ("is_local", "local_files_only"):
        tokenizer.init_kwargs.pop(name, None)
    tokenizer.save_pretrained(folder)


def find_tree_file(directory_or_repo: str | os.PathLike, **hub_kwargs: Any) -> Path:  # noqa: ANN401
    """Return the local path of a tree in a folder or, downloaded if need be, in a Hub repository."""
    return Path(str(cached_file(os.fspath(directory_or_repo), TREE_WEIGHTS_NAME, **hub_kwargs)))


def read_tree_files(file: Path) -> tuple[dict[str, np.ndarray], dict[str, Any], set[str]]:
    """Return tables, facts, and the fingerprints that the file and the json beside it, if there is one, record."""
    with safe_open(file, framework="np") as archive:
        facts = json.loads((archive.metadata() or {})["vocabulary_tree"])
        tables = {name: archive.get_tensor(name) for name in ("paths", "representative")}
    if facts["format_version"] != FORMAT_VERSION:
        raise ValueError(f"it has format {facts['format_version']}, this version reads {FORMAT_VERSION}")
    recorded, readable = {facts["sha256"]}, file.with_name(TREE_CONFIG_NAME)
    if readable.exists():
        recorded.add(json.loads(readable.read_text(encoding="utf-8"))["sha256"])
    return tables, facts, recorded
