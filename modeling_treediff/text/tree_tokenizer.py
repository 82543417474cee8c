"""A tree's tokenizer: loading it, its size, and whether the tree was built for it."""

import hashlib
import json
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging

from modeling_treediff.vocabulary_tree import VocabularyTree

from .mask_token import MASK_TOKEN

logger = logging.get_logger(__name__)


def load_tokenizer(name: str, trust_remote_code: bool = False, **hub_kwargs: Any) -> PreTrainedTokenizerBase:
    """Load a tokenizer, without running code of its repository unless that is trusted; OSError if it cannot be."""
    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code, **hub_kwargs)
    except Exception as error:  # a damaged file fails in many ways
        if not trust_remote_code and "trust_remote_code" in str(error):
            raise OSError(
                f"The tokenizer of {name} brings code of its own. If you trust its authors, run it by "
                "--trust-remote-code (trust_remote_code=True)."
            ) from error
        if Path(name).is_dir() and not any(Path(name).glob("tokenizer*")):  # as `save_pretrained` of a model leaves it
            raise OSError(
                f"No tokenizer could be loaded from {name}: this folder has none. Save the one that its model or tree "
                "was made with there, by its save_pretrained; `save_checkpoint` saves both."
            ) from error
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


def vocabulary_sha256(tokenizer: PreTrainedTokenizerBase) -> str:
    """Fingerprint of which token has which id; a mask behind all others, `<|mask|>`, does not count."""
    size = tokenizer_size(tokenizer)
    tokens = sorted((token_id, str(token)) for token, token_id in tokenizer.get_vocab().items() if token_id < size)
    return hashlib.sha256(json.dumps(tokens).encode()).hexdigest()


def tokenizer_facts(name: str, tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """Return what a tree's metadata record of the tokenizer whose tokens are its leaves."""
    return {"tokenizer": name, "tokenizer_sha256": vocabulary_sha256(tokenizer)}


def check_tokenizer(tree: VocabularyTree, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ValueError unless the tokenizer's ids are the tree's leaves, and those that it was built for.

    A tree whose metadata has no `tokenizer_sha256` is only warned of: the number of ids alone can be compared.
    """
    size, recorded = tokenizer_size(tokenizer), tree.metadata.get("tokenizer_sha256")
    hint = (
        "Build a tree for this tokenizer, or load the tokenizer the tree was built for "
        f"({tree.metadata.get('tokenizer', 'not recorded')})."
    )
    if size != tree.vocab_size:
        raise ValueError(
            f"The tree has {tree.vocab_size} leaves but the tokenizer has {size} token ids: a leaf's id is its token "
            f"id. {hint}"
        )
    if recorded is None:
        logger.warning_once(
            "The tree does not record which token has which id (tokenizer_sha256 in its metadata), so another "
            "tokenizer of the same size would not be noticed. Trees built by `treediff build-tree` do."
        )
    elif recorded != vocabulary_sha256(tokenizer):
        raise ValueError(f"The tokenizer has other tokens at its {size} ids than the tree was built for. {hint}")


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
