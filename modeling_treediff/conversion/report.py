"""The report of a conversion: which parameters were copied, initialised anew, or left out."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from modeling_treediff.files.json_files import write_json

REPORT_NAME = "conversion.json"


@dataclass(frozen=True)
class Part:
    """A part of a network: its number of parameters, and whether they were copied."""

    part: str
    parameters: int
    note: str

    @property
    def count(self) -> str:
        """The parameters as text; empty for what has none, such as a setting."""
        return f"{self.parameters:,}" if self.parameters else ""


@dataclass(frozen=True)
class ConversionReport:
    """Where the weights of a converted model come from.

    Attributes:
        source: Hub id, or the folder's name.
        commit: of the Hub repository; None for a folder.
        weights_sha256: of each file of the source's weights.
        model_type: architecture of the source, as transformers calls it.
        source_layers: layers of the source.
        layers: how many of them, the first ones, the model has.
        tree_sha256: fingerprint of the tree.
        copied: parts of the model that start with the source's weights.
        new: parts of the model that start at random.
        left_out: parts of the source that have no place in the model.
        embedding_error: what the factorisation loses of the tokens' vectors less their clusters' means, the Frobenius
            norm of the rest over theirs; 0 without one.

    """

    source: str
    commit: str | None
    weights_sha256: dict[str, str]
    model_type: str
    source_layers: int
    layers: int
    tree_sha256: str
    copied: list[Part]
    new: list[Part]
    left_out: list[Part]
    embedding_error: float = 0.0

    def save(self, folder: Path) -> None:
        """Write `conversion.json`."""
        write_json(folder / REPORT_NAME, asdict(self))

    def __str__(self) -> str:
        """Return a table for the screen."""
        groups = {"copied": self.copied, "new": self.new, "left out": self.left_out}
        parts = [(title, part) for title, some in groups.items() for part in some]
        rows = [f"{title:9s} {part.part:16s} {part.count:>13s}  {part.note}" for title, part in parts]
        if self.embedding_error:
            rows.append(
                f"The factorised embedding leaves out {self.embedding_error:.3f} of the norm of what the vectors of "
                "tokens add to their clusters' means."
            )
        return "\n".join(row.rstrip() for row in rows)


def grouped(parts: Iterable[Part]) -> list[Part]:
    """Add up the parameters of parts of the same name and note, in the order of their first."""
    totals: dict[tuple[str, str], int] = {}
    for part in parts:
        key = (part.part, part.note)
        totals[key] = totals.get(key, 0) + part.parameters
    return [Part(name, count, note) for (name, note), count in totals.items()]
