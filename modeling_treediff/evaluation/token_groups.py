"""Partitions of the tokens of a text: by frequency, by what they are, by their place in a word, by capitals.

Shape legend: N tokens of a text, V tokens of the vocabulary.
"""

from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from modeling_treediff.text import KINDS, SPACE, token_kinds, token_names

DECILES = 10
# Articles, pronouns, prepositions, conjunctions, auxiliaries and particles of English.
FUNCTION_WORDS = frozenset(
    "a about above after again against all am among an and any are as at be because been before being below between "
    "both but by can could did do does doing down during each either every few for from further had has have having "
    "he her here hers herself him himself his how i if in into is it its itself may me might mine more most must my "
    "myself neither no nor not of off on once only or other our ours ourselves out over own same shall she should "
    "so some such than that the their theirs them themselves then there these they this those though through to too "
    "under until up upon us very was we were what when where whether which while who whom whose why will with "
    "within without would yet you your yours yourself yourselves".split()
)
WORD_PLACES = (
    "function word",
    "other word in one token",
    "first token of a longer word",
    "later token of a word",
    "no word",
)
CAPITALS = ("capitalised word start", "other word start", "no word start")


@dataclass(frozen=True)
class Grouping:
    """One partition of the tokens of a text.

    Attributes:
        name: what it goes by.
        groups: names of its parts.
        index: (N,) the part that each token belongs to.

    """

    name: str
    groups: tuple[str, ...]
    index: np.ndarray


def group_tokens(
    token_ids: np.ndarray, tokenizer: PreTrainedTokenizerBase, vocab_size: int, token_counts: np.ndarray
) -> list[Grouping]:
    """Return every partition of a row of tokens.

    Words are runs of Latin tokens, the first of which may follow anything but a Latin token or bear the sign of a word
    start. They are told from each other by the tokens on both sides; a function word is one of FUNCTION_WORDS in one
    token, in any case.

    Args:
        token_ids: (N,) a text.
        tokenizer: its tokenizer.
        vocab_size: V.
        token_counts: (V,) what says how frequent each token is.

    """
    kind_N = token_kinds(tokenizer, vocab_size)[token_ids]
    names = token_names(tokenizer, vocab_size)
    begins_N, continues_N = _word_places(kind_N)
    letters = [name.removeprefix(SPACE) for name in names]
    function_V = np.array([text.lower() in FUNCTION_WORDS for text in letters])
    capital_V = np.array([text[:1].isupper() for text in letters])
    goes_on_N = np.append(continues_N[1:], False)
    word_N = np.select(
        [begins_N & ~goes_on_N & function_V[token_ids], begins_N & ~goes_on_N, begins_N, continues_N], range(4), 4
    )
    capital_N = np.select([begins_N & capital_V[token_ids], begins_N], range(2), 2)
    return [
        Grouping("frequency", _decile_names(), frequency_deciles(token_counts)[token_ids]),
        Grouping("kind of token", KINDS, kind_N),
        Grouping("place in a word", WORD_PLACES, word_N),
        Grouping("capitals", CAPITALS, capital_N),
    ]


def frequency_deciles(token_counts: np.ndarray) -> np.ndarray:
    """Return (V,) 0..9: the tenth of the text that the middle of each token's occurrences falls into.

    Tokens are put in order, the most frequent first and equals by their id; so each tenth holds about as many tokens
    of the text, the first one few different ones. What never occurs is in the last.
    """
    order_V = np.argsort(-token_counts, kind="stable")
    sorted_V = token_counts[order_V]
    middle_V = (sorted_V.cumsum() - sorted_V / 2) / sorted_V.sum()
    decile_V = np.empty(len(token_counts), dtype=np.int64)
    decile_V[order_V] = np.where(sorted_V > 0, (middle_V * DECILES).astype(np.int64), DECILES - 1)
    return decile_V


def _decile_names() -> tuple[str, ...]:
    ends = {0: " (most frequent)", DECILES - 1: " (rarest)"}
    return tuple(f"tenth {index + 1}{ends.get(index, '')}" for index in range(DECILES))


def _word_places(kind_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (N,) whether a token begins a Latin word, and whether it goes on with one."""
    start_N, later_N = (kind_N == KINDS.index(f"Latin {name}") for name in ("word start", "continuation"))
    after_letters_N = np.append(False, (start_N | later_N)[:-1])
    return start_N | (later_N & ~after_letters_N), later_N & after_letters_N
