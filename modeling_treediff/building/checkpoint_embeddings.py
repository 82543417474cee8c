"""Token embeddings from a checkpoint: the one matrix of input embeddings, without the rest of the model.

Shape legend: V tokens, E dimensions of an embedding.
"""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from transformers.utils import cached_file

from modeling_treediff.files.sources import check_source
from modeling_treediff.text.tree_tokenizer import most_rows

WEIGHTS_NAME, INDEX_NAME = "model.safetensors", "model.safetensors.index.json"
PICKLED_NAMES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
# What the field's architectures call their input embeddings: LLaMA and kin, GPT-2, BERT and kin, XLNet, GPT-NeoX, ...
MODULE_NAMES = (
    "embed_tokens", "wte", "word_embeddings", "word_embedding", "tok_embeddings", "token_embedding", "embed_in",
    "tokens_embed", "embeddings", "shared",
)  # fmt: skip


def load_embeddings(
    source: str | os.PathLike[str],
    vocab_size: int,
    tensor: str | None = None,
    **hub_kwargs: Any,
) -> np.ndarray:
    """Read the input embeddings of a checkpoint, or a matrix saved on its own.

    Of the tensors only this matrix is read, and nothing is unpickled. A few rows beyond the vocabulary are cut:
    many checkpoints pad their matrix to a round number of rows. Whether the numbers are finite is for `build_tree` to
    check.

    Args:
        source: a `.npy` or `.safetensors` file; or the folder or Hub id of a checkpoint with `model.safetensors`,
            whole or in shards.
        vocab_size: V, from `tokenizer_size`.
        tensor: name of the matrix in the checkpoint, for when it cannot be told from the usual names.
        hub_kwargs: `revision`, `subfolder`, `cache_dir`, `token`, `local_files_only`, as in transformers.

    Returns:
        (V, E) float32.

    Raises:
        OSError: there is no such file or repository.
        ValueError: no safetensors, a damaged file, no or several matrices that may be meant, fewer rows than
            tokens or far more, or not a matrix of floating-point numbers.

    """
    path = Path(source)
    if path.suffix == ".npy":
        return _read_npy(path, vocab_size)
    if path.suffix != ".safetensors" and path.is_file():
        raise ValueError(f"{path} has an unknown ending; known: .npy, .safetensors.")
    if not path.is_file() and not hub_kwargs:
        check_source(os.fspath(source), "checkpoint")
    try:
        checkpoint = _Checkpoint(source, hub_kwargs)
        return checkpoint.read(tensor or checkpoint.find_embeddings(vocab_size), vocab_size)
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{source}: {error}") from error


def _read_npy(path: Path, vocab_size: int) -> np.ndarray:
    try:
        matrix = np.lib.format.open_memmap(path, mode="r")  # unlike np.load it takes no archive and no pickle
    except ValueError as error:
        raise ValueError(f"{path} is damaged or holds no array of numbers: {error}.") from error
    _check_shape(matrix.shape, vocab_size, str(path))
    if not np.issubdtype(matrix.dtype, np.floating):
        raise ValueError(f"{path} holds {matrix.dtype}, not floating-point numbers.")
    return np.array(matrix[:vocab_size], dtype=np.float32)


def _check_shape(shape: tuple[int, ...], vocab_size: int, name: str) -> None:
    if len(shape) != 2:
        raise ValueError(f"{name} has shape {shape}; embeddings are a matrix, (tokens, dimensions).")
    if shape[0] < vocab_size:
        raise ValueError(
            f"{name} has {shape[0]} rows, but the tokenizer has {vocab_size} tokens. Tokens added to a tokenizer need "
            "rows too: build a tree with the tokenizer as it was, then extend it (`treediff build-tree --extend`)."
        )
    if shape[0] > most_rows(vocab_size):
        raise ValueError(
            f"{name} has {shape[0]} rows, far more than the tokenizer's {vocab_size} tokens: it belongs to another one."
        )


class _Checkpoint:
    """The tensors of a checkpoint; a shard is fetched when one of its tensors is asked for."""

    def __init__(self, source: str | os.PathLike[str], hub_kwargs: dict[str, Any]) -> None:
        self.source, self.hub_kwargs = os.fspath(source), hub_kwargs
        self.whole = self.source if self.source.endswith(".safetensors") else self._fetch(WEIGHTS_NAME)
        self.file_of: dict[str, str]  # the file that holds a tensor
        if self.whole:
            with safe_open(self.whole, framework="pt") as archive:
                self.file_of = dict.fromkeys(archive.keys(), self.whole)
        elif index := self._fetch(INDEX_NAME):
            self.file_of = _read_index(Path(index))
        elif any(map(self._fetch, PICKLED_NAMES)):
            raise ValueError(
                f"the weights are only in {PICKLED_NAMES[0]}, a pickle, which can run code and is not read. If you "
                "trust it, convert it: AutoModel.from_pretrained(...).save_pretrained(...) writes safetensors."
            )
        else:
            cached_file(self.source, WEIGHTS_NAME, **hub_kwargs)  # raises, and says why there is none

    def find_embeddings(self, vocab_size: int) -> str:
        """Return the name of the input embeddings: by the usual names, or because there is no other matrix."""
        names = [name for name in self.file_of if _module_name(name) in MODULE_NAMES]
        # Encoder-decoders share one matrix, and some save it again under the names of both halves.
        names = [name for name in names if _module_name(name) == "shared"] or names
        if len(names) == 1:
            return names[0]
        shapes = {name: self.shape(name) for name in names or self.file_of}
        matrices = [name for name, shape in shapes.items() if len(shape) == 2]
        fitting = [name for name in matrices if shapes[name][0] >= vocab_size]
        if len(choice := fitting if names else matrices) == 1:
            return choice[0]
        found = ", ".join(f"{name} {shapes[name]}" for name in sorted(fitting)) or "none"
        raise ValueError(
            "it is not clear which tensor holds the input embeddings; name it with `tensor`. Matrices of at least "
            f"{vocab_size} rows: {found}."
        )

    def shape(self, name: str) -> tuple[int, ...]:
        with safe_open(self._path(name), framework="pt") as archive:
            return tuple(archive.get_slice(name).get_shape())

    def read(self, name: str, vocab_size: int) -> np.ndarray:
        """Return the first V rows of a matrix in float32."""
        if name not in self.file_of:
            raise ValueError(f"there is no tensor {name}.")
        _check_shape(self.shape(name), vocab_size, name)
        with safe_open(self._path(name), framework="pt") as archive:  # NumPy has no bfloat16
            rows = archive.get_slice(name)[:vocab_size]
        if not rows.is_floating_point():
            raise ValueError(f"{name} holds {rows.dtype}, not floating-point numbers.")
        return rows.float().numpy()

    def _path(self, name: str) -> str:
        return self.whole or str(cached_file(self.source, self.file_of[name], **self.hub_kwargs))

    def _fetch(self, file: str) -> str | None:
        """Return where a file of the checkpoint lies; None if it has none of that name or is not to be had."""
        silent = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
        return cached_file(self.source, file, **silent, **self.hub_kwargs)


def _read_index(file: Path) -> dict[str, str]:
    content = json.loads(file.read_text(encoding="utf-8"))
    shards = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(shards, dict):
        raise ValueError(f"{file.name} is damaged: it does not say which file holds which tensor.")
    return shards


def _module_name(tensor: str) -> str:
    return tensor.removesuffix(".weight").rpartition(".")[2]
