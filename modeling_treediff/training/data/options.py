"""How documents become windows."""

from dataclasses import dataclass, field
from pathlib import Path

# Smallest training time, as a fraction of a level's interval: without blocks, and with them.
TRAINING_SAMPLING_EPS, BLOCK_SAMPLING_EPS = 0.1, 0.25


@dataclass(frozen=True)
class DataOptions:
    """How documents become windows: what each one means is the `help` of its field.

    Attributes:
        cache_folder: where tokens are kept; by default below the cache of `datasets`.

    """

    sequence_length: int = field(metadata={"help": "tokens per window"})
    separate_documents: bool = field(default=False, metadata={"help": "documents in one window do not see one another"})
    chat: bool = field(
        default=False,
        metadata={"help": "rows are conversations: prompts stay clean, answers are learned, a window for each"},
    )
    pad_answers: bool = field(
        default=False,
        metadata={"help": "with --chat: padding after an answer, not counted, instead of end-of-sequence tokens"},
    )
    streaming: bool = field(
        default=False, metadata={"help": "read the training text while training goes on, without storing its tokens"}
    )
    hold_out_every: int = field(
        default=20, metadata={"help": "without a validation text of its own, every n-th document is held out"}
    )
    cache_folder: Path | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be, before anything is read."""
        if self.sequence_length < 1:
            raise ValueError(f"A window needs at least one token, got {self.sequence_length}.")
        if self.hold_out_every < 2:
            raise ValueError(f"One document in {self.hold_out_every} cannot be held out: take 2 or more.")
        if self.chat and self.streaming:
            raise ValueError("Conversations are not streamed: leave out either chat or streaming.")
        if self.chat and self.separate_documents:
            raise ValueError("Every conversation has a window of its own already: leave out separate_documents.")
        if self.pad_answers and not self.chat:
            raise ValueError("pad_answers is for conversations: give chat, too.")
