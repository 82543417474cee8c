"""Packing of tokens into windows without overlap, from an array or a stream.

Shape legend: N tokens of a row, W windows, T tokens per window.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol, overload

import numpy as np

from .tokenizing import TokenPiece

Place = tuple[int, int, int]  # epoch, document, offset among the document's tokens


class Row(Protocol):
    """(N,) integers that are read by slices: an array, or `cached_tokens.TokenRow`."""

    def __len__(self) -> int: ...

    def __getitem__(self, place: slice, /) -> np.ndarray: ...


class WindowArray(Protocol):
    """(W, T) integers that are read by windows: an array, or `PackedRow`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(W, T)."""

    def __len__(self) -> int: ...

    def __getitem__(self, windows: int | slice | np.ndarray, /) -> np.ndarray: ...


class PackedRow:
    """The windows of a row that is no array, each read when it is asked for."""

    def __init__(self, row: Row, sequence_length: int) -> None:
        """Cut the row into windows of T = `sequence_length`."""
        self.row, self.shape = row, (len(row) // sequence_length, sequence_length)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, windows: int | slice | np.ndarray, /) -> np.ndarray:
        """Return one window (T,), or some (W, T) by a slice or by their numbers."""
        numbers = windows if isinstance(windows, np.ndarray) else range(len(self))[windows]
        if isinstance(numbers, int):
            return self._window(numbers)
        return np.stack([self._window(int(number)) for number in numbers])

    def _window(self, number: int) -> np.ndarray:
        length = self.shape[1]
        return self.row[number * length : (number + 1) * length]


@overload
def pack_windows(row: np.ndarray, sequence_length: int, name: str = "text") -> np.ndarray: ...


@overload
def pack_windows(row: Row, sequence_length: int, name: str = "text") -> WindowArray: ...


def pack_windows(row: Row, sequence_length: int, name: str = "text") -> WindowArray:
    """Cut a row of tokens into (W, T=sequence_length) windows without overlap; the incomplete last one is dropped.

    Args:
        row: (N,) an array, or anything that is read by slices.
        sequence_length: T.
        name: of the row in messages.

    Returns:
        Windows of an array: a view of it. Others: a `PackedRow`.

    Raises:
        ValueError: the row is shorter than one window.

    """
    if sequence_length < 1:
        raise ValueError(f"A window needs at least one token, got {sequence_length}.")
    count = len(row) // sequence_length
    if count == 0:
        raise ValueError(
            f"The {name} has {len(row)} tokens, less than one window of {sequence_length}. Use a longer text or a "
            "shorter window."
        )
    if isinstance(row, np.ndarray):
        return row[: count * sequence_length].reshape(count, sequence_length)
    return PackedRow(row, sequence_length)


class PackedWindow(NamedTuple):
    """One window of a stream.

    Attributes:
        input_ids: (T,) int32.
        segment_ids: (T,) int64, equal numbers for tokens of the same document; the first is 0.
        place: where its first token stands.

    """

    input_ids: np.ndarray
    segment_ids: np.ndarray
    place: Place


def pack_pieces(pieces: Iterable[TokenPiece], sequence_length: int) -> Iterator[PackedWindow]:
    """Cut a stream of tokens into windows without a gap, also across documents and epochs."""
    parts: list[np.ndarray] = []
    segments: list[np.ndarray] = []
    filled, segment, place = 0, 0, (0, 0, 0)
    for piece in pieces:
        segment += piece.offset == 0
        taken = 0
        while taken < len(piece.token_ids):
            if not filled:
                place = (piece.epoch, piece.document, piece.offset + taken)
            part = piece.token_ids[taken : taken + sequence_length - filled]
            parts.append(part)
            segments.append(np.full(len(part), segment))
            taken, filled = taken + len(part), filled + len(part)
            if filled == sequence_length:
                yield PackedWindow(np.concatenate(parts), np.concatenate(segments) - segments[0][0], place)
                parts, segments, filled = [], [], 0
