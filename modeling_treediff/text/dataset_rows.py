"""Rows of a dataset: of a table in a file, of a folder, or of a repository on the Hub."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from modeling_treediff.files.kinds import ARCHIVE_ERRORS, DOCUMENT_BOUNDS, FileKind
from modeling_treediff.files.sources import check_source

if TYPE_CHECKING:
    from datasets import Dataset, DatasetBuilder, IterableDataset

SAMPLE_BY = dict(zip(DOCUMENT_BOUNDS, ("paragraph", "line", "document"), strict=True))  # as `datasets` calls them


def iterate_rows(
    source: str | os.PathLike[str],
    kind: FileKind | None = None,
    split: str = "train",
    configuration: str | None = None,
    bounds: str | None = None,
    first: int = 0,
) -> Iterator[dict[str, Any]]:
    """Read the rows of a dataset one by one, from row number `first` on; a Hub dataset is not downloaded whole.

    Args:
        source: a file, a folder, or the name of a dataset on the Hub.
        kind: of a file; None for the others.
        split: of a folder or Hub dataset. `train[:10%]` and `train+test` work too, but then `datasets` does download
            and keep the whole on disk.
        configuration: of a Hub dataset that has several.
        bounds: of the documents in text files of a folder or Hub dataset, one of DOCUMENT_BOUNDS; by default lines.
        first: those before it are skipped as `datasets` does it.

    Raises:
        ImportError: the package `datasets` is not there.
        OSError: nothing of this name.
        ValueError: a file that is not of its kind, or bounds for what is no text.

    """
    with _plain_errors(source, kind):
        try:
            dataset = _open_dataset(source, kind, split, configuration, bounds)
            yield from dataset.skip(first) if first else dataset
        except StopIteration:  # what an empty file raises
            return


def dataset_builder(
    source: str | os.PathLike[str], configuration: str | None = None, bounds: str | None = None
) -> "DatasetBuilder":
    """Return what reads a folder or Hub dataset, with its hash; arguments and errors as of `iterate_rows`."""
    with _plain_errors(source):
        from datasets import load_dataset_builder

        return load_dataset_builder(_checked(source), configuration, **_text_options(bounds))


def _open_dataset(
    source: str | os.PathLike[str], kind: FileKind | None, split: str, configuration: str | None, bounds: str | None
) -> "Dataset | IterableDataset":
    from datasets import load_dataset

    if kind is not None:
        return load_dataset(kind.format, data_files=os.fspath(source), split="train", streaming=True)
    sliced = bool(set(split) & set("[+"))  # such as train[:10%] or train+test, which datasets does not stream
    return load_dataset(_checked(source), configuration, split=split, streaming=not sliced, **_text_options(bounds))


def _checked(source: str | os.PathLike[str]) -> str:
    name = os.fspath(source)
    return name if "://" in name else check_source(name, "dataset", "dataset")


def _text_options(bounds: str | None) -> dict[str, str]:
    return {} if bounds is None else {"sample_by": SAMPLE_BY[bounds]}


@contextmanager
def _plain_errors(source: str | os.PathLike[str], kind: FileKind | None = None) -> Iterator[None]:
    """Say in a sentence what `datasets` raises, or that it is not there."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ImportError(f"Reading the dataset {source} needs pip install 'modeling-treediff[train]'.") from error
    except (ValueError, *ARCHIVE_ERRORS) as error:
        if "doesn't have a 'sample_by' key" in str(error):
            raise ValueError(f"Each row of {source} is a document: leave out --documents (document_bounds).") from error
        if kind is None:
            raise
        raise ValueError(f"{source} cannot be read as {kind}: {error}") from error
