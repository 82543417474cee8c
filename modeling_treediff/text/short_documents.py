"""Documents that look wrongly divided: a warning where nobody said what bounds them."""

from collections.abc import Iterator
from statistics import median

from transformers.utils import logging

CHECKED = 1000  # documents at the beginning of a text
SHORT = 200  # characters of a document; half of them are longer in most texts that are no lists of lines

logger = logging.get_logger(__name__)


def watch_documents(documents: Iterator[tuple[int, str]], name: str) -> Iterator[tuple[int, str]]:
    """Pass on the documents of a text, and warn once if it has a single one of many lines, or mostly very short ones.

    Args:
        documents: number and text, from the first document on; pieces of one share its number.
        name: of the text, for the warning.

    """
    lengths: dict[int, int] = {}
    lines, checked = False, False
    for number, text in documents:
        if not checked:
            lengths[number] = lengths.get(number, 0) + len(text)
            lines |= "\n" in text
            if checked := len(lengths) >= CHECKED:
                _warn_of_short(lengths, name)
        yield number, text
    if len(lengths) == 1 and lines:
        logger.warning_once(
            f"{name} is read as one document, since no blank line is in it. If each of its lines is a document, give "
            "--documents lines (document_bounds); if not, --documents whole-file."
        )
    elif not checked:
        _warn_of_short(lengths, name)


def _warn_of_short(lengths: dict[int, int], name: str) -> None:
    if len(lengths) > 1 and median(lengths.values()) < SHORT:
        logger.warning_once(
            f"Of the first {len(lengths)} documents of {name}, half have less than {SHORT} characters: what bounds "
            "them may be paragraphs, verses or lines. Give --documents (document_bounds): blank-lines, lines or "
            "whole-file."
        )
