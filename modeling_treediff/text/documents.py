"""Documents of a corpus, all or one by one, and the rule by which some are held out."""

import os
from collections.abc import Iterator
from typing import Any

from .corpus import Corpus


def read_documents(
    source: str | os.PathLike[str], split: str = "train", text_column: str = "text", **reading: Any
) -> list[str]:
    """Read all documents of a corpus; arguments and errors as of `iterate_documents`."""
    return list(iterate_documents(source, split, text_column, **reading))


def iterate_documents(
    source: str | os.PathLike[str],
    split: str = "train",
    text_column: str = "text",
    max_characters: int | None = None,
    **reading: Any,
) -> Iterator[str]:
    """Read the documents of a corpus one by one.

    Args:
        source: a file, a folder or a Hub id, as of `Corpus`.
        split: the split of a dataset.
        text_column: the column of a dataset that holds the text.
        max_characters: the longest piece of a document, as of `Corpus.documents`; so are what is yielded and raised.
        reading: other fields of `Corpus` by their names.

    """
    corpus = Corpus(source, split, text_column, **reading)
    return (text for _, text in corpus.documents(max_characters=max_characters))


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
            f"{len(documents)} documents are too few to hold out one in {held_out_every}. Say what "
            "bounds them by --documents (document_bounds), or give a validation text of its own."
        )
    return [text for number, text in enumerate(documents) if not is_held_out(number, held_out_every)], held_out
