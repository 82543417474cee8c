"""Show where a tree model errs: its bound by kind of token and level of the tree, beside a flat model's.

The folder gets `errors.json`, `errors.md` and `errors.png`. All intervals are 95 %, over windows of the text.
"""

from dataclasses import dataclass
from pathlib import Path

from .evaluate import MeasuredText
from .fields import REQUIRED, operand, option, trust_option
from .text import Dataset

EXAMPLES = """
  treediff analyze-errors my_tree_model my_flat_model --text held_out.txt --output errors
  treediff analyze-errors my_model --text held_out.txt
"""


@dataclass(frozen=True)
class ComparedModels:
    """The model, and the one that it is compared with."""

    model: str = operand("folder or Hub repository of a trained model, usually of a tree")
    reference: str | None = operand("a flat model with the same tokenizer, or one of the same tree", nargs="?")
    trust_remote_code: bool = trust_option()


@dataclass(frozen=True, kw_only=True)
class AnalyzedText(MeasuredText):
    """The text that is measured."""

    text: str = option(REQUIRED, "held-out text (.txt, .txt.xz, ...) or a dataset")
    counts_of: str | None = option(
        None, "text whose counts order tokens by frequency, such as the training text (default: --text)", metavar="TEXT"
    )


@dataclass(frozen=True)
class Analysis:
    """How the loss is measured, and where the result goes."""

    _argument_group_name = "measurement"

    samples: int | None = option(None, "corruptions per window (default: two for each level of the tree)")
    batch_size: int = option(32, "windows per forward pass")
    seed: int = option(0, "of the corruptions")
    output: Path | None = option(None, "folder for figures, tables and a picture")


OPTIONS = (ComparedModels, AnalyzedText, Dataset, Analysis)
