"""What a training step costs: parameters, planned memory and tokens per second of `ablations --part embeddings`.

python -m benchmarks.quality.trade_offs   # benchmarks/results/trade_offs.json

Every model as training keeps it, and with the MLPs of five of six layers computed twice; MDLM also with its loss in
chunks. They take turns, as in `benchmarks.speed.throughput`, but freed memory is not kept: one thread of a CPU, fp32,
processor time.
"""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.contenders import Contender, make_model, unclustered_tree
from benchmarks.places import RESULTS
from benchmarks.quality.perplexity import PROTOCOLS
from benchmarks.quality.training import Protocol
from benchmarks.quality.variants import BASE, NODE, VARIANTS, planned_memory, variant_config
from benchmarks.speed.throughput import WARM_UP, rates
from benchmarks.timing import seconds_in_turns
from benchmarks.training_step import random_batch, training_step
from modeling_treediff import TreeDiffForDiffusionLM
from modeling_treediff.building.budget import count_parameters
from modeling_treediff.files.records import write_record
from modeling_treediff.training import make_lean

RECORD = RESULTS / "trade_offs.json"
FLAT = ("mdlm", "mdlm-own-64", "mdlm-own-64-deeper")
MODELS = (*FLAT, "hdlm", BASE, NODE, "own-64", "own-64-deeper", "own-64-memory", "tied-64", "tied-64-deeper")
CHUNKS, RECOMPUTED = 4, 5 / 6  # of a step's positions, of the layers
LEAN, RECOMPUTE, CHUNKED, BOTH = "lean", "recompute", "chunked loss", "chunked loss, recompute"


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--form", choices=PROTOCOLS, default="cpu", help="(default %(default)s)")
    parser.add_argument("--vocabulary", type=int, default=8192, metavar="TOKENS", help="(default %(default)s)")
    parser.add_argument("--turns", type=int, default=15, help="timed steps of each (default %(default)s)")
    parser.add_argument("--output", type=Path, default=RECORD, help="(default: in benchmarks/results)")
    options = parser.parse_args()
    torch.set_num_threads(1)  # whose processor time is measured
    protocol = PROTOCOLS[options.form]
    rows = measure(MODELS, options.vocabulary, protocol, options.turns)
    sizes = {"batch_size": protocol.batch_size, "sequence_length": protocol.sequence_length}
    write_record(options.output, sizes | {"vocab_size": options.vocabulary, "turns": options.turns, "rows": rows}, 0)


def measure(names: Sequence[str], vocab_size: int, protocol: Protocol, turns: int) -> list[dict[str, Any]]:
    """Return what every model costs in each of its ways to train; ratios of speed are to the first in its first way."""
    torch.manual_seed(0)
    facts: list[dict[str, Any]] = []
    steps: list[Callable[[], None]] = []
    positions = protocol.batch_size * protocol.sequence_length
    for name in names:
        depth = VARIANTS[name].depth
        tree = unclustered_tree(Contender("", depth), vocab_size)
        config = variant_config(VARIANTS[name], tree, protocol)
        model = make_model(config, tree)
        step = training_step(model, random_batch(model, protocol.batch_size, protocol.sequence_length), "fp32")
        sizes = {"layers": config.num_hidden_layers, "parameters": sum(count_parameters(config).values())}
        for way, settings in ways(config.num_hidden_layers, positions, depth == 1).items():
            peak = planned_memory(config, protocol, **settings)
            facts.append({"variant": name, "way": way, **sizes, "peak_bytes": peak})
            steps.append(partial(take_step, model, step, settings))
    seconds = seconds_in_turns(steps, turns, WARM_UP, "cpu")
    return [row | rates(own, seconds[0], positions) for row, own in zip(facts, seconds, strict=True)]


def ways(layers: int, positions: int, flat: bool) -> dict[str, dict[str, Any]]:
    """Return how a model is trained, by name: arguments of `make_lean`."""
    recomputed, chunk = round(RECOMPUTED * layers), positions // CHUNKS
    found: dict[str, dict[str, Any]] = {LEAN: {}, RECOMPUTE: {"recompute_mlp": recomputed}}
    if flat:
        found |= {CHUNKED: {"loss_chunk": chunk}, BOTH: {"recompute_mlp": recomputed, "loss_chunk": chunk}}
    return found


def take_step(model: TreeDiffForDiffusionLM, step: Callable[[], None], settings: dict[str, Any]) -> None:
    """Take a training step in one of these ways."""
    make_lean(model, **settings)
    step()


if __name__ == "__main__":
    main()
