"""Documents that look wrongly divided: a warning where nobody said what bounds them."""

from collections import Counter
from collections.abc import Iterator, Mapping
from statistics import median

from transformers.utils import logging

CHECKED = 1000  # documents at the beginning of a text
SHORT = 200  # characters of a document; half of them are longer in most texts that are no lists of lines
SINGLE, SHORT_OF = "single document", "short documents"  # counts of a text

logger = logging.get_logger(__name__)


def watch_documents(documents: Iterator[tuple[int, str]], name: str) -> Iterator[tuple[int, str]]:
    """Pass on the documents of a text, and warn once if their division looks wrong.

    Args:
        documents: number and text, from the first document on; pieces of one share its number.
        name: of the text, for the warning.

    """
    counts: Counter[str] = Counter()
    for document in count_division(documents, counts):
        if counts:
            warn_of_division(counts, name)
            counts.clear()
        yield document
    warn_of_division(counts, name)


def count_division(documents: Iterator[tuple[int, str]], counts: Counter[str]) -> Iterator[tuple[int, str]]:
    """Pass on documents, and count them if they are a single one of many lines, or mostly very short ones.

    Args:
        documents: as of `watch_documents`.
        counts: gets SINGLE, or as SHORT_OF the number of documents looked at; nothing if the division looks right.

    """
    lengths: dict[int, int] = {}
    lines, checked = False, False
    for number, text in documents:
        if not checked:
            lengths[number] = lengths.get(number, 0) + len(text)
            lines |= "\n" in text
            if checked := len(lengths) >= CHECKED:
                _count_short(lengths, counts)
        yield number, text
    if len(lengths) == 1 and lines:
        counts[SINGLE] = 1
    elif not checked:
        _count_short(lengths, counts)


def warn_of_division(counts: Mapping[str, int], name: str) -> None:
    """Warn once of what `count_division` counted in the text of this name, if anything."""
    if counts.get(SINGLE):
        logger.warning_once(
            f"{name} is read as one document, since no blank line is in it. If each of its lines is a document, give "
            "--documents lines (document_bounds); if not, --documents whole-file."
        )
    elif number := counts.get(SHORT_OF):
        logger.warning_once(
            f"Of the first {number} documents of {name}, half have less than {SHORT} characters: what bounds "
            "them may be paragraphs, verses or lines. Give --documents (document_bounds): blank-lines, lines or "
            "whole-file."
        )


def _count_short(lengths: dict[int, int], counts: Counter[str]) -> None:
    if len(lengths) > 1 and median(lengths.values()) < SHORT:
        counts[SHORT_OF] = len(lengths)
