"""Documents from a text file, possibly compressed, or from a dataset on the Hub or on disk."""

import bz2
import gzip
import lzma
import os
import re
from pathlib import Path
from typing import Any

TEXT_SUFFIXES = (".txt", ".md", ".text")
OPENERS: dict[str, Any] = {".xz": lzma.open, ".gz": gzip.open, ".bz2": bz2.open}


def read_documents(
    source: str | os.PathLike, split: str = "train", text_column: str = "text", configuration: str | None = None
) -> list[str]:
    """Read all documents of a corpus.

    Args:
        source: a UTF-8 text file (.txt, .md, .text; also .xz, .gz, .bz2), in which blank lines separate documents;
            or anything `datasets.load_dataset` takes: a Hub id, a folder, a .jsonl, .csv or .parquet file.
        split: the split of a dataset; a text file has only one.
        text_column: the column of a dataset that holds the text.
        configuration: the configuration (subset) of a Hub dataset that has several.

    Returns:
        The documents in the order of the corpus, stripped, without empty ones.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no text in it, bytes that are not UTF-8, or no such column.

    """
    path = Path(source)
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    if set(suffixes) & set(TEXT_SUFFIXES):
        documents = re.split(r"\n\s*\n", _read_text(path))
    else:
        documents = _read_dataset(source, split, text_column, configuration)
    documents = [document.strip() for document in documents]
    documents = [document for document in documents if document]
    if not documents:
        raise ValueError(f"{source} holds no text.")
    return documents


def split_documents(documents: list[str], held_out_every: int) -> tuple[list[str], list[str]]:
    """Hold out every n-th document, spread evenly over the corpus; return (training, held-out) documents.

    Raises:
        ValueError: `held_out_every` is below 2, or there are fewer documents than that.

    """
    if held_out_every < 2:
        raise ValueError(f"One document in {held_out_every} cannot be held out: take 2 or more.")
    held_out = documents[held_out_every - 1 :: held_out_every]
    if not held_out:
        raise ValueError(
            f"{len(documents)} documents are too few to hold out one in {held_out_every}. Separate documents by blank "
            "lines, or give a validation text of its own."
        )
    return [text for index, text in enumerate(documents) if (index + 1) % held_out_every], held_out


def _read_text(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"There is no text file {path}.")
    opener = OPENERS.get(path.suffix.lower(), open)
    try:
        with opener(path, "rb") as stream:
            content = stream.read()
    except (lzma.LZMAError, EOFError, OSError) as error:
        raise ValueError(f"{path} cannot be decompressed: {error}.") from error
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8: byte {error.start} is 0x{content[error.start]:02x}. Convert it first, for example "
            f"with iconv -f latin1 -t utf-8."
        ) from error


def _read_dataset(source: str | os.PathLike, split: str, text_column: str, configuration: str | None) -> list[str]:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ImportError(f"Reading the dataset {source} needs pip install 'modeling-treediff[train]'.") from error
    name, path = os.fspath(source), Path(source)
    loaders = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
    if path.suffix.lower() in loaders:
        if not path.is_file():
            raise FileNotFoundError(f"There is no file {path}.")
        dataset = load_dataset(loaders[path.suffix.lower()], data_files=name, split="train")
    else:
        if path.is_file():
            known = ", ".join([*TEXT_SUFFIXES, *OPENERS, *loaders])
            raise ValueError(f"{path} has an unknown ending; known: {known}. Rename a plain text to .txt.")
        dataset = load_dataset(name, configuration, split=split)
    if text_column not in dataset.column_names:
        raise ValueError(f"{source} has no column {text_column!r}; it has {', '.join(dataset.column_names)}.")
    return [text for text in dataset[text_column] if text]
