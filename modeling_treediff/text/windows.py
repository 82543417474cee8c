"""Windows of tokens, and their shuffled order in training, which depends on seed and position alone.

Shape legend: W windows, T tokens per window.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from .packing import WindowArray

OPTIONAL_COLUMNS = ("attention_mask", "fixed_mask", "segment_ids")
READ_WINDOWS = 4096  # at a time, where all are read


@dataclass(frozen=True, eq=False)
class TokenWindows:
    """Windows of tokens with random access, in memory or mapped from files.

    Attributes:
        input_ids: (W, T) token ids, any integer type.
        attention_mask: (W, T), 0 at padding; None where there is none.
        fixed_mask: (W, T), 1 where a token stays clean and is not counted, such as a prompt; None for no such token.
        segment_ids: (W, T) equal numbers for tokens that see one another; None where all of a window do.
        content: a hash of what the windows were cut from, if it is known: saves reading them for the fingerprint.

    """

    input_ids: WindowArray
    attention_mask: WindowArray | None = None
    fixed_mask: WindowArray | None = None
    segment_ids: WindowArray | None = None
    content: str | None = None

    def __post_init__(self) -> None:
        """Refuse shapes that do not agree."""
        shape = self.input_ids.shape
        if len(shape) != 2 or 0 in shape:
            raise ValueError(f"Windows are a (W, T) array with tokens in it, got the shape {shape}.")
        for name, column in self.columns.items():
            if column.shape != shape:
                raise ValueError(f"{name} has shape {column.shape}, the windows {shape}.")

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitem__(self, rows: slice | np.ndarray) -> "TokenWindows":
        """Return some of the windows, by a slice or by their numbers."""
        columns: dict[str, Any] = {name: column[rows] for name, column in self.columns.items()}
        return TokenWindows(**columns)

    @property
    def sequence_length(self) -> int:
        """T, tokens per window."""
        return self.input_ids.shape[1]

    @property
    def columns(self) -> dict[str, WindowArray]:
        """The arrays that are there, by name."""
        columns = {name: getattr(self, name) for name in ("input_ids", *OPTIONAL_COLUMNS)}
        return {name: column for name, column in columns.items() if column is not None}

    @property
    def counted_ids(self) -> np.ndarray:
        """(N,) the tokens that the bound counts: neither padding nor fixed."""
        return np.concatenate([_counted(columns) for columns in self._read()])

    @cached_property
    def fingerprint(self) -> str:
        """Sha256 that tells contents and windows apart, whatever integer type holds the tokens."""
        if self.content is not None:
            return hashlib.sha256(f"{self.content} {self.sequence_length}".encode()).hexdigest()
        digest = hashlib.sha256()
        for name, column in self.columns.items():
            digest.update(f"{name} {column.shape}".encode())
            for first in range(0, len(column), READ_WINDOWS):
                digest.update(column[first : first + READ_WINDOWS].astype("<i8").tobytes())
        return digest.hexdigest()

    def _read(self) -> Iterator[dict[str, np.ndarray]]:
        """Yield the columns of a few windows at a time."""
        for first in range(0, len(self), READ_WINDOWS):
            yield {name: column[first : first + READ_WINDOWS] for name, column in self.columns.items()}

    def dataset(self, first: int, count: int, seed: int, place: Sequence[int] | None = None) -> "ShuffledWindows":
        """Return the items first..count-1 of a run in shuffled order; `place` is for streams and not needed here."""
        return ShuffledWindows(self, first, count, seed)


def _counted(columns: dict[str, np.ndarray]) -> np.ndarray:
    """Return (N,) the tokens of some windows that are neither padding nor fixed."""
    counted = np.ones(columns["input_ids"].shape, bool)
    if "attention_mask" in columns:
        counted &= columns["attention_mask"] != 0
    if "fixed_mask" in columns:
        counted &= columns["fixed_mask"] == 0
    return columns["input_ids"][counted]


class ShuffledWindows(Dataset[dict[str, Any]]):
    """Windows in the order of training: epoch after epoch, each shuffled by (seed, epoch).

    Item i is the window number `first + i` of the whole run, so a resumed run starts at any place without a state. An
    epoch's order takes 8 bytes of memory per window.
    """

    def __init__(self, windows: TokenWindows, first: int, count: int, seed: int) -> None:
        """Serve the items first..count-1 of a run over the windows."""
        self.windows, self.first, self.count, self.seed = windows, first, count, seed
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def __len__(self) -> int:
        return self.count - self.first

    def __getitem__(self, index: int) -> dict[str, Any]:
        position = self.first + index
        epoch, place = divmod(position, len(self.windows))
        if epoch != self._epoch:
            self._order = np.random.default_rng([self.seed, epoch]).permutation(len(self.windows))
            self._epoch = epoch
        row = self._order[place]
        return {name: column[row] for name, column in self.windows.columns.items()} | {"position": position}


def unigram_entropy(token_ids: np.ndarray) -> float:
    """Entropy of the tokens' own frequencies, nats per token: what a model without context could reach at best."""
    counts = np.unique(token_ids, return_counts=True)[1]
    frequency = counts / counts.sum()
    return float(-(frequency * np.log(frequency)).sum())
