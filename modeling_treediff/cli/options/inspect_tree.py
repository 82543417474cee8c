"""Report on a vocabulary tree: its shape, its clusters by name, what it tells about a text.

Give a text that the tree was not built from: on its own text every tree looks better than it is.
"""

from dataclasses import dataclass
from pathlib import Path

from .fields import operand, option, trust_option
from .text import Dataset

EXAMPLES = """
  treediff inspect-tree sotu-8k                                  # the tree of the embedded sample
  treediff inspect-tree my_tree --text held_out.txt
  treediff inspect-tree my_tree --search " government" war
  treediff inspect-tree my_tree --html tree.html
"""


@dataclass(frozen=True)
class InspectedTree:
    """The tree and its tokenizer."""

    tree: str = operand("folder or Hub repository of a tree")
    tokenizer: str | None = option(None, "folder or Hub id of its tokenizer (default: the one beside the tree)")
    trust_remote_code: bool = trust_option()


@dataclass(frozen=True)
class Measured:
    """The text and embeddings that the tree is measured by."""

    _argument_group_name = "text and embeddings"

    text: str | None = option(None, "UTF-8 text (.txt, .txt.xz, ...) or a dataset, best one held out")
    embeddings: str | None = option(None, "(V, E) token embeddings: .npy, .safetensors, or a checkpoint")
    tensor: str | None = option(None, "name of the matrix in --embeddings, where it cannot be told")
    seed: int = option(0, "of the random trees to compare with")


@dataclass(frozen=True)
class Shown:
    """What the report shows, and where it is written."""

    _argument_group_name = "report"

    search: list[str] | None = option(None, "show where tokens are; #7 is id 7", metavar="TOKEN", is_text=True)
    clusters: int = option(12, "nodes of depth 1 to name")
    words: int = option(12, "tokens that name a node")
    html: Path | None = option(None, "write a page with a zoomable picture")
    json: Path | None = option(None, "write the figures")

    def __post_init__(self) -> None:
        """Refuse what cannot be counted."""
        if min(self.clusters, self.words) < 0:
            raise ValueError("--clusters and --words must not be negative.")


OPTIONS = (InspectedTree, Measured, Dataset, Shown)
