"""A tree's tokenizer: loading it, its size, and whether the tree was built for it."""

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from modeling_treediff.vocabulary_tree import VocabularyTree

from .mask_token import MASK_TOKEN


def load_tokenizer(name: str, **hub_kwargs: Any) -> PreTrainedTokenizerBase:
    """Load a tokenizer; raise OSError, naming it, if its files are wrong."""
    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False, **hub_kwargs)
    except Exception as error:  # a damaged file fails in many ways
        raise OSError(f"No tokenizer could be loaded from {name}: {error}") from error


def tokenizer_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the largest token id of a tokenizer plus one: V of a tree for it, whose leaves are token ids.

    Added tokens count, but not the mask behind all others that a saved model's tokenizer has. Where no token has some
    of the ids below, as in several vocabularies of GPT-4's kind, it is more than `len(tokenizer)`; the leaves of the
    missing ids are never used.
    """
    size = max(tokenizer.get_vocab().values(), default=-1) + 1
    has_root = tokenizer.mask_token == MASK_TOKEN and tokenizer.mask_token_id == size - 1
    return int(size - has_root)


def most_rows(vocab_size: int) -> int:
    """Return the most rows that a checkpoint's embeddings may have for a vocabulary of this size, with padding."""
    return vocab_size + max(1024, vocab_size // 20)


def check_tokenizer(tree: VocabularyTree, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ValueError unless the tokenizer's ids, as `tokenizer_size` counts them, are exactly the tree's leaves."""
    size = tokenizer_size(tokenizer)
    if size != tree.vocab_size:
        raise ValueError(
            f"The tree has {tree.vocab_size} leaves but the tokenizer has {size} token ids: a leaf's id is its token "
            "id. Build a tree for this tokenizer, or load the tokenizer the tree was built for "
            f"({tree.metadata.get('tokenizer', 'not recorded')})."
        )


def write_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path, max_length: int | None = None) -> None:
    """Write a tokenizer, less what transformers notes of the place it was loaded from: that is no part of it.

    Args:
        tokenizer: stays as it is.
        folder: where to.
        max_length: positions of the model that it is saved with, to which `truncation=True` cuts a text.

    """
    for name in ("is_local", "local_files_only"):
        tokenizer.init_kwargs.pop(name, None)
    before = tokenizer.model_max_length
    tokenizer.model_max_length = min(before, max_length or before)
    try:
        tokenizer.save_pretrained(folder)
    finally:
        tokenizer.model_max_length = before
