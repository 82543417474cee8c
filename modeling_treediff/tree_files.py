"""The files of a saved tree: one complete, one to read, and its tokenizer; on this machine and on the Hub.

`vocabulary_tree.safetensors` holds the tables and, in its header, the facts; `vocabulary_tree.json` holds the same
facts for people and for web pages.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import numpy as np
import torch
from huggingface_hub import CommitInfo
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from transformers.utils import cached_file

from .atomic_files import write_atomically
from .hub_upload import upload_files

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


def find_tree_file(directory_or_repo: str | os.PathLike, **hub_kwargs: Any) -> Path | None:  # noqa: ANN401
    """Return the local path of a tree in a folder or, downloaded if need be, in a Hub repository; None without one."""
    found = cached_file(
        os.fspath(directory_or_repo), TREE_WEIGHTS_NAME, _raise_exceptions_for_missing_entries=False, **hub_kwargs
    )
    return None if found is None else Path(found)


class NewerFormatError(ValueError):
    """The file was written by a newer version of this package."""


def read_tree_files(file: Path) -> tuple[dict[str, np.ndarray], dict[str, Any], set[str]]:
    """Return tables, facts, and the fingerprints that the file and the json beside it, if there is one, record."""
    with safe_open(file, framework="np") as archive:
        facts = json.loads((archive.metadata() or {})["vocabulary_tree"])
        if facts["format_version"] > FORMAT_VERSION:
            raise NewerFormatError(
                f"{file} has format {facts['format_version']}, this version of modeling-treediff reads up to "
                f"{FORMAT_VERSION}: upgrade the package."
            )
        tables = {name: archive.get_tensor(name) for name in ("paths", "representative")}
    recorded, readable = {facts["sha256"]}, file.with_name(TREE_CONFIG_NAME)
    if readable.exists():
        recorded.add(json.loads(readable.read_text(encoding="utf-8"))["sha256"])
    return tables, facts, recorded


class TreeFilesMixin:
    """Saving, loading and pushing, for VocabularyTree."""

    def _structure(self) -> dict[str, Any]:
        """Return what a saved tree records of itself beside its provenance."""
        tree: Any = self
        return {
            "vocab_size": tree.vocab_size,
            "tree_depth": tree.tree_depth,
            "max_branching": tree.max_branching,
            "num_tree_nodes": tree.num_nodes,
            "sha256": tree.sha256,
        }

    def save_pretrained(self, save_directory: str | os.PathLike) -> None:
        """Write `vocabulary_tree.safetensors` (complete) and `vocabulary_tree.json` (the same facts to read).

        Each file appears whole or not at all; a kill at any moment leaves a folder that still loads.
        """
        tree: Any = self
        tables = {name: getattr(tree, name).cpu().numpy() for name in ("paths", "representative")}
        write_tree_files(Path(save_directory), tables, tree.metadata | self._structure())

    def push_to_hub(self, repo_id: str, **options: Any) -> CommitInfo:  # noqa: ANN401
        """Upload the files of `save_pretrained` to a Hub repository, in one commit.

        Args:
            repo_id: "user/name", or "name" for the user's own; made if it does not exist.
            options: `subfolder`, `commit_message`, `private`, `token`, `revision`, `create_pr`, as `upload_files` in
                `hub_upload.py` documents them.

        """
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            options = {"commit_message": "Upload vocabulary tree"} | options
            return upload_files(Path(folder), repo_id, **options)

    @classmethod
    def from_pretrained(cls, directory_or_repo: str | os.PathLike, **hub_kwargs: Any) -> Self:  # noqa: ANN401
        """Load a tree from a folder or a Hub repository and verify its fingerprint.

        Args:
            directory_or_repo: folder that holds `vocabulary_tree.safetensors`, or a Hub repository id.
            hub_kwargs: `revision`, `subfolder`, `cache_dir`, `token`, `local_files_only`, as in transformers.

        Raises:
            OSError: there is no such file.
            ValueError: the file is damaged, of a newer format, or was changed after it was written.

        """
        file = find_tree_file(directory_or_repo, **hub_kwargs)
        if file is None:
            raise OSError(
                f"{directory_or_repo} holds no {TREE_WEIGHTS_NAME}: name a folder or repository that a tree or a model "
                "was saved to, with revision and subfolder where it has them; offline, one downloaded before."
            )
        new: Any = cls
        try:
            tables, facts, recorded = read_tree_files(file)
            tree = new.from_paths(tables["paths"], facts["max_branching"])
            tree.representative.copy_(torch.from_numpy(tables["representative"].astype(np.int64)))
            tree.validate()
            for expected in recorded - {tree.sha256}:
                raise ValueError(f"its sha256 is {tree.sha256}, recorded is {expected}")
        except NewerFormatError:
            raise
        except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"{file} or the {TREE_CONFIG_NAME} beside it is damaged, or was changed after it was saved ({error}). "
                "Restore the original files."
            ) from error
        derived = {"format_version", *tree._structure()}
        tree.metadata.update({key: value for key, value in facts.items() if key not in derived})
        if "licence" in tree.metadata:  # its name in trees saved before version 0.2
            tree.metadata["license"] = tree.metadata.pop("licence")
        return tree
