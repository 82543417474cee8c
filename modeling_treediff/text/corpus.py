"""A corpus: documents or rows of a file or dataset by its name, with a fingerprint of the content."""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from modeling_treediff.files.kinds import DOCUMENT_BOUNDS, TEXT, FileKind, check_file, file_kind

from .dataset_rows import dataset_builder, iterate_rows
from .document_division import watch_documents
from .text_files import cut_at_spaces, iterate_text
from .tokenizing import PIECE_CHARACTERS

LAYOUT = 1  # of what is read; a new number where the same file gives other documents than before
DEFAULT_BOUNDS = next(iter(DOCUMENT_BOUNDS))
BYTE_ORDER_MARK = "\ufeff"  # what some editors write before a text


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
        source: a UTF-8 text file (.txt, .md, .text), in which blank lines separate documents; a table (.jsonl, .json,
            .csv, .parquet); either may be compressed (.xz, .gz, .bz2 behind the other ending); or anything else that
            `datasets.load_dataset` takes: a folder or a Hub id.
        split: the split of a dataset; a file has no other than `train`.
        text_column: the column of a dataset that holds the text.
        configuration: the configuration (subset) of a Hub dataset that has several.
        text_format: the format of a file whose ending does not say it: `text`, `json`, `csv` or `parquet`.
        document_bounds: what bounds the documents in a text file: `blank-lines`, the default, or `lines`, or
            `whole-file` for none; in a folder of text files `lines` are the default.

    """

    source: str | os.PathLike[str]
    split: str = "train"
    text_column: str = "text"
    configuration: str | None = None
    text_format: str | None = None
    document_bounds: str | None = None

    def __post_init__(self) -> None:
        """Refuse what a file cannot have, and what would be ignored: another format than its own, a split, bounds."""
        if self.document_bounds not in (None, *DOCUMENT_BOUNDS):
            raise ValueError(
                f"Unknown bounds of documents {self.document_bounds!r}; known: {', '.join(DOCUMENT_BOUNDS)}."
            )
        if self.document_bounds is not None and self._kind is not None and not self._is_text:
            raise ValueError(f"Each row of {self.source} is a document: leave out --documents (document_bounds).")
        if self._kind is not None and self.split != "train":
            raise ValueError(
                f"The file {self.source} has no split {self.split!r}: leave the split out, or give another file (as "
                "held-out text with --validation-text)."
            )

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

    def documents(self, first: int = 0, max_characters: int | None = None) -> Iterator[tuple[int, str]]:
        """Read (number, text) from document number `first` on; the corpus is never held whole.

        Numbers count empty documents too, so that a reader can come back to any place. A text file is read from its
        start.

        Args:
            first: number of the first document.
            max_characters: longer documents come in pieces of at most this length, cut at white space where there is
                any, which share a number. It bounds the memory whatever the text file; without it the longest
                document does.

        Yields:
            The documents in the order of the corpus, without empty ones; each without white space around it and
            without a byte-order mark before it, which files that were joined have inside, too.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: no text in it, bytes that are not UTF-8, a damaged archive, a file that holds something else
                than its ending says, no such column, or a max_characters below 1.

        """
        if max_characters is not None and max_characters < 1:
            raise ValueError(f"max_characters must be at least 1, got {max_characters}.")
        documents = self._iterate(first, max_characters)
        return watch_documents(documents, str(self.source)) if first == 0 and self.bounds_are_guessed else documents

    def pieces(self) -> Iterator[str]:
        """Read the texts alone, in pieces as long as they are tokenised; errors as of `documents`."""
        return (text for _, text in self.documents(max_characters=PIECE_CHARACTERS))

    def rows(self) -> Iterator[dict[str, Any]]:
        """Read the rows of a dataset, all columns.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the source is a text file, which has no rows, or holds something else than its ending says.

        """
        if self._is_text:
            raise ValueError(f"{self.source} is plain text; conversations come from .jsonl, .parquet or the Hub.")
        return iterate_rows(self.source, self._checked_kind(), self.split, self.configuration)

    def fingerprint(self) -> str:
        """Return what changes whenever the documents do: a hash of the content and of how it is read.

        The content of a file is its bytes, a second or two per GB; of anything else it is what `datasets` goes by: the
        commit of a Hub dataset, the times of the files in a local folder. A file of the same content and format under
        another name is the same; one of another format, which its ending tells, is not.

        Raises:
            FileNotFoundError: there is no such file or dataset.
            ValueError: a file that holds something else than its ending says.

        """
        kind = self._checked_kind()
        content = self._dataset_facts() if kind is None else self._file_facts(kind)
        bounds = self._bounds if self._is_text else self.document_bounds
        facts = [LAYOUT, *content, self.split, self.text_column, self.configuration, bounds]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    @property
    def _kind(self) -> FileKind | None:
        return file_kind(self.source, self.text_format)

    @property
    def _is_text(self) -> bool:
        return self._kind is not None and self._kind.format == TEXT

    @property
    def _bounds(self) -> str:
        return self.document_bounds or DEFAULT_BOUNDS

    @property
    def bounds_are_guessed(self) -> bool:
        """Whether nobody said what bounds documents of plain text, in a file or in a folder's files."""
        if self.document_bounds is not None:
            return False
        return self._is_text or (Path(self.source).is_dir() and dataset_builder(self.source).name == TEXT)

    def _checked_kind(self) -> FileKind | None:
        if self._kind is not None:
            check_file(Path(self.source), self._kind)
        return self._kind

    def _iterate(self, first: int, max_characters: int | None) -> Iterator[tuple[int, str]]:
        kind = self._checked_kind()
        if kind is not None and self._is_text:
            pieces = iterate_text(Path(self.source), kind, self._bounds, max_characters, first)
        else:
            pieces = self._iterate_column(kind, max_characters, first)
        empty = True
        for number, piece in pieces:
            if text := piece.strip().removeprefix(BYTE_ORDER_MARK).lstrip():
                empty = False
                yield number, text
        if empty and not first:
            raise ValueError(f"{self.source} holds no text.")

    def _iterate_column(
        self, kind: FileKind | None, max_characters: int | None, first: int
    ) -> Iterator[tuple[int, str]]:
        """Yield the texts of a dataset's column with their numbers; the pieces of a text have the same number."""
        rows = iterate_rows(self.source, kind, self.split, self.configuration, self.document_bounds, first)
        for number, row in enumerate(rows, first):
            if number == first and self.text_column not in row:
                raise ValueError(f"{self.source} has no column {self.text_column!r}; it has {', '.join(row)}.")
            text = row.get(self.text_column) or ""
            if not isinstance(text, str):
                raise ValueError(
                    f"The column {self.text_column!r} of {self.source} holds {type(text).__name__}, not text."
                )
            for piece in cut_at_spaces(text, max_characters):
                yield number, piece

    def _file_facts(self, kind: FileKind) -> list[str]:
        with Path(self.source).open("rb") as stream:
            return [str(kind), hashlib.file_digest(stream, "sha256").hexdigest()]

    def _dataset_facts(self) -> list[str | None]:
        builder = dataset_builder(self.source, self.configuration, self.document_bounds)
        return [builder.name, builder.dataset_name, builder.config_id, builder.hash]
