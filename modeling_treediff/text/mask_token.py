"""The mask in a tokenizer: a token for the tree's root, so that a text can hold open positions."""

import copy
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from transformers import AddedToken, PreTrainedTokenizerBase

MASK_TOKEN = "<|mask|>"
GAP = "<|gap|>"  # as the mask, but for the white space before it
SPACES = ("Ġ", "▁", " ")  # what tokens that begin with their space begin with

Tokenizer = TypeVar("Tokenizer", bound=PreTrainedTokenizerBase)


def with_mask_token(tokenizer: Tokenizer, vocab_size: int) -> Tokenizer:
    """Return a copy of a tokenizer whose mask token has the id of the tree's root, V; itself if it has that one.

    The new token, `<|mask|>`, also replaces a mask token of the vocabulary, such as BERT's, which is a leaf like any
    other. As in RoBERTa it takes the white space before it along: in vocabularies whose words begin with their space
    that is a part of what the mask stands for.

    Args:
        tokenizer: the tokenizer of a tree.
        vocab_size: V of that tree.

    Raises:
        ValueError: the new token cannot have the id V: other tokens than 0..V-1, or one of that name among them.

    """
    if tokenizer.mask_token_id == vocab_size:
        return tokenizer
    masked = copy.deepcopy(tokenizer)
    masked.add_special_tokens({"mask_token": AddedToken(MASK_TOKEN, lstrip=True, normalized=False, special=True)})
    if masked.mask_token_id != vocab_size:
        raise ValueError(
            f"The tokenizer gives {MASK_TOKEN} the id {masked.mask_token_id}, but the tree's root has {vocab_size}: "
            f"its tokens are not exactly 0..{vocab_size - 1}, or one of them is called {MASK_TOKEN}."
        )
    return masked


def nodes_with_gaps(text: str, tokenizer: PreTrainedTokenizerBase, root: int) -> list[int]:
    """Return the tokens of a text whose every `_` is an open position, the node `root`.

    The text is tokenised once, with gaps in it: what follows one is tokenised as in the middle of a text. Where words
    begin with their space, one space before a gap belongs to it, so that none is doubled; line breaks, tabs and further
    spaces stay.

    Args:
        text: without `_` it has no gap.
        tokenizer: of the model's tree; a copy gets a token for the gaps.
        root: the id of the tree's root, V.

    """
    gapped = copy.deepcopy(tokenizer)
    gapped.add_tokens(AddedToken(GAP, normalized=False, special=True), special_tokens=True)
    if _words_begin_with_spaces(tokenizer):
        text = text.replace(" _", "_")
    text = text.replace("_", GAP)
    token_ids = gapped(text, add_special_tokens=False, verbose=False)["input_ids"]
    # By name: where ids are missing below V, another token may have the gap's.
    names = gapped.tokenize(text, add_special_tokens=False)
    return [root if name == GAP else one for name, one in zip(names, token_ids, strict=True)]


def _words_begin_with_spaces(tokenizer: PreTrainedTokenizerBase) -> bool:
    return any(len(name) > 1 and name.startswith(SPACES) for name in tokenizer.get_vocab())


def refuse_mask(token_ids: Sequence[int] | np.ndarray, tokenizer: PreTrainedTokenizerBase, place: str) -> None:
    """Raise ValueError, naming the place, if a text to learn or to measure holds the mask: it is no token of a text."""
    if tokenizer.mask_token == MASK_TOKEN and tokenizer.mask_token_id in token_ids:
        raise ValueError(
            f"{place} contains {MASK_TOKEN}, which this tokenizer takes for an open position: take it out of the text, "
            "or use the tokenizer of the tree, which has no such token."
        )
