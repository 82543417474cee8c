"""Documents -> token ids, a bounded amount of text at a time."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from transformers import PreTrainedTokenizerBase

from modeling_treediff.text.mask_token import refuse_mask

PIECE_CHARACTERS = 2**18  # longer documents are tokenised in pieces
BATCH_CHARACTERS = 2**20  # of pieces that are tokenised together, on all cores


class TextSource(Protocol):
    """What training reads: `modeling_treediff.corpora.Corpus`, or anything like it."""

    def documents(self, first: int = 0) -> Iterator[tuple[int, str]]:
        """Yield (number, text) from document number `first` on, in increasing order."""

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the rows of a dataset."""

    def fingerprint(self) -> str:
        """Return what changes whenever the content does."""


class TokenPiece(NamedTuple):
    """Consecutive tokens of a document.

    Attributes:
        document: its number.
        offset: where in the document's tokens they begin.
        token_ids: (N,) int32; the last ones of a document end with EOS.

    """

    document: int
    offset: int
    token_ids: np.ndarray


def tokenize_pieces(documents: Iterable[tuple[int, str]], tokenizer: PreTrainedTokenizerBase) -> Iterator[TokenPiece]:
    """Tokenise documents, each followed by the end-of-sequence token; memory does not grow with their number or length.

    Documents above `PIECE_CHARACTERS` are cut before white space, where tokens of most tokenizers begin anyway.

    Raises:
        ValueError: the tokenizer has no end-of-sequence token to separate documents with, or a text holds its mask.

    """
    end = end_of_sequence(tokenizer)
    offset = 0
    for batch in _batches(documents):
        texts = [text for _, text, _ in batch]
        encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
        for (document, _, is_last), ids in zip(batch, encoded, strict=True):
            token_ids = np.array([*ids, end] if is_last else ids, np.int32)
            refuse_mask(token_ids, tokenizer, f"Document {document}")
            yield TokenPiece(document, offset, token_ids)
            offset = 0 if is_last else offset + len(token_ids)


def tokenize_documents(documents: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """Return all documents as one row of token ids (int32), each followed by the end-of-sequence token."""
    return np.concatenate([piece.token_ids for piece in tokenize_pieces(enumerate(documents), tokenizer)])


def is_held_out(number: int, hold_out_every: int | None) -> bool:
    """Whether a document or row is for validation: every n-th one is, spread evenly over a corpus."""
    return hold_out_every is not None and (number + 1) % hold_out_every == 0


def end_of_sequence(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id of the token that ends a document; ValueError if the tokenizer has none."""
    if tokenizer.eos_token_id is None:
        raise ValueError("The tokenizer has no eos_token; documents need one between them.")
    return tokenizer.eos_token_id


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


def _batches(documents: Iterable[tuple[int, str]]) -> Iterator[list[tuple[int, str, bool]]]:
    """Gather (document, piece of its text, whether it is the last one) until there is enough to tokenise."""
    batch, characters = [], 0
    for number, text in documents:
        pieces = cut_text(text, PIECE_CHARACTERS)
        for index, piece in enumerate(pieces, 1):
            batch.append((number, piece, index == len(pieces)))
            characters += len(piece)
            if characters >= BATCH_CHARACTERS:
                yield batch
                batch, characters = [], 0
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
