"""Diversity statistics of generated texts, since repetitive text has a low generative perplexity.

A sampler that repeats itself, or draws with too little precision, improves its generative perplexity while entropy and
diversity fall (arXiv 2409.02908); they belong beside every perplexity.
"""

import math
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

LARGEST_DISTINCT = 4
REPEATED_LENGTH = 4

Tokens = Sequence[Hashable]


@dataclass(frozen=True)
class TextStatistics:
    """Diversity within and across texts; comparable between texts of equal lengths.

    Attributes:
        num_texts: texts measured.
        num_tokens: tokens in them.
        entropy: of the tokens that a text consists of, by their shares in it: nats, the mean over the texts. At most
            ln of a text's length.
        entropy_standard_error: of that mean, over texts, in nats; infinite for a single one.
        distinct: distinct-1 to distinct-4: different n-grams / n-grams of all texts together (arXiv 1510.03055), 1 if
            none occurs twice. They fall as the number of texts grows.
        self_repetition: share of the 4-grams that occurred before in the same text, over all texts.

    """

    num_texts: int
    num_tokens: int
    entropy: float
    entropy_standard_error: float
    distinct: tuple[float, ...]
    self_repetition: float


def measure_texts(texts: Sequence[Tokens]) -> TextStatistics:
    """Measure texts given as their tokens, ids or words; an empty text has no entropy and no n-grams.

    Raises:
        ValueError: there is no text.

    """
    if not texts:
        raise ValueError("There is no text to measure.")
    entropies = [token_entropy(text) for text in texts]
    return TextStatistics(
        num_texts=len(texts),
        num_tokens=sum(map(len, texts)),
        entropy=fmean(entropies),
        entropy_standard_error=stdev(entropies) / math.sqrt(len(texts)) if len(texts) > 1 else math.inf,
        distinct=tuple(distinct_share(texts, length) for length in range(1, LARGEST_DISTINCT + 1)),
        self_repetition=self_repetition(texts, REPEATED_LENGTH),
    )


def token_entropy(text: Tokens) -> float:
    """Return the entropy of the tokens' shares in a text, in nats: 0 if all are the same, ln(length) if none is."""
    return math.log(len(text)) - sum(n * math.log(n) for n in Counter(text).values()) / len(text) if text else 0.0


def distinct_share(texts: Sequence[Tokens], length: int) -> float:
    """Return distinct n-grams / n-grams of all texts; none crosses from one text to the next. 0 if there is none."""
    grams = [gram for text in texts for gram in _grams(text, length)]
    return len(set(grams)) / len(grams) if grams else 0.0


def self_repetition(texts: Sequence[Tokens], length: int) -> float:
    """Return the share of the n-grams of all texts that occurred before in the same text. 0 if there is none."""
    grams = [list(_grams(text, length)) for text in texts]
    total = sum(map(len, grams))
    return 1 - sum(len(set(some)) for some in grams) / total if total else 0.0


def _grams(text: Tokens, length: int) -> Iterator[tuple[Hashable, ...]]:
    """Yield the n-grams of a text, `length` tokens each, one starting at each place."""
    return zip(*(text[start:] for start in range(length)), strict=False)
