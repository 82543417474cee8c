"""Documents from a text file, possibly compressed, or from a dataset on the Hub or on disk."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .text_files import OPENERS, TEXT_SUFFIXES, cut_at_spaces, is_text, iterate_text

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

DATASET_FILES = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}  # and what reads them


def read_documents(
    source: str | os.PathLike[str], split: str = "train", text_column: str = "text", configuration: str | None = None
) -> list[str]:
    """Read all documents of a corpus; arguments and errors as of `iterate_documents`."""
    return list(iterate_documents(source, split, text_column, configuration))


def iterate_documents(
    source: str | os.PathLike[str],
    split: str = "train",
    text_column: str = "text",
    configuration: str | None = None,
    max_characters: int | None = None,
) -> Iterator[str]:
    """Read the documents of a corpus one by one; the corpus is never held, nor is a Hub dataset downloaded, whole.

    Args:
        source: a UTF-8 text file (.txt, .md, .text; also .xz, .gz, .bz2), in which blank lines separate documents;
            or anything `datasets.load_dataset` takes: a Hub id, a folder, a .jsonl, .csv or .parquet file.
        split: the split of a dataset; a file has only `train`. `train[:10%]` and `train+test` work too, but then
            `datasets` does download and keep the whole on disk.
        text_column: the column of a dataset that holds the text.
        configuration: the configuration (subset) of a Hub dataset that has several.
        max_characters: longer documents come in pieces of at most this length, cut at white space where there is
            any. It bounds the memory whatever the text file; without it the longest document does.

    Yields:
        The documents in the order of the corpus, stripped, without empty ones.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a split of a file, no text in it, bytes that are not UTF-8, a damaged archive, no such column, or
            a max_characters below 1.

    """
    if max_characters is not None and max_characters < 1:
        raise ValueError(f"max_characters must be at least 1, got {max_characters}.")
    for _, document in number_documents(source, split, text_column, configuration, max_characters):
        yield document


def number_documents(
    source: str | os.PathLike[str],
    split: str = "train",
    text_column: str = "text",
    configuration: str | None = None,
    max_characters: int | None = None,
    first: int = 0,
) -> Iterator[tuple[int, str]]:
    """Read documents as `iterate_documents` does, each with its number, from document number `first` on.

    Numbers count empty documents too, so that a reader can come back to any place; the pieces of a document share its
    number. Rows of a dataset before the first are skipped as `datasets` does it; a text file is read from its start.
    """
    check_split(source, split)
    if is_text(source):
        check_exists(source)
        pieces = iterate_text(Path(source), max_characters, first)
    else:
        pieces = _iterate_column(source, split, text_column, configuration, max_characters, first)
    empty = True
    for number, piece in pieces:
        if stripped := piece.strip():
            empty = False
            yield number, stripped
    if empty and not first:
        raise ValueError(f"{source} holds no text.")


def file_format(source: str | os.PathLike[str]) -> str:
    """Return how a file is read, which its ending decides: `text`, `text.xz`, `json`, ...; "" for an unknown one."""
    suffix = Path(source).suffix.lower()
    if is_text(source):
        return "text" + (suffix if suffix in OPENERS else "")
    return DATASET_FILES.get(suffix, "")


def check_exists(source: str | os.PathLike[str]) -> None:
    """Raise FileNotFoundError if a source is a file by its name and there is none."""
    path = Path(source)
    if path.is_file():
        return
    if is_text(source):
        raise FileNotFoundError(f"There is no text file {path}.")
    if path.suffix.lower() in DATASET_FILES:
        raise FileNotFoundError(f"There is no file {path}.")


def check_split(source: str | os.PathLike[str], split: str) -> None:
    """Raise ValueError for a split of a single file: it would be ignored, and the whole file read."""
    is_file = is_text(source) or Path(source).suffix.lower() in DATASET_FILES
    if is_file and split != "train":
        raise ValueError(
            f"The file {source} has no split {split!r}: leave the split out, or give another file (as held-out text "
            "with --validation-text)."
        )


def is_held_out(number: int, hold_out_every: int | None) -> bool:
    """Whether a document or row is for validation: every n-th one is, spread evenly over a corpus."""
    return hold_out_every is not None and (number + 1) % hold_out_every == 0


def split_documents(documents: list[str], held_out_every: int) -> tuple[list[str], list[str]]:
    """Hold out every n-th document, spread evenly over the corpus; return (training, held-out) documents.

    Raises:
        ValueError: `held_out_every` is below 2, or there are fewer documents than that.

    """
    if held_out_every < 2:
        raise ValueError(f"One document in {held_out_every} cannot be held out: take 2 or more.")
    held_out = [text for number, text in enumerate(documents) if is_held_out(number, held_out_every)]
    if not held_out:
        raise ValueError(
            f"{len(documents)} documents are too few to hold out one in {held_out_every}. Separate documents by blank "
            "lines, or give a validation text of its own."
        )
    return [text for number, text in enumerate(documents) if not is_held_out(number, held_out_every)], held_out


def _iterate_column(
    source: str | os.PathLike[str],
    split: str,
    text_column: str,
    configuration: str | None,
    max_characters: int | None,
    first: int,
) -> Iterator[tuple[int, str]]:
    """Yield the texts of a dataset's column with their numbers; the pieces of a text have the same number."""
    for number, row in enumerate(iterate_rows(source, split, configuration, first), first):
        if number == first and text_column not in row:
            raise ValueError(f"{source} has no column {text_column!r}; it has {', '.join(row)}.")
        text = row.get(text_column) or ""
        if not isinstance(text, str):
            raise ValueError(f"The column {text_column!r} of {source} holds {type(text).__name__}, not text.")
        for piece in cut_at_spaces(text, max_characters):
            yield number, piece


def iterate_rows(
    source: str | os.PathLike[str], split: str = "train", configuration: str | None = None, first: int = 0
) -> Iterator[dict[str, Any]]:
    """Read the rows of a dataset one by one, from row number `first` on; arguments as of `iterate_documents`."""
    try:
        dataset = _open_dataset(source, split, configuration)
    except StopIteration:  # what an empty file raises
        return
    yield from dataset.skip(first) if first else dataset


def _open_dataset(source: str | os.PathLike[str], split: str, configuration: str | None) -> "Dataset | IterableDataset":
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ImportError(f"Reading the dataset {source} needs pip install 'modeling-treediff[train]'.") from error
    name, path = os.fspath(source), Path(source)
    if path.suffix.lower() in DATASET_FILES:
        check_exists(path)
        return load_dataset(DATASET_FILES[path.suffix.lower()], data_files=name, split="train", streaming=True)
    if path.is_file():
        known = ", ".join([*TEXT_SUFFIXES, *OPENERS, *DATASET_FILES])
        raise ValueError(f"{path} has an unknown ending; known: {known}. Rename a plain text to .txt.")
    sliced = bool(set(split) & set("[+"))  # such as train[:10%] or train+test, which datasets does not stream
    return load_dataset(name, configuration, split=split, streaming=not sliced)
