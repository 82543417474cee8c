"""Where the time of a training step goes, by kind of operation, and what compiling it and bf16 gain.

python -m benchmarks.speed.step_parts --compile   # benchmarks/results/step_parts.json

The CPU's sizes of `benchmarks.speed.throughput`, all models with the parameters of MDLM, on one thread, with freed
memory kept. Shares are of torch's profiler; times and ratios to MDLM's are medians over turns of all models, gains over
turns of the step as it is, in bf16 with eager attention, and compiled.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.contenders import REFERENCE
from benchmarks.markdown import table
from benchmarks.matched_models import BUDGET, matched_models, title
from benchmarks.places import RESULTS
from benchmarks.record_schema import Schema, read_record
from benchmarks.speed.throughput import DEFAULT, WORKLOADS
from benchmarks.timing import keep_freed_memory, seconds_in_turns
from benchmarks.training_step import random_batch, training_step
from modeling_treediff.files.records import write_record

RECORD = RESULTS / "step_parts.json"
CONTENDERS = (REFERENCE, "mdlm-chunked", "hdlm", "tdlm-child", "tree")
OTHERS = "all else: sums, products, copies"
PARTS = {  # by what the names of operations contain
    "attention": ("scaled_dot_product",),
    "softmax and loss": ("softmax", "logsumexp", "nll_loss", "cross_entropy"),
    "optimizer": ("adamw", "foreach", "linalg_vector_norm"),
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"),
}
SCHEMA: Schema = {
    "commit": str,
    "freed_memory_kept": bool,
    "sizes": [
        {
            **dict.fromkeys(("vocab_size", "hidden_size", "batch_size", "sequence_length"), int),
            "models": [
                {
                    **{"title": str, "milliseconds": float, "ratio": float, "bf16_gain": float, "gain": object},
                    "shares": dict.fromkeys((*PARTS, OTHERS), float),
                }
            ],
        }
    ],
}


def main() -> None:
    """Measure and write the record."""
    options = parse_arguments()
    torch.set_num_threads(1)
    kept = keep_freed_memory()
    facts = {"freed_memory_kept": kept, "sizes": [measure(name, options) for name in options.sizes]}
    write_record(options.output, facts, seed=0)
    print(step_parts_table(read_record(options.output, SCHEMA)))


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=list(WORKLOADS), default=DEFAULT["cpu"], help="(default: two)")
    parser.add_argument("--steps", type=int, default=5, help="profiled, and turns (default %(default)s)")
    parser.add_argument("--compile", action="store_true", help="also take turns with the compiled step")
    parser.add_argument("--output", type=Path, default=RECORD, help="(default %(default)s)")
    return parser.parse_args()


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return what is found of the models of one size."""
    workload, rows, steps = WORKLOADS[name], [], []
    size = workload.size
    for matched in matched_models(CONTENDERS, size):
        if BUDGET not in matched.matched:
            continue
        torch.manual_seed(0)
        model = matched.make()
        batch = random_batch(model, workload.batch_size, size.sequence_length)
        step = training_step(model, batch, "fp32")
        row: dict[str, Any] = {"title": title(matched.contender), "shares": shares(step, options.steps), "gain": None}
        model = matched.make()
        model.set_attn_implementation("eager")
        own, in_bf16 = seconds_in_turns([step, training_step(model, batch, "bf16")], options.steps, 2, "cpu")
        row["bf16_gain"] = median(one / other for one, other in zip(own, in_bf16, strict=True))
        if options.compile:
            torch.compiler.reset()  # it gives up on code that it has compiled for many models
            model = matched.make()
            model.forward = torch.compile(model.forward)
            own, compiled = seconds_in_turns([step, training_step(model, batch, "fp32")], options.steps, 2, "cpu")
            row["gain"] = median(one / other for one, other in zip(own, compiled, strict=True))
        rows.append(row)
        steps.append(step)
    turns = seconds_in_turns(steps, options.steps, 2, "cpu")
    for row, own in zip(rows, turns, strict=True):
        row["milliseconds"] = 1000 * median(own)
        row["ratio"] = median(other / one for one, other in zip(own, turns[0], strict=True))
    fields = {field: getattr(size, field) for field in ("vocab_size", "hidden_size", "sequence_length")}
    return {"name": name, **fields, "batch_size": workload.batch_size, "models": rows}


def shares(step: Callable[[], None], steps: int) -> dict[str, float]:
    """Return the share of each kind of operation in the time of some steps."""
    step()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(steps):
            step()
    found = dict.fromkeys((*PARTS, OTHERS), 0.0)
    for operation in profiler.key_averages():
        found[part_of(operation.key)] += operation.self_cpu_time_total
    total = sum(found.values())
    return {name: time / total for name, time in found.items()}


def part_of(operation: str) -> str:
    """Return the kind of an operation of torch's profiler."""
    name = operation.lower()
    for part, words in PARTS.items():
        if any(name == word if word.startswith("aten::") else word in name for word in words):
            return part
    return OTHERS


def step_parts_table(record: dict[str, Any]) -> str:
    """Return the table."""
    rows = []
    for size in record["sizes"]:
        for row in size["models"]:
            cells = [
                f"V = {size['vocab_size']:,}, d = {size['hidden_size']}",
                row["title"],
                f"{row['milliseconds']:.0f} ms ({row['ratio']:.2f})",
            ]
            cells += [f"{row['shares'][part]:.0%}" for part in (*PARTS, OTHERS)]
            rows.append([*cells, f"{row['bf16_gain']:.2f}", "" if row["gain"] is None else f"{row['gain']:.2f}"])
    header = (
        "size",
        "model",
        "a training step (times as fast as MDLM's)",
        *PARTS,
        OTHERS,
        "times as fast in bf16, eager",
        "times as fast compiled",
    )
    return table(header, rows) + (
        "\nTimes and shares in fp32; ratios of steps in turns; one CPU thread, freed memory kept; commit "
        f"{record['commit']}.\n"
    )


if __name__ == "__main__":
    main()
