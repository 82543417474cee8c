"""The text: options that are fields of `Corpus` by the same names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from modeling_treediff.files.kinds import DOCUMENT_BOUNDS, FORMATS

from .fields import option

if TYPE_CHECKING:
    from modeling_treediff.text import Corpus


@dataclass(frozen=True)
class Dataset:
    """How texts are read: columns and split of a dataset, and the format of a file."""

    _argument_group_name = "reading of texts (a .txt file needs none of these)"

    split: str = option("train", "split of the dataset")
    configuration: str | None = option(None, "configuration (subset) of a Hub dataset that has several")
    text_column: str = option("text", "column that holds the text")
    text_format: str | None = option(None, "format of a file whose ending does not say it", choices=FORMATS)
    document_bounds: str | None = option(
        None,
        "what bounds the documents in text files (default: blank-lines; of a folder lines)",
        flag="documents",
        choices=tuple(DOCUMENT_BOUNDS),
    )

    def corpus(self, source: str) -> Corpus:
        """Return a text by its file or name, read like this."""
        from modeling_treediff.text import Corpus  # its package imports torch

        return Corpus(source, **vars(self))
