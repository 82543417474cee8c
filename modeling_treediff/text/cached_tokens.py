"""Tokens on disk, made once: `datasets` keeps them in Arrow files, which every process and later run maps into memory.

An entry is a dataset of blocks of tokens. Its last row is an index: counts, and hashes against which the blocks are
checked whenever the entry is opened. `Dataset.from_generator` makes it under a lock and renames it when it is complete.
(`Dataset.map` takes no lock, bounds a batch by its number of documents and not by their length, and would need a copy
of the text on disk first.)
"""

import hashlib
import json
import logging
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from datasets import Dataset

LAYOUT = 2  # of an entry; a new number makes new entries
BLOCK_TOKENS = 2**18  # tokens per row of the dataset, about
NAME = "modeling_treediff"  # of the folder below the cache of `datasets`

Chunk = tuple[str, dict[str, np.ndarray]]  # name of a part, and flat pieces of equal length of all of its columns
Make = Callable[[Counter[str]], Iterator[Chunk]]

# What reading an entry of any other content ends in, `datasets`' own files of it included.
DAMAGE = (OSError, ValueError, LookupError, TypeError, AttributeError)

logger = logging.getLogger(__name__)


class TokenRow:
    """A row of integers, such as all tokens of a text, in blocks that are mapped from files.

    It is pickled by the files' names, so that a worker process maps them too and copies nothing.
    """

    def __init__(self, blocks: "Dataset", part: str, column: str) -> None:
        """Join one column of the blocks of one part."""
        self.blocks, self.part, self.column = blocks, part, column
        values, parts = blocks.data.column(column), blocks.data.column("part").to_pylist()
        self._pieces = [
            values[number].values.to_numpy(zero_copy_only=True) for number, name in enumerate(parts) if name == part
        ]
        self._ends = np.cumsum([len(piece) for piece in self._pieces], dtype=np.int64).tolist()

    def __reduce__(self) -> tuple[Any, ...]:
        return TokenRow, (self.blocks, self.part, self.column)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, place: slice) -> np.ndarray:
        """Return the integers start..stop-1: a view where one block holds them, else a copy."""
        start, stop, _ = place.indices(len(self))
        number, parts = bisect_right(self._ends, start), []
        while start < stop:
            piece = self._pieces[number]
            inside = start - (self._ends[number] - len(piece))
            parts.append(piece[inside : inside + stop - start])
            start, number = start + len(parts[-1]), number + 1
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def facts(self) -> dict[str, Any]:
        """Return type, number and hash of the integers; reads them all."""
        digest = hashlib.sha256()
        for piece in self._pieces:
            digest.update(piece)
        return {"dtype": self._pieces[0].dtype.str, "count": len(self), "sha256": digest.hexdigest()}


@dataclass(frozen=True)
class CachedRows:
    """One part of an entry.

    Attributes:
        columns: rows of equal length by name.
        sha256: of all of them.

    """

    columns: dict[str, TokenRow]
    sha256: str


@dataclass(frozen=True)
class CacheEntry:
    """What an entry holds: its parts by name, and what was counted while it was made."""

    parts: dict[str, CachedRows]
    counts: dict[str, int]


def cached_tokens(
    facts: dict[str, Any], columns: Mapping[str, np.dtype], make: Make, folder: Path | None = None
) -> CacheEntry:
    """Return the entry of these facts; make it if there is none, or none that is whole.

    Processes that ask for the same entry at once wait for the first one; no collective operation can time out
    meanwhile.

    Args:
        facts: all that decides on the content, as JSON can hold it.
        columns: names of the columns, and the types of their integers.
        make: yields the content in pieces, and may count things for `CacheEntry.counts`.
        folder: where entries are; by default the cache of `datasets`, which HF_DATASETS_CACHE moves.

    Raises:
        Exception: what `make` raises; nothing is kept then.

    """
    import datasets

    folder = Path(datasets.config.HF_DATASETS_CACHE) if folder is None else folder
    key = hashlib.sha256(json.dumps([LAYOUT, facts], sort_keys=True).encode()).hexdigest()[:32]
    load = partial(_load, key, columns, partial(_rows, columns, make), folder)
    try:
        try:
            return _check(load())
        except DAMAGE as error:
            logger.warning("The cached tokens %s in %s are damaged (%s): making them again.", key, folder, error)
        for info in folder.glob(f"{NAME}/*{key}/*/{datasets.config.DATASET_INFO_FILENAME}"):
            info.unlink(missing_ok=True)  # without it `datasets` replaces the entry
        return _check(load())
    except datasets.exceptions.DatasetGenerationError as error:
        raise error.__cause__ or error  # noqa: B904 -- the error of `make`, as it was raised


def _load(
    key: str, columns: Mapping[str, np.dtype], rows: Callable[[], Iterator[dict[str, Any]]], folder: Path
) -> "Dataset":
    """Let `datasets` find an entry or make it."""
    from datasets import Dataset, Features, List, Value

    return Dataset.from_generator(
        rows,
        features=Features(
            {"part": Value("string"), "index": Value("string")}
            | {name: List(Value(np.dtype(dtype).name)) for name, dtype in columns.items()}
        ),
        cache_dir=str(folder),
        dataset_name=NAME,
        split="tokens",
        fingerprint=key,
        writer_batch_size=1,  # a block is written as soon as it is full
    )


def _rows(columns: Mapping[str, np.dtype], make: Make) -> Iterator[dict[str, Any]]:
    """Yield the rows of an entry: blocks of its parts, and the index at the end."""
    counts: Counter[str] = Counter()
    parts: dict[str, _Part] = {}
    for name, chunk in make(counts):
        part = parts.setdefault(name, _Part(name, columns))
        part.append(chunk)
        if part.waiting >= BLOCK_TOKENS:
            yield part.block()
    for part in parts.values():
        if part.waiting:
            yield part.block()
    index = {"counts": counts, "parts": {name: part.facts() for name, part in parts.items()}}
    yield {"part": None, "index": json.dumps(index)} | {name: [] for name in columns}


class _Part:
    """Gathers the chunks of a part to blocks, and hashes them."""

    def __init__(self, name: str, columns: Mapping[str, np.dtype]) -> None:
        self.name, self.types = name, {column: np.dtype(dtype) for column, dtype in columns.items()}
        self.chunks: list[dict[str, np.ndarray]] = []
        self.waiting, self.count = 0, 0
        self.digests = {column: hashlib.sha256() for column in columns}

    def append(self, chunk: dict[str, np.ndarray]) -> None:
        self.chunks.append(chunk)
        self.waiting += len(next(iter(chunk.values())))

    def block(self) -> dict[str, Any]:
        row: dict[str, Any] = {"part": self.name, "index": None}
        for column, dtype in self.types.items():
            values = np.concatenate([chunk[column] for chunk in self.chunks]).astype(dtype)
            self.digests[column].update(values.tobytes())
            row[column] = values.tolist()  # `datasets` takes lists of Python's integers three times as fast
        self.chunks, self.waiting, self.count = [], 0, self.count + self.waiting
        return row

    def facts(self) -> dict[str, dict[str, Any]]:
        return {
            column: {"dtype": dtype.str, "count": self.count, "sha256": self.digests[column].hexdigest()}
            for column, dtype in self.types.items()
        }


def _check(blocks: "Dataset") -> CacheEntry:
    """Return what an entry holds; an error of DAMAGE if that is not what was written."""
    index = json.loads(blocks.data.column("index")[-1].as_py() or "")
    parts, counts = {}, {name: int(number) for name, number in index["counts"].items()}
    if missing := set(blocks.data.column("part").to_pylist()) - {None, *index["parts"]}:
        raise ValueError(f"the index does not name the part {min(missing)}")
    for part, columns in index["parts"].items():
        rows = {column: TokenRow(blocks, part, column) for column in columns}
        for column, row in rows.items():
            if row.facts() != columns[column]:
                raise ValueError(f"the column {column} of the part {part} was changed")
        parts[part] = CachedRows(rows, hashlib.sha256(json.dumps(columns, sort_keys=True).encode()).hexdigest())
    return CacheEntry(parts, counts)
