"""Unknown tokens: what stands in a row of tokens for text that a tokenizer's vocabulary cannot write."""

import numpy as np
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

logger = logging.get_logger(__name__)


def unknown_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the id of the unknown token; None without one.

    Byte-level vocabularies often name their EOS as such, though nothing is unknown to them.
    """
    return None if tokenizer.unk_token_id == tokenizer.eos_token_id else tokenizer.unk_token_id


def count_unknown(token_ids: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> int:
    """Count the unknown tokens among (N,) token ids."""
    unknown = unknown_id(tokenizer)
    return 0 if unknown is None else int(np.count_nonzero(token_ids == unknown))


def unknown_note(unknown: int, tokens: int) -> str:
    """Return what unknown tokens among those of a text mean, in a sentence; nothing if there is none."""
    if not unknown:
        return ""
    return (
        f"{unknown:,} of {tokens:,} tokens ({unknown / tokens:.1%}) are unknown to the tokenizer: what they stand for "
        "is lost, perplexity is low where they are easy to guess, and bits per byte do not compare with those of other "
        "tokenizers"
    )


def warn_of_unknown(unknown: int, tokens: int, name: str) -> None:
    """Warn once of the unknown tokens of a text, if there are any."""
    if note := unknown_note(unknown, tokens):
        logger.warning_once(f"{name}: {note}.")
