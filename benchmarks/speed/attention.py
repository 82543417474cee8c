"""Attention on a CPU: forward and backward of its implementations in turns, by precision and window.

python -m benchmarks.speed.attention   # benchmarks/results/attention.json

A layer's heads with rotary positions, without its projections; always as many positions. One thread, processor time,
freed memory kept.
"""

import argparse
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.markdown import table
from benchmarks.places import RESULTS
from benchmarks.record_schema import Schema, read_record
from benchmarks.timing import keep_freed_memory, seconds_in_turns
from benchmarks.training_step import DTYPES
from modeling_treediff import TreeDiffConfig
from modeling_treediff.backbone_treediff import TreeDiffAttention, rotary_tables
from modeling_treediff.files.records import write_record

RECORD = RESULTS / "attention.json"
POSITIONS, HIDDEN_SIZE, HEADS = 4096, 128, 4
WINDOWS = (64, 128, 256, 512)
IMPLEMENTATIONS = ("sdpa", "eager")
SCHEMA: Schema = {
    **{"commit": str, "device": str, "freed_memory_kept": bool},
    **dict.fromkeys(("positions", "hidden_size", "heads", "turns"), int),
    "rows": [{"precision": str, "implementation": str, "window": int, "milliseconds": float}],
}


def main() -> None:
    """Measure and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=15, help="timed, of each (default %(default)s)")
    parser.add_argument("--output", type=Path, default=RECORD, help="(default %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    kept = keep_freed_memory()
    rows = []
    for window in WINDOWS:
        kinds = list(product(DTYPES, IMPLEMENTATIONS))
        seconds = seconds_in_turns([attention_step(*kind, window) for kind in kinds], options.turns, 2, "cpu")
        for (precision, implementation), some in zip(kinds, seconds, strict=True):
            row = {"precision": precision, "implementation": implementation, "window": window}
            rows.append(row | {"milliseconds": 1000 * median(some)})
    sizes = {"positions": POSITIONS, "hidden_size": HIDDEN_SIZE, "heads": HEADS, "turns": options.turns}
    write_record(options.output, {"freed_memory_kept": kept, **sizes, "rows": rows}, seed=0)
    print(attention_table(read_record(options.output, SCHEMA)))


def attention_step(precision: str, implementation: str, window: int) -> Callable[[], None]:
    """Return a function that takes a layer's attention forward and backward on random features."""
    torch.manual_seed(0)
    config = TreeDiffConfig(hidden_size=HIDDEN_SIZE, num_attention_heads=HEADS)
    config._attn_implementation = implementation
    layer = TreeDiffAttention(config, layer_index=0)
    shape, dtype = (POSITIONS // window, window, HIDDEN_SIZE), DTYPES[precision]
    projected = tuple(torch.randn(shape, dtype=dtype, requires_grad=True) for _ in range(3))
    mix = partial(layer.mix, projected, rotary_tables(window, layer.head_dim, 1000.0, torch.device("cpu")), None)
    grad = torch.randn(shape, dtype=dtype)

    def step() -> None:
        torch.autograd.grad(mix(), projected, grad)

    return step


def attention_table(record: dict[str, Any]) -> str:
    """Return the milliseconds by window, a line for each precision and implementation."""
    found = {(row["precision"], row["implementation"], row["window"]): row["milliseconds"] for row in record["rows"]}
    lines = [
        [*kind, *(f"{found[*kind, window]:.1f}" for window in WINDOWS)] for kind in product(DTYPES, IMPLEMENTATIONS)
    ]
    header = ("precision", "attention", *(f"windows of {window}" for window in WINDOWS))
    return table(header, lines) + (
        f"\nMilliseconds of a layer's attention, forward and backward, on {record['positions']:,} positions of "
        f"{record['heads']} heads in {record['hidden_size']} features; medians of {record['turns']} turns; "
        f"{record['device']}, freed memory kept; commit {record['commit']}.\n"
    )


if __name__ == "__main__":
    main()
