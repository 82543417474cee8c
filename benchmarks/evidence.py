"""What the records say, section by section of benchmarks/README.md, and in a few sentences at the head of README.md."""

from typing import Any

import memory_tables
import speed_tables
from matched_models import BUDGET, DEPTH

CHILD, NODE, CHUNKED = "tdlm-child", "tdlm-node", "mdlm-chunked"

Record = dict[str, Any]


def sections() -> dict[tuple[str, str], str]:
    """Return what stands between which marks of the page."""
    memory = memory_tables.read_memory()
    contents = {
        "memory tables": memory_tables.peaks_table(memory) + "\n" + memory_tables.ratios_table(memory),
        "speed tables": speed_tables.speed_tables(speed_tables.read_speed()),
    }
    return {marks(name): content for name, content in contents.items()}


def marks(name: str) -> tuple[str, str]:
    """Return the comments between which a part of a page stands."""
    return f"<!-- {name} -->\n", f"<!-- end of {name} -->"


def headline() -> str:
    """Return the findings as a list, each with its scale."""
    points = [_memory(memory_tables.read_memory()), _speed(speed_tables.read_speed())]
    return "".join(f"- {point}\n" for point in points)


def draw_figures() -> None:
    """Draw all figures of the page."""
    memory_tables.draw(memory_tables.read_memory())
    speed_tables.draw(speed_tables.read_speed())


def _memory(record: Record) -> str:
    def at(contender: str, hidden_size: int, batch: int) -> float:
        fields = {"vocab_size": memory_tables.VOCABULARY, "hidden_size": hidden_size, "batch_size": batch}
        (row,) = (r for r in memory_tables.select(record, contender=contender, **fields) if BUDGET in r["matched"])
        return memory_tables.ratio(record, row)

    sizes = sorted({row["hidden_size"] for row in record["rows"]})
    small, large = sizes[0], sizes[-1]
    return (
        f"**Memory** of a training step, planned, with MDLM's parameters spent on depth: {at(CHILD, small, 32):.2f} of "
        f"MDLM's at d = {small}, {at(CHILD, large, 32):.2f} at d = {large} (batch 32, 512 tokens, GPT-2's vocabulary, "
        f"bf16). MDLM with its loss in chunks needs {at(CHUNKED, small, 32):.2f} and {at(CHUNKED, large, 32):.2f}."
    )


def _speed(record: Record) -> str:
    def ratio(size: Record, contender: str, matched: str) -> float:
        (row,) = (r for r in size["training"] if r["contender"] == contender and matched in r["matched"])
        return row["ratio"]

    parts = [
        f"{ratio(size, CHILD, BUDGET):.2f} and {ratio(size, NODE, BUDGET):.2f} (child and node head) with equal "
        f"parameters, {ratio(size, CHILD, DEPTH):.2f} and {ratio(size, NODE, DEPTH):.2f} with equal depth, at "
        f"V = {size['vocab_size']:,}, d = {size['hidden_size']}"
        for size in record["sizes"]
    ]
    return f"**Training speed** to MDLM's, in tokens per second, {record['device']}: {'; '.join(parts)}."
