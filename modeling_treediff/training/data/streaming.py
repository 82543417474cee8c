"""Windows from a corpus that is never held whole, nor downloaded: tokenised and packed while training goes on.

Shape legend: T tokens per window.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count, islice
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info
from transformers import PreTrainedTokenizerBase

from modeling_treediff.text import TextSource, is_held_out, pack_pieces, tokenize_pieces, tokenizer_fingerprint
from modeling_treediff.text.packing import Place
from modeling_treediff.text.tokenizing import TokenPiece

SHUFFLED_WINDOWS = 2048


@dataclass(frozen=True, eq=False)
class StreamedWindows:
    """Windows of an endless stream: all documents of a corpus, each followed by EOS, epoch after epoch.

    Windows are cut from the stream without a gap, also across documents and epochs, and shuffled by (seed, block)
    within blocks of consecutive windows. So the order depends on seed and position alone, as with `TokenWindows`; only
    the shuffling is local, so a corpus sorted by topic is better shuffled beforehand.

    Attributes:
        corpus: what is read.
        tokenizer: turns its documents into tokens.
        sequence_length: T, tokens per window.
        separate_documents: give `segment_ids`, so that documents in one window do not see one another.
        hold_out_every: leave out the documents whose number + 1 is a multiple of this, which are for validation.
        shuffled_windows: windows per block; two blocks are in memory.

    """

    corpus: TextSource
    tokenizer: PreTrainedTokenizerBase
    sequence_length: int
    separate_documents: bool = False
    hold_out_every: int | None = None
    shuffled_windows: int = SHUFFLED_WINDOWS

    def __post_init__(self) -> None:
        """Refuse impossible sizes."""
        for name in ("sequence_length", "shuffled_windows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")

    @cached_property
    def fingerprint(self) -> str:
        """Sha256 of all that decides on windows and their order."""
        sizes = [self.sequence_length, self.separate_documents, self.hold_out_every, self.shuffled_windows]
        facts = [self.corpus.fingerprint(), tokenizer_fingerprint(self.tokenizer), *sizes]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def dataset(self, first: int, count: int, seed: int, place: Sequence[int] | None = None) -> "StreamedItems":
        """Return the items first..count-1 of a run.

        Args:
            first: position of the first item.
            count: the position after the last one.
            seed: of the order.
            place: (position, epoch, document, offset): the position of an earlier item, at most `first`, and that
                item's `place`. With it the stream is read from there, without it from the start.

        """
        return StreamedItems(self, first, count, seed, (0, 0, 0, 0) if place is None else tuple(place))

    def windows_from(self, place: Place) -> Iterator[dict[str, Any]]:
        """Yield the windows of the stream in its own order, without end: input_ids (T,), `place`, segment_ids (T,)."""
        for window in pack_pieces(self._pieces_from(place), self.sequence_length):
            item = {"input_ids": window.input_ids, "place": window.place}
            yield item | {"segment_ids": window.segment_ids} if self.separate_documents else item

    def _pieces_from(self, place: Place) -> Iterator[TokenPiece]:
        """Yield the tokens from a place on, without end."""
        first_epoch, document, offset = place
        for epoch in count(first_epoch):
            read = False
            for piece in tokenize_pieces(self._documents(document), self.tokenizer):
                read = True
                if piece.document == document and piece.offset < offset:  # the beginning of the first document
                    piece = TokenPiece(document, offset, piece.token_ids[offset - piece.offset :])
                yield piece._replace(epoch=epoch)
            if not read:
                raise ValueError(f"{self.corpus} has no document to train on at number {document} or later.")
            document, offset = 0, 0

    def _documents(self, first: int) -> Iterator[tuple[int, str]]:
        every = self.hold_out_every
        return (document for document in self.corpus.documents(first) if not is_held_out(document[0], every))


@dataclass(eq=False)
class StreamedItems(IterableDataset[dict[str, Any]]):
    """Items of a run as `ShuffledWindows` serves them, each also with a `place` to read on from.

    The place is where the block of the item begins. Every process iterates over the same stream, and accelerate's
    IterableDatasetShard takes its batches from it; in a data loader with at most one worker, since each worker would
    read all.
    """

    windows: StreamedWindows
    first: int
    count: int
    seed: int
    start: Sequence[int] = field(default=(0, 0, 0, 0))

    def __len__(self) -> int:
        return self.count - self.first

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        if worker is not None and worker.num_workers > 1:
            raise ValueError(f"A stream is read by at most one data loader worker, not {worker.num_workers}.")
        size = self.windows.shuffled_windows
        number, (epoch, document, offset) = self.start[0] // size, self.start[1:]
        stream = self.windows.windows_from((epoch, document, offset))
        block = list(islice(stream, size)) if self.first < self.count else []
        while number * size < self.count:
            order = np.random.default_rng([self.seed, number]).permutation(size)
            is_last, following = (number + 1) * size >= self.count, []
            for position, index in enumerate(order, number * size):
                if self.first <= position < self.count:
                    yield block[index] | {"position": position, "place": block[0]["place"]}
                if not is_last:  # read the next block meanwhile, so that the reader never stands still
                    following.append(next(stream))
            block, number = following, number + 1
