"""The text: options that are fields of `Corpus` by the same names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .fields import option

if TYPE_CHECKING:
    from modeling_treediff.text import Corpus


@dataclass(frozen=True)
class Dataset:
    """Split, configuration and columns of a dataset; plain text needs none of them."""

    _argument_group_name = "dataset (a text file needs none of these)"

    split: str = option("train", "split of the dataset")
    configuration: str | None = option(None, "configuration (subset) of a Hub dataset that has several")
    text_column: str = option("text", "column that holds the text")

    def corpus(self, source: str) -> Corpus:
        """Return a text by its file or name, in this split, configuration and column."""
        from modeling_treediff.text import Corpus  # its package imports torch

        return Corpus(source, **vars(self))
