"""Measure the likelihood of texts under a saved model: nats per token, perplexity, bits per byte.

All three are upper bounds (NELBO), with 95 % intervals of the Monte Carlo noise: other seeds, the same text.
"""

from dataclasses import dataclass
from pathlib import Path

from .fields import block_size_option, operand, option, trust_option
from .text import Dataset

EXAMPLES = """
  treediff evaluate my_model held_out.txt
  treediff evaluate my_model a.txt b.txt.xz --samples 4 --stride 32 --json result.json
  treediff evaluate my_model held_out.txt --json my_model/evaluation.json    # also for the model's card
"""


@dataclass(frozen=True)
class MeasuredModel:
    """The model and its tokenizer."""

    model: str = operand("folder or Hub repository of a trained model")
    texts: list[str] = operand("text files (.txt, .txt.xz, ...) or datasets", nargs="+", metavar="TEXT")
    tokenizer: str | None = option(None, "folder or Hub id (default: the model's)")
    trust_remote_code: bool = trust_option()


@dataclass(frozen=True)
class MeasuredText:
    """The texts that are measured."""

    _argument_group_name = "text"

    limit: int | None = option(None, "documents to read of each text (default: all)")

    def __post_init__(self) -> None:
        """Refuse a limit that leaves nothing."""
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"--limit must be at least 1, got {self.limit}.")


@dataclass(frozen=True)
class Measurement:
    """How it is measured, and where the figures go."""

    _argument_group_name = "measurement"

    sequence_length: int | None = option(None, "tokens that the model sees at once (default: the most it can)")
    stride: int | None = option(None, "tokens counted per further window (default: --sequence-length, no overlap)")
    samples: int | None = option(
        None, "corruptions per window; short texts need more (default: one for each level of the tree)"
    )
    batch_size: int = option(32, "windows per forward pass")
    uniform_share: float | None = option(
        None,
        "share of every choice given to all children alike, for texts of another kind, such as 0.01 "
        "(default: the model's own, 0 unless its config has it)",
    )
    block_size: int | None = block_size_option()
    seed: int = option(0, "of the corruptions")
    json: Path | None = option(
        None, "write the figures; as evaluation.json in the model's folder they go into its card, too"
    )

    def __post_init__(self) -> None:
        """Raise ValueError for options that would fail only after measuring."""
        if self.uniform_share is not None and not 0 <= self.uniform_share < 1:
            raise ValueError(f"--uniform-share must be at least 0 and less than 1, got {self.uniform_share:g}.")
        if self.json is not None and (self.json.is_dir() or not self.json.parent.is_dir()):
            raise ValueError(f"--json must name a file in an existing folder, got {self.json}.")


OPTIONS = (MeasuredModel, MeasuredText, Dataset, Measurement)
