"""Tokens per second by the length of the text: all at once, in blocks without and with a cache, and GPT-2 with its own.

OMP_NUM_THREADS=1 python -m benchmarks.generation.lengths                 # benchmarks/results/generation_lengths.json
python -m benchmarks.generation.lengths --device cuda --lengths 256 1024 4096

All diffusion models have the same weights, which are random, and make as many forward passes for a token: blocks of 4
positions 4 passes each, blocks of 16 positions 16, and a text all at once as many passes as it has tokens. Where all
passes are alike, without a cache, the benchmark makes only some of them. So the ratios are those of the cost of a pass,
and hold for other numbers of passes where all change alike. GPT-2 has as many parameters and makes one pass for a
token. Models take turns.
"""

import argparse
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2LMHeadModel

from benchmarks.contenders import gpt2_for_budget
from benchmarks.markdown import table
from benchmarks.places import RESULTS
from benchmarks.record_schema import Schema, read_record
from benchmarks.timing import quartiles, seconds_in_turns
from modeling_treediff import TreeDiffForDiffusionLM
from modeling_treediff.building.balanced import random_tree, smallest_branching
from modeling_treediff.files.records import write_record

RECORD = RESULTS / "generation_lengths.json"
PASSES_AT_ONCE, PASSES_OF_BLOCK = 16, 2  # that are made without a cache, out of more that are alike
ONCE, GPT2 = "all at once", "GPT-2, with its cache"
SCHEMA: Schema = {
    "commit": str,
    "measured_on": str,
    **dict.fromkeys(("vocabulary", "hidden_size", "layers", "turns", "threads", "parameters"), int),
    "cells": [
        {
            **dict.fromkeys(("batch", "length"), int),
            "how": str,
            **dict.fromkeys(("tokens_per_second", "ratio", "ratio_lower_quartile", "ratio_upper_quartile"), float),
        }
    ],
}


@dataclass(frozen=True)
class How:
    """A way to write a text."""

    title: str
    block_size: int | None = None  # of a model with blocks
    settings: tuple[tuple[str, Any], ...] = ()

    def passes(self, length: int) -> tuple[int, int]:
        """Return the passes for each block, or for a text of this length all at once: those made, and all of them."""
        settings = dict(self.settings)
        block = self.block_size or settings.get("block_length")
        if block is None:
            return min(PASSES_AT_ONCE, length), length
        cached = self.block_size is not None or "approximate_cache" in settings
        return (block if cached else PASSES_OF_BLOCK), block


HOWS = (
    How(ONCE),
    How("blocks of 16, no cache", settings=(("block_length", 16),)),
    How("blocks of 16, approximate cache", settings=(("block_length", 16), ("approximate_cache", True))),
    How("model with blocks of 16, cache", 16),
    How("model with blocks of 4, cache", 4),
)


def main() -> None:
    """Time all ways in turns, at every length and batch, and record tokens per second and ratios."""
    options = parse_arguments()
    torch.set_num_threads(1 if options.device == "cpu" else torch.get_num_threads())
    models = make_models(options)
    cells: list[dict[str, Any]] = []
    for batch in options.batches:
        for length in options.lengths:
            actions = [
                *(partial(write, models[how.block_size], how, batch, length) for how in HOWS),
                partial(write_gpt2, models[GPT2], batch, length),
            ]
            seconds = seconds_in_turns(actions, options.turns, int(not cells), options.device)
            cells += summary(batch, length, seconds)
    facts = {name: getattr(options, name) for name in ("vocabulary", "hidden_size", "layers", "turns")}
    facts |= {"threads": torch.get_num_threads(), "parameters": models[None].num_parameters(), "cells": cells}
    facts["measured_on"] = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    write_record(options.record, facts, seed=0)
    print(lengths_table(read_record(options.record, SCHEMA)))


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(default %(default)s)")
    parser.add_argument(
        "--lengths", type=int, nargs="+", default=[64, 256, 1024, 2048], help="tokens of a text (default %(default)s)"
    )
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8], help="texts (default %(default)s)")
    parser.add_argument("--turns", type=int, default=2, help="timed calls of each (default %(default)s)")
    parser.add_argument("--vocabulary", type=int, default=8192, help="tokens (default %(default)s)")
    parser.add_argument("--hidden-size", type=int, default=256, help="(default %(default)s)")
    parser.add_argument("--layers", type=int, default=6, help="of the tree models (default %(default)s)")
    parser.add_argument("--record", type=Path, default=RECORD, help="(default %(default)s)")
    return parser.parse_args()


def make_models(options: argparse.Namespace) -> dict[Any, Any]:
    """Return the models by their block size, on the device, and GPT-2 with as many parameters."""
    tree = random_tree(options.vocabulary, smallest_branching(options.vocabulary, 2), 2)
    heads, longest = max(1, options.hidden_size // 64), max(options.lengths)
    sizes = {"hidden_size": options.hidden_size, "num_attention_heads": heads, "max_position_embeddings": longest}
    torch.manual_seed(0)
    models: dict[Any, Any] = {
        size: TreeDiffForDiffusionLM.from_tree(tree, num_hidden_layers=options.layers, block_size=size, **sizes)
        for size in {how.block_size for how in HOWS}
    }
    budget = models[None].num_parameters()
    config = gpt2_for_budget(options.vocabulary, longest, budget, options.hidden_size, heads, eos_token_id=0)
    models[GPT2] = GPT2LMHeadModel(config)
    for model in models.values():
        torch.nn.Module.to(model.eval(), options.device)
    return models


def write(model: TreeDiffForDiffusionLM, how: How, batch: int, length: int) -> None:
    """Write texts, with those passes that are made."""
    model.generate(
        num_return_sequences=batch,
        max_new_tokens=length,
        num_steps=how.passes(length)[0],
        unmasking="confidence",
        generator=torch.Generator(model.device).manual_seed(0),
        **dict(how.settings),
    )


def write_gpt2(model: GPT2LMHeadModel, batch: int, length: int) -> None:
    """Write texts with GPT-2, as transformers does it; its first token is given."""
    start = torch.ones(batch, 1, dtype=torch.long, device=model.device)
    writer: Any = model
    writer.generate(
        start,
        attention_mask=torch.ones_like(start),
        min_new_tokens=length - 1,
        max_new_tokens=length - 1,
        do_sample=True,
        pad_token_id=0,
    )


def summary(batch: int, length: int, seconds: list[list[float]]) -> list[dict[str, Any]]:
    """Return a cell for each way, whose ratio is to the text all at once in the same turn."""
    shares = [made / wanted for made, wanted in (how.passes(length) for how in HOWS)] + [1.0]
    whole = [[one / share for one in some] for some, share in zip(seconds, shares, strict=True)]
    cells: list[dict[str, Any]] = []
    for title, some in zip([*(how.title for how in HOWS), GPT2], whole, strict=True):
        ratios = [reference / one for reference, one in zip(whole[0], some, strict=True)]
        speeds = quartiles("tokens_per_second", [batch * length / one for one in some])
        cells.append({"batch": batch, "length": length, "how": title} | speeds | quartiles("ratio", ratios))
    return cells


def lengths_table(record: dict[str, Any]) -> str:
    """Return tokens per second by way and length, with the ratio to the text all at once."""
    columns = list(dict.fromkeys((cell["batch"], cell["length"]) for cell in record["cells"]))
    found = {(cell["how"], cell["batch"], cell["length"]): cell for cell in record["cells"]}
    rows = []
    for how in dict.fromkeys(cell["how"] for cell in record["cells"]):
        cells = [found[how, *column] for column in columns]
        rows.append([how, *(f"{cell['tokens_per_second']:,.3g} ({cell['ratio']:.3g}x)" for cell in cells)])
    header = ("tokens/s", *(f"{length:,} tokens, batch {batch}" for batch, length in columns))
    return table(header, rows) + (
        f"\nA pass for each token and text. {record['parameters'] / 1e6:.1f}M parameters, {record['layers']} layers of "
        f"{record['hidden_size']}, V = {record['vocabulary']:,}, random weights; {record['measured_on']}, "
        f"{record['threads']} thread(s), medians of {record['turns']} turns; commit {record['commit']}.\n"
    )


if __name__ == "__main__":
    main()
