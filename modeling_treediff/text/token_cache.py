"""Token ids on disk: made once, memory-mapped by every process and later run.

An entry is a folder of flat files of integers, named by the hash of all that went into it. It appears by one rename
when it is complete, and is checked by its hashes whenever it is opened.
"""

import hashlib
import json
import logging
import mmap
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from filelock import FileLock
from tqdm.auto import tqdm

from modeling_treediff.atomic_files import commit_folder

LAYOUT = 1  # of the files; a new number makes new entries
INDEX_NAME = "index.json"
Chunk = tuple[str, dict[str, np.ndarray]]  # name of a part, and flat pieces of equal length of all of its columns
Make = Callable[[Counter[str]], Iterator[Chunk]]

logger = logging.getLogger(__name__)


class MappedRow(np.memmap):
    """A memory-mapped file; pickled by its name, so that a worker process maps it too and copies nothing."""

    _mmap: mmap.mmap | None  # numpy's own; None for what is computed from the file and no longer part of it

    def __reduce__(self) -> Any:  # noqa: ANN401 -- as pickle has it
        """Return how to map the same part of the file again."""
        if self._mmap is None or not self.flags.c_contiguous:
            return super().__reduce__()
        start = self.ctypes.data - np.frombuffer(self._mmap, np.uint8).ctypes.data
        return MappedRow, (str(self.filename), self.dtype.str, "r", start, self.shape)


@dataclass(frozen=True)
class CachedRows:
    """One part of an entry.

    Attributes:
        columns: by name, flat rows of equal length, memory-mapped.
        sha256: of all of them.

    """

    columns: dict[str, np.ndarray]
    sha256: str


@dataclass(frozen=True)
class CacheEntry:
    """What an entry holds: its parts by name, and what was counted while it was made."""

    parts: dict[str, CachedRows]
    counts: dict[str, int]


def default_cache_folder() -> Path:
    """Return the folder for entries: below that of `datasets`, which HF_DATASETS_CACHE moves."""
    import datasets

    return Path(datasets.config.HF_DATASETS_CACHE) / "modeling_treediff"


def cached(facts: dict[str, Any], make: Make, folder: Path | None = None, name: str = "text") -> CacheEntry:
    """Return the entry of these facts; make it if there is none, or none that is whole.

    Processes that ask for the same entry at once wait for the first one; no collective operation can time out
    meanwhile.

    Args:
        facts: all that decides on the content, as JSON can hold it.
        make: yields the content in pieces, and may count things for `CacheEntry.counts`.
        folder: where entries are; by default `default_cache_folder()`.
        name: what the progress bar says is tokenised.

    """
    folder = default_cache_folder() if folder is None else folder
    key = hashlib.sha256(json.dumps([LAYOUT, facts], sort_keys=True).encode()).hexdigest()[:32]
    path, partial = folder / key, folder / f".{key}.partial"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f"{key}.lock"):
        if path.exists():
            try:
                return _open(path)
            except (OSError, ValueError, KeyError) as error:
                logger.warning("The cached tokens in %s are damaged (%s): making them again.", path, error)
                shutil.rmtree(path)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            _write(partial, facts, make, name)
            commit_folder(partial, path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return _open(path)


def _write(folder: Path, facts: dict[str, Any], make: Make, name: str) -> None:
    counts: Counter[str] = Counter()
    parts: dict[str, dict[str, _ColumnWriter]] = {}
    try:
        with tqdm(desc=f"tokenize {name}", unit=" tokens", unit_scale=True, disable=None) as bar:
            for part, columns in make(counts):
                if part not in parts:
                    parts[part] = {
                        column: _ColumnWriter(folder / f"{part}.{column}.bin", values.dtype)
                        for column, values in columns.items()
                    }
                for column, values in columns.items():
                    parts[part][column].append(values)
                bar.update(len(next(iter(columns.values()))))
    finally:
        for writers in parts.values():
            for writer in writers.values():
                writer.stream.close()
    index = {
        "facts": facts,
        "counts": counts,
        "parts": {
            part: {column: writer.facts() for column, writer in writers.items()} for part, writers in parts.items()
        },
    }
    (folder / INDEX_NAME).write_text(json.dumps(index, indent=2), encoding="utf-8")


class _ColumnWriter:
    """A file that grows, and its hash."""

    def __init__(self, path: Path, dtype: np.dtype) -> None:
        self.stream: IO[bytes] = path.open("wb")
        self.dtype, self.count, self.digest = dtype, 0, hashlib.sha256()

    def append(self, values: np.ndarray) -> None:
        content = values.astype(self.dtype).tobytes()
        self.stream.write(content)
        self.digest.update(content)
        self.count += len(values)

    def facts(self) -> dict[str, Any]:
        return {"dtype": self.dtype.str, "count": self.count, "sha256": self.digest.hexdigest()}


def _open(folder: Path) -> CacheEntry:
    """Map an entry; ValueError if a file does not have the content that was written."""
    index = json.loads((folder / INDEX_NAME).read_text(encoding="utf-8"))
    parts = {}
    for part, columns in index["parts"].items():
        rows: dict[str, np.ndarray] = {}
        for column, facts in columns.items():
            file = folder / f"{part}.{column}.bin"
            with file.open("rb") as stream:
                if hashlib.file_digest(stream, "sha256").hexdigest() != facts["sha256"]:
                    raise ValueError(f"{file.name} was changed")
            rows[column] = MappedRow(file, facts["dtype"], "r", 0, (facts["count"],))
        parts[part] = CachedRows(rows, hashlib.sha256(json.dumps(columns, sort_keys=True).encode()).hexdigest())
    return CacheEntry(parts, index["counts"])
