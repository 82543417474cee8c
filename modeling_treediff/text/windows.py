"""Windows of tokens, and the order in which a run takes them: it depends on the seed and the position alone.

Shape legend: W windows, T tokens per window.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from torch.utils.data import Dataset

OPTIONAL_COLUMNS = ("attention_mask", "fixed_mask", "segment_ids")
HASHED_WINDOWS = 4096  # at a time


@dataclass(frozen=True, eq=False)
class TokenWindows:
    """Windows that all are at hand, in memory or memory-mapped.

    Attributes:
        input_ids: (W, T) token ids, any integer type.
        attention_mask: (W, T), 0 at padding; None where there is none.
        fixed_mask: (W, T), 1 where a token stays clean and is not counted, such as a prompt; None for no such token.
        segment_ids: (W, T) equal numbers for tokens that see one another; None where all of a window do.
        content: a hash of what the windows were cut from, if it is known: saves reading them for the fingerprint.

    """

    input_ids: np.ndarray
    attention_mask: np.ndarray | None = None
    fixed_mask: np.ndarray | None = None
    segment_ids: np.ndarray | None = None
    content: str | None = None

    def __post_init__(self) -> None:
        """Refuse shapes that do not agree."""
        if self.input_ids.ndim != 2 or not self.input_ids.size:
            raise ValueError(f"Windows are a (W, T) array with tokens in it, got the shape {self.input_ids.shape}.")
        for name, column in self.columns.items():
            if column.shape != self.input_ids.shape:
                raise ValueError(f"{name} has shape {column.shape}, the windows {self.input_ids.shape}.")

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitem__(self, rows: slice | np.ndarray) -> "TokenWindows":
        """Return some of the windows, by a slice or by their numbers."""
        return TokenWindows(**{name: column[rows] for name, column in self.columns.items()})

    @property
    def length(self) -> int:
        """T, tokens per window."""
        return self.input_ids.shape[1]

    @property
    def columns(self) -> dict[str, Any]:
        """The arrays that are there, by name."""
        columns = {name: getattr(self, name) for name in ("input_ids", *OPTIONAL_COLUMNS)}
        return {name: column for name, column in columns.items() if column is not None}

    @property
    def counted_ids(self) -> np.ndarray:
        """(N,) the tokens that the bound counts: neither padding nor fixed."""
        counted = np.ones(self.input_ids.shape, bool)
        if self.attention_mask is not None:
            counted &= self.attention_mask != 0
        if self.fixed_mask is not None:
            counted &= self.fixed_mask == 0
        return np.asarray(self.input_ids)[counted]

    @cached_property
    def fingerprint(self) -> str:
        """Sha256 that tells contents and windows apart, whatever integer type holds the tokens."""
        if self.content is not None:
            return hashlib.sha256(f"{self.content} {self.length}".encode()).hexdigest()
        digest = hashlib.sha256()
        for name, column in self.columns.items():
            digest.update(f"{name} {column.shape}".encode())
            for first in range(0, len(column), HASHED_WINDOWS):
                digest.update(column[first : first + HASHED_WINDOWS].astype("<i8").tobytes())
        return digest.hexdigest()

    def dataset(self, first: int, count: int, seed: int, place: Sequence[int] | None = None) -> "ShuffledWindows":
        """Return the items first..count-1 of a run in shuffled order; `place` is for streams and not needed here."""
        return ShuffledWindows(self, first, count, seed)


class ShuffledWindows(Dataset):
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


def pack_windows(token_ids: np.ndarray, length: int, name: str = "text") -> np.ndarray:
    """Cut a row of tokens into (W, T=length) windows without overlap; the incomplete last one is dropped.

    Raises:
        ValueError: the row, called `name` in the message, is shorter than one window.

    """
    if length < 1:
        raise ValueError(f"A window needs at least one token, got {length}.")
    count = len(token_ids) // length
    if count == 0:
        raise ValueError(
            f"The {name} has {len(token_ids)} tokens, less than one window of {length}. Use a longer text or a shorter "
            "window."
        )
    return token_ids[: count * length].reshape(count, length)


def unigram_entropy(token_ids: np.ndarray) -> float:
    """Entropy of the tokens' own frequencies, nats per token: what a model without context could reach at best."""
    counts = np.unique(token_ids, return_counts=True)[1]
    frequency = counts / counts.sum()
    return float(-(frequency * np.log(frequency)).sum())
