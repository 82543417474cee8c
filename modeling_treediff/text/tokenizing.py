"""Documents -> token ids, a bounded amount of text at a time."""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TypeVar

import numpy as np
from transformers import PreTrainedTokenizerBase

from modeling_treediff.files.utf8 import check_utf8
from modeling_treediff.text.mask_token import refuse_mask

PIECE_CHARACTERS = 2**18  # longer documents are tokenised in pieces
BATCH_CHARACTERS = 2**20  # of pieces that are tokenised together, on all cores

Item = TypeVar("Item")


class TokenPiece(NamedTuple):
    """Consecutive tokens of a document.

    Attributes:
        document: its number.
        offset: where in the document's tokens they begin.
        token_ids: (N,) int32; the last ones of a document end with EOS if that was asked for.
        epoch: which reading of the corpus it is, where that is read again and again.

    """

    document: int
    offset: int
    token_ids: np.ndarray
    epoch: int = 0


def tokenize_pieces(
    documents: Iterable[tuple[int, str]], tokenizer: PreTrainedTokenizerBase, eos: bool = True, whole: bool = False
) -> Iterator[TokenPiece]:
    """Tokenise documents; memory does not grow with their number, nor with their length unless they stay whole.

    It is the one place where text becomes tokens to learn, to count or to measure. No special token is added but EOS.

    Args:
        documents: each with its number; they are read as they are needed.
        tokenizer: fast or slow; a fast one works on the documents of a batch in parallel.
        eos: put the end-of-sequence token after each document.
        whole: give each document to the tokenizer at once. Otherwise those above `PIECE_CHARACTERS` are cut before
            white space, where tokens of most tokenizers begin anyway.

    Raises:
        ValueError: EOS is asked for and the tokenizer has none, or a text holds the tokenizer's mask or is no
            Unicode.

    """
    end = [end_of_sequence(tokenizer)] if eos else []
    offset = 0
    for batch in gather(_cut_documents(documents, whole), BATCH_CHARACTERS, lambda piece: len(piece[1])):
        texts = [text for _, text, _ in batch]
        encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
        for (document, _, is_last), ids in zip(batch, encoded, strict=True):
            token_ids = np.array([*ids, *end] if is_last else ids, np.int32)
            refuse_mask(token_ids, tokenizer, f"Document {document} (counted from 0)")
            yield TokenPiece(document, offset, token_ids)
            offset = 0 if is_last else offset + len(token_ids)


def tokenize_documents(documents: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """Return all documents as one row of token ids (int32), each followed by the end-of-sequence token."""
    return np.concatenate([piece.token_ids for piece in tokenize_pieces(enumerate(documents), tokenizer)])


def encode_documents(tokenizer: PreTrainedTokenizerBase, documents: Iterable[str]) -> Iterator[np.ndarray]:
    """Yield the tokens (T,) int32 of each document, in order and without EOS; errors as of `tokenize_pieces`.

    About a million characters are held at once, but each document whole, so very long ones are best given in pieces of
    PIECE_CHARACTERS. To show progress, wrap `documents` in a bar; they are read as they are needed.
    """
    return (piece.token_ids for piece in tokenize_pieces(enumerate(documents), tokenizer, eos=False, whole=True))


def end_of_sequence(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id of the token that ends a document; ValueError if the tokenizer has none."""
    if tokenizer.eos_token_id is None:
        raise ValueError("The tokenizer has no eos_token; documents need one between them.")
    return int(tokenizer.eos_token_id)


def token_type(tokenizer: PreTrainedTokenizerBase) -> np.dtype:
    """Return the smallest integer type that holds all token ids."""
    return np.min_scalar_type(len(tokenizer) - 1)


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a hash of all that decides on the tokens of a text: vocabulary, merges, normalisation, chat template."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        rules = json.loads(backend.to_str())
        rules = {name: rule for name, rule in rules.items() if name not in ("truncation", "padding")}
    else:
        rules = {"vocabulary": sorted(tokenizer.get_vocab().items()), "settings": repr(tokenizer.init_kwargs)}
    facts = [type(tokenizer).__name__, rules, tokenizer.eos_token_id, repr(tokenizer.chat_template)]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _cut_documents(documents: Iterable[tuple[int, str]], whole: bool) -> Iterator[tuple[int, str, bool]]:
    """Yield (document, piece of its text, whether it is the last one)."""
    for number, text in documents:
        pieces = [text] if whole else cut_text(text, PIECE_CHARACTERS)
        for index, piece in enumerate(pieces, 1):
            check_utf8(piece)
            yield number, piece, index == len(pieces)


def gather(items: Iterable[Item], limit: int, size: Callable[[Item], int]) -> Iterator[list[Item]]:
    """Gather items into lists whose sizes, and one for each item, add up to `limit` or, by the last one, to more."""
    batch: list[Item] = []
    total = 0
    for item in items:
        batch.append(item)
        total += size(item) + 1
        if total >= limit:
            yield batch
            batch, total = [], 0
    if batch:
        yield batch


def cut_text(text: str, length: int) -> list[str]:
    """Cut a text into pieces of at most `length` characters, before white space where there is any; none is lost."""
    pieces, start = [], 0
    while len(text) - start > length:
        end = start + length
        space = max((match.start() for match in re.finditer(r"\s+", text[start + 1 : end + 1])), default=length - 1)
        pieces.append(text[start : start + 1 + space])
        start += 1 + space
    return [*pieces, text[start:]]
