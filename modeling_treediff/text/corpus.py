"""A corpus: documents or rows of a file or dataset by its name, with a fingerprint of the content."""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from .documents import check_exists, check_split, file_format, iterate_rows, number_documents
from .text_files import is_text


class TextSource(Protocol):
    """The interface that training reads text by: `Corpus`, or an object like it."""

    def documents(self, first: int = 0) -> Iterator[tuple[int, str]]:
        """Yield (number, text) from document number `first` on, in increasing order."""

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the rows of a dataset."""

    def fingerprint(self) -> str:
        """Return what changes whenever the documents or rows do."""


@dataclass(frozen=True)
class Corpus:
    """A file or dataset of text, read lazily.

    Attributes:
        source: a UTF-8 text file (.txt, .md, .text; also .xz, .gz, .bz2), in which blank lines separate documents; or
            anything `datasets.load_dataset` takes: a Hub id, a folder, a .jsonl, .csv or .parquet file.
        split: the split of a dataset; a file has no other than `train`.
        text_column: the column of a dataset that holds the text.
        configuration: the configuration (subset) of a Hub dataset that has several.

    """

    source: str | os.PathLike[str]
    split: str = "train"
    text_column: str = "text"
    configuration: str | None = None

    def __post_init__(self) -> None:
        """Refuse a split that a file cannot have."""
        check_split(self.source, self.split)

    def __str__(self) -> str:
        return str(self.source)

    def facts(self) -> dict[str, Any]:
        """Return what a record says of it: a file by its name alone, a Hub dataset by its id."""
        path = Path(self.source)
        name = path.name if path.exists() else os.fspath(self.source)
        return {
            "name": name,
            "on_hub": not path.exists(),
            "configuration": self.configuration,
            "split": None if path.is_file() else self.split,
        }

    def documents(self, first: int = 0) -> Iterator[tuple[int, str]]:
        """Read (number, text) from document number `first` on, errors as of `iterate_documents`."""
        return number_documents(self.source, self.split, self.text_column, self.configuration, first=first)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Read the rows of a dataset, all columns.

        Raises:
            ValueError: the source is a text file, which has no rows.

        """
        if is_text(self.source):
            raise ValueError(f"{self.source} is plain text; conversations come from .jsonl, .parquet or the Hub.")
        return iterate_rows(self.source, self.split, self.configuration)

    def fingerprint(self) -> str:
        """Return what changes whenever the documents do: a hash of the content and of how it is read.

        The content of a file is its bytes, a second or two per GB; of anything else it is what `datasets` goes by: the
        commit of a Hub dataset, the times of the files in a local folder. A file of the same content and format under
        another name is the same; one of another format, which its ending tells, is not.

        Raises:
            FileNotFoundError: there is no such file or dataset.

        """
        check_exists(self.source)
        content = self._file_facts() if Path(self.source).is_file() else self._dataset_facts()
        facts = [*content, self.split, self.text_column, self.configuration]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def _file_facts(self) -> list[str]:
        with Path(self.source).open("rb") as stream:
            return [file_format(self.source), hashlib.file_digest(stream, "sha256").hexdigest()]

    def _dataset_facts(self) -> list[str | None]:
        from datasets import load_dataset_builder

        builder = load_dataset_builder(os.fspath(self.source), self.configuration)
        return [builder.name, builder.dataset_name, builder.config_id, builder.hash]
