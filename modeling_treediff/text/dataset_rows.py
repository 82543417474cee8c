"""Rows of a dataset: of a table in a file, of a folder, or of a repository on the Hub."""

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from modeling_treediff.files.kinds import ARCHIVE_ERRORS, FileKind

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset


def iterate_rows(
    source: str | os.PathLike[str],
    kind: FileKind | None = None,
    split: str = "train",
    configuration: str | None = None,
    first: int = 0,
) -> Iterator[dict[str, Any]]:
    """Read the rows of a dataset one by one, from row number `first` on; a Hub dataset is not downloaded whole.

    Args:
        source: a file, a folder, or the name of a dataset on the Hub.
        kind: of a file; None for the others.
        split: of a folder or Hub dataset. `train[:10%]` and `train+test` work too, but then `datasets` does download
            and keep the whole on disk.
        configuration: of a Hub dataset that has several.
        first: those before it are skipped as `datasets` does it.

    Raises:
        ValueError: a file that is not of its kind, named.

    """
    try:
        dataset = open_dataset(source, kind, split, configuration)
        yield from dataset.skip(first) if first else dataset
    except StopIteration:  # what an empty file raises
        return
    except (ValueError, *ARCHIVE_ERRORS) as error:
        if kind is None:
            raise
        raise ValueError(f"{os.fspath(source)} cannot be read as {kind}: {error}") from error


def open_dataset(
    source: str | os.PathLike[str], kind: FileKind | None, split: str, configuration: str | None
) -> "Dataset | IterableDataset":
    """Return a dataset, arguments as of `iterate_rows`; ImportError without the package `datasets`."""
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ImportError(f"Reading the dataset {source} needs pip install 'modeling-treediff[train]'.") from error
    name = os.fspath(source)
    if kind is not None:
        return load_dataset(kind.format, data_files=name, split="train", streaming=True)
    sliced = bool(set(split) & set("[+"))  # such as train[:10%] or train+test, which datasets does not stream
    return load_dataset(name, configuration, split=split, streaming=not sliced)
