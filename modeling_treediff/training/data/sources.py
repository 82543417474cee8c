"""Training and validation windows of corpora, cached or streamed."""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
from accelerate import PartialState
from transformers import PreTrainedTokenizerBase

from modeling_treediff.text import (
    Corpus,
    TextSource,
    TokenWindows,
    is_held_out,
    pack_windows,
    tokenize_pieces,
    tokenizer_fingerprint,
)
from modeling_treediff.text.cached_tokens import CacheEntry, Chunk, cached_tokens
from modeling_treediff.text.document_division import count_division, warn_of_division
from modeling_treediff.text.tokenizing import TokenPiece, end_of_sequence, token_type
from modeling_treediff.text.unknown_tokens import count_unknown, warn_of_unknown

from .chat import EXAMPLES, NOT_FOUND, REFUSED, chat_windows, check_chat_template
from .options import DataOptions
from .streaming import StreamedWindows

TRAINING, HELD_OUT = "training", "held_out"
TOKENS, UNKNOWN = "tokens", "unknown tokens"  # counts of a text
STREAMED_HELD_OUT_WINDOWS = 512

Windows = TokenWindows | StreamedWindows  # what a run trains on

logger = logging.getLogger(__name__)


def open_training_data(
    corpus: TextSource, tokenizer: PreTrainedTokenizerBase, options: DataOptions, validation: TextSource | None = None
) -> tuple[Windows, TokenWindows]:
    """Return what to train on and what to validate on.

    Texts are tokenised once, into Arrow files of `datasets` that later runs and other processes find again and map into
    memory, for as long as the text, how it is read and the tokenizer are the same. Every process calls this.

    Args:
        corpus: the training text, a `modeling_treediff.text.Corpus`.
        tokenizer: the tree's.
        options: how its documents become windows.
        validation: the held-out text; by default every n-th document of the corpus, in streaming the first
            `STREAMED_HELD_OUT_WINDOWS` windows of these.

    Raises:
        ValueError: no EOS token or chat template, no text, less than a window of it, or nothing to hold out.
        FileNotFoundError: there is no such text.

    """
    end_of_sequence(tokenizer)
    if options.chat:
        check_chat_template(tokenizer)
    every = options.hold_out_every if validation is None else None
    if options.streaming:
        stream = StreamedWindows(corpus, tokenizer, options.sequence_length, options.separate_documents, every)
        return stream, _whole(validation, tokenizer, options) if validation else _held_out_of_stream(stream)
    entry = _cached(corpus, tokenizer, options, every)
    if validation is None and TRAINING in entry.parts and HELD_OUT not in entry.parts:
        raise _too_few(corpus, every)
    training = _windows(entry, TRAINING, options, f"training text {corpus}")
    if validation is not None:
        return training, _whole(validation, tokenizer, options)
    return training, _windows(entry, HELD_OUT, options, f"held-out part of {corpus}")


def _too_few(corpus: TextSource, hold_out_every: int | None) -> ValueError:
    bounds = "Say what bounds them (--documents), or give" if _bounds_are_guessed(corpus) else "Give"
    return ValueError(
        f"{corpus} has too few documents to hold out one in {hold_out_every}. {bounds} a validation text of its own "
        "(--validation-text)."
    )


def _bounds_are_guessed(corpus: TextSource) -> bool:
    """Whether a corpus is a text that nobody said the bounds of its documents of; other objects know their own."""
    return isinstance(corpus, Corpus) and corpus.bounds_are_guessed


def _whole(corpus: TextSource, tokenizer: PreTrainedTokenizerBase, options: DataOptions) -> TokenWindows:
    """Return all windows of a held-out text."""
    return _windows(_cached(corpus, tokenizer, options, None), TRAINING, options, f"held-out text {corpus}")


def _held_out_of_stream(stream: StreamedWindows) -> TokenWindows:
    """Return the first windows of what a stream leaves out; they are read into memory."""
    every, length = stream.hold_out_every, stream.sequence_length
    held_out = (document for document in stream.corpus.documents() if is_held_out(document[0], every))
    chunks, wanted = [], STREAMED_HELD_OUT_WINDOWS * length
    for piece in tokenize_pieces(held_out, stream.tokenizer):
        chunks.append(_columns_of(piece, stream.separate_documents))
        wanted -= len(piece.token_ids)
        if wanted <= 0:
            break
    if not chunks:
        raise _too_few(stream.corpus, every)
    rows = {column: np.concatenate([chunk[column] for chunk in chunks]) for column in chunks[0]}
    name = f"held-out part of {stream.corpus}"
    windows = {column: pack_windows(row, length, name)[:STREAMED_HELD_OUT_WINDOWS] for column, row in rows.items()}
    return TokenWindows(**windows)


def _cached(
    corpus: TextSource, tokenizer: PreTrainedTokenizerBase, options: DataOptions, hold_out_every: int | None
) -> CacheEntry:
    """Tokenise a text, or find its tokens again; packed tokens serve windows of any length."""
    facts: dict[str, Any] = {
        "text": corpus.fingerprint(),
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "hold_out_every": hold_out_every,
    }
    types = {"input_ids": token_type(tokenizer)}
    if options.chat:
        facts["chat"] = [options.sequence_length, not options.pad_answers]
        types["fixed_mask"] = np.dtype(np.uint8)
        if options.pad_answers:
            types["attention_mask"] = np.dtype(np.uint8)
        make = partial(_chat_chunks, corpus, tokenizer, options, hold_out_every)
    else:
        facts["separate_documents"] = options.separate_documents
        if options.separate_documents:
            types["segment_ids"] = np.dtype(np.uint32)
        make = partial(_document_chunks, corpus, tokenizer, options.separate_documents, hold_out_every)
    entry = cached_tokens(facts, types, make, options.cache_folder)
    if PartialState().is_main_process:
        _warn(entry.counts, str(corpus), options)
        if _bounds_are_guessed(corpus):  # the same entry serves who gave the default
            warn_of_division(entry.counts, str(corpus))
    return entry


def _warn(counts: Mapping[str, int], name: str, options: DataOptions) -> None:
    """Tell what of a text is not learned as it stands there."""
    warn_of_unknown(counts.get(UNKNOWN, 0), counts.get(TOKENS, 0), name)
    answers = {what: count for what, count in counts.items() if count and what not in (TOKENS, UNKNOWN)}
    if options.chat and answers.keys() - {EXAMPLES}:
        length = options.sequence_length
        logger.warning(
            "Not all answers in %s are used whole in windows of %d tokens: %s.", name, length, _listed(answers)
        )


def _listed(counts: Mapping[str, int]) -> str:
    """Say how many answers became examples, then what became of the others."""
    order = sorted(counts, key=lambda name: (name != EXAMPLES, name))
    return ", ".join(f"{counts[name]} {name}" for name in order)


def _count_tokens(token_ids: np.ndarray, tokenizer: PreTrainedTokenizerBase, counts: Counter[str]) -> None:
    counts[TOKENS] += len(token_ids)
    counts[UNKNOWN] += count_unknown(token_ids, tokenizer)


def _columns_of(piece: TokenPiece, separate_documents: bool) -> dict[str, np.ndarray]:
    """Return the columns of windows that a part of a document gives."""
    columns = {"input_ids": piece.token_ids}
    if separate_documents:
        columns["segment_ids"] = np.full(len(piece.token_ids), piece.document, np.int64)
    return columns


def _document_chunks(
    corpus: TextSource,
    tokenizer: PreTrainedTokenizerBase,
    separate_documents: bool,
    hold_out_every: int | None,
    counts: Counter[str],
) -> Iterator[Chunk]:
    for piece in tokenize_pieces(count_division(corpus.documents(), counts), tokenizer):
        _count_tokens(piece.token_ids, tokenizer, counts)
        part = HELD_OUT if is_held_out(piece.document, hold_out_every) else TRAINING
        yield part, _columns_of(piece, separate_documents)


def _chat_chunks(
    corpus: TextSource,
    tokenizer: PreTrainedTokenizerBase,
    options: DataOptions,
    hold_out_every: int | None,
    counts: Counter[str],
) -> Iterator[Chunk]:
    for number, row in enumerate(corpus.rows()):
        part = HELD_OUT if is_held_out(number, hold_out_every) else TRAINING
        for window in chat_windows(row, number, tokenizer, options.sequence_length, options.pad_answers, counts):
            _count_tokens(window["input_ids"], tokenizer, counts)
            yield part, window
    if not counts[EXAMPLES] and any(name.startswith(REFUSED) for name in counts):
        raise ValueError(
            f"No answer in {corpus} can be used: {_listed(counts)}. Change the conversations, or take another "
            "chat template."
        )
    if counts[NOT_FOUND] and not counts[EXAMPLES]:
        raise ValueError(
            f"In {corpus} the beginning of no answer is found, since the chat template changes what stands before it: "
            "put {% generation %} blocks around answers in the template."
        )


def _windows(entry: CacheEntry, part: str, options: DataOptions, name: str) -> TokenWindows:
    """Cut a part of an entry into windows."""
    if part not in entry.parts:
        what = "answer that fits in a window" if options.chat else "document"
        raise ValueError(f"The {name} has no {what}.")
    rows, length = entry.parts[part], options.sequence_length
    columns = {column: pack_windows(row, length, name) for column, row in rows.columns.items()}
    return TokenWindows(**columns, content=rows.sha256)
