"""What blocks cost in training: time and memory of a step, beside the same model without blocks.

python -m benchmarks.speed.block_steps                  # benchmarks/results/block_steps.json
python -m benchmarks.speed.block_steps --device cuda --hidden-size 768 --layers 12 --length 512 --vocabulary 50257

Whole steps in turns, with clipping and AdamW, on random tokens; memory as planned for a GPU. On a CPU one thread.
"""

import argparse
from pathlib import Path
from typing import Any

import torch

from benchmarks.markdown import table
from benchmarks.places import RESULTS
from benchmarks.record_schema import Schema, read_record
from benchmarks.timing import quartiles, seconds_in_turns
from benchmarks.training_step import random_batch, training_step
from modeling_treediff import TreeDiffForDiffusionLM, VocabularyTree
from modeling_treediff.building.balanced import random_tree, smallest_branching
from modeling_treediff.files.records import write_record
from modeling_treediff.training import make_lean, plan_memory

RECORD = RESULTS / "block_steps.json"
SIZES = (None, 4, 16)
FIGURES = ("milliseconds", "ratio", "ratio_lower_quartile", "ratio_upper_quartile", "memory_ratio")
SCHEMA: Schema = {
    **dict.fromkeys(("commit", "measured_on"), str),
    **dict.fromkeys(("vocabulary", "hidden_size", "layers", "length", "batch", "turns"), int),
    "models": [{"title": str, **dict.fromkeys(FIGURES, float)}],
}


def main() -> None:
    """Time all models in turns and write the record."""
    options = parse_arguments()
    cpu = options.device == "cpu"
    if cpu:
        torch.set_num_threads(1)
    precision = "fp32" if cpu else "bf16"
    trees = {
        "tree": random_tree(options.vocabulary, smallest_branching(options.vocabulary, 2), 2),
        "flat": VocabularyTree.flat(options.vocabulary),
    }
    titles, steps, peaks = [], [], []
    for name, tree in trees.items():
        for size in SIZES:
            model = make_model(tree, size, options)
            titles.append(f"{name}, {'no blocks' if size is None else f'S = {size}'}")
            steps.append(training_step(model, random_batch(model, options.batch, options.length), precision))
            peaks.append(plan_memory(model.config, options.batch, options.length, precision=precision).peak)
    seconds = seconds_in_turns(steps, options.turns, 1, options.device)
    rows = []
    for index, (title, some, peak) in enumerate(zip(titles, seconds, peaks, strict=True)):
        first = index - index % len(SIZES)  # the same model without blocks
        ratios = [one / other for one, other in zip(some, seconds[first], strict=True)]
        row = quartiles("milliseconds", [1000 * one for one in some]) | quartiles("ratio", ratios)
        rows.append({"title": title} | row | {"memory_ratio": peak / peaks[first]})
    names = ("vocabulary", "hidden_size", "layers", "length", "batch", "turns")
    facts: dict[str, Any] = {name: getattr(options, name) for name in names} | {"models": rows}
    facts["measured_on"] = "1 CPU thread, fp32" if cpu else f"{torch.cuda.get_device_name()}, bf16"
    write_record(options.output, facts, seed=0)
    print(block_steps_table(read_record(options.output, SCHEMA)))


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(default %(default)s)")
    parser.add_argument("--vocabulary", type=int, default=8192, help="tokens (default %(default)s)")
    parser.add_argument("--hidden-size", type=int, default=128, help="(default %(default)s)")
    parser.add_argument("--layers", type=int, default=6, help="(default %(default)s)")
    parser.add_argument("--length", type=int, default=64, help="tokens of a window (default %(default)s)")
    parser.add_argument("--batch", type=int, default=16, help="windows of a step (default %(default)s)")
    parser.add_argument("--turns", type=int, default=9, help="timed steps of each (default %(default)s)")
    parser.add_argument("--output", type=Path, default=RECORD, help="(default %(default)s)")
    return parser.parse_args()


def make_model(tree: VocabularyTree, block_size: int | None, options: argparse.Namespace) -> TreeDiffForDiffusionLM:
    """Return a model as training has it, on the device."""
    torch.manual_seed(0)
    sizes = {"hidden_size": options.hidden_size, "num_hidden_layers": options.layers}
    sizes |= {"num_attention_heads": max(1, options.hidden_size // 32), "max_position_embeddings": options.length}
    model = TreeDiffForDiffusionLM.from_tree(tree, block_size=block_size, **sizes)
    make_lean(model)
    torch.nn.Module.to(model, options.device)
    return model


def block_steps_table(record: dict[str, Any]) -> str:
    """Return a row for each model."""
    rows = [
        [
            row["title"],
            f"{row['milliseconds']:.0f} ms",
            f"{row['ratio']:.2f} ({row['ratio_lower_quartile']:.2f} to {row['ratio_upper_quartile']:.2f})",
            f"{row['memory_ratio']:.2f}",
        ]
        for row in record["models"]
    ]
    return table(("model", "a training step", "time / no blocks", "planned memory / no blocks"), rows) + (
        f"\n{record['batch']} windows of {record['length']} tokens, V = {record['vocabulary']:,}, {record['layers']} "
        f"layers of {record['hidden_size']}; medians (and quartiles) of {record['turns']} steps in turns; "
        f"{record['measured_on']}; commit {record['commit']}.\n"
    )


if __name__ == "__main__":
    main()
