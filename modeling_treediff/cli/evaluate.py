"""`treediff evaluate`: measures each text under a model, writes the figures, prints a table."""

import sys
from itertools import islice
from pathlib import Path
from typing import Any

from accelerate import PartialState
from rich.console import Console
from rich.table import Table
from transformers.utils import CONFIG_NAME
from transformers.utils.hub import cached_file

from modeling_treediff import TreeDiffForDiffusionLM
from modeling_treediff.evaluation import LikelihoodResult, WindowProtocol, evaluate_texts
from modeling_treediff.files.records import write_record
from modeling_treediff.files.sources import public_name
from modeling_treediff.hub import weights_sha256, write_card
from modeling_treediff.hub.records import EVALUATION_RECORD

from .options.evaluate import MeasuredModel, MeasuredText, Measurement
from .options.text import Dataset
from .saved_model import load_model


def run(measured: MeasuredModel, text: MeasuredText, dataset: Dataset, how: Measurement) -> None:
    """Load, measure each text, write, print."""
    model, tokenizer = load_model(
        measured.model,
        measured.tokenizer,
        trust_remote_code=measured.trust_remote_code,
        device=PartialState().device,
        block_size=how.block_size,
    )
    # Where the card looks for it.
    for_card = how.json is not None and how.json.resolve() == model_folder(measured.model).resolve() / EVALUATION_RECORD
    if for_card and how.block_size is not None:
        hint = "write --json elsewhere, or leave out --block-size"
        raise ValueError(f"The model card shows the model's own blocks: {hint}.")
    if how.uniform_share is not None:
        model.config.uniform_share = how.uniform_share
    protocol = WindowProtocol.for_model(model, tokenizer, how.sequence_length, how.stride)
    results = {
        source: evaluate_texts(
            model,
            tokenizer,
            [document for _, document in islice(dataset.corpus(source).documents(), text.limit)],
            protocol,
            num_samples=how.samples,
            batch_size=how.batch_size,
            seed=how.seed,
            progress=sys.stderr.isatty(),
        )
        for source in measured.texts
    }
    if how.json is not None:
        facts = describe(measured, dataset, model, results) | {"limit": text.limit}
        write_record(how.json, facts, how.seed)
        if for_card:
            write_card(model, model_folder(measured.model))
    console = Console(markup=False, highlight=False, emoji=False, width=None if sys.stdout.isatty() else 120)
    share = f"; {how.uniform_share:.2g} of each choice shared evenly" if how.uniform_share else ""
    share += f"; in blocks of {model.config.block_size} positions" if model.config.block_size is not None else ""
    console.print(as_table(results, f"tokenizer of {measured.tokenizer or measured.model}; {protocol}{share}"))


def model_folder(name: str) -> Path:
    """Return the folder of a model, in the cache if it is of the Hub."""
    return Path(str(cached_file(name, CONFIG_NAME))).parent


def describe(
    measured: MeasuredModel, dataset: Dataset, model: TreeDiffForDiffusionLM, results: dict[str, LikelihoodResult]
) -> dict[str, Any]:
    """Return what was measured, of what, as facts of a record."""
    return {
        "model": public_name(measured.model),
        "tree_sha256": model.config.tree_sha256,
        "uniform_share": model.config.uniform_share,
        "block_size": model.config.block_size,
        "weights_sha256": weights_sha256(model_folder(measured.model)),
        "tokenizer": public_name(measured.tokenizer or measured.model),
        "texts": [
            {"text": public_name(source), "source": dataset.corpus(source).facts()} | result.to_dict()
            for source, result in results.items()
        ],
    }


def as_table(results: dict[str, LikelihoodResult], protocol: str) -> Table:
    """Lay out one row per text, and the protocol under them."""
    shown = Table(
        title="Bounds on the likelihood (± and ranges: 95 % Monte Carlo intervals)",
        title_justify="left",
        caption="\n".join(
            [f"Protocol: {protocol}. Bits per byte count the nats of EOS, and no byte for it."]
            + [f"* {text}: {result.warning}." for text, result in results.items() if result.warning]
        ),
        caption_justify="left",
    )
    shown.add_column("text", overflow="fold")
    for column in ("tokens", "bytes", "nats/token", "perplexity", "bits/byte", "nats per level"):
        shown.add_column(column, justify="right")
    for text, result in results.items():
        low, high = result.perplexity_interval
        shown.add_row(
            text,
            f"{result.num_tokens:,}",
            f"{result.num_bytes:,}",
            spread(result.nelbo, result.confidence_interval),
            f"≤ {result.perplexity:.4g} ({low:.4g}–{high:.4g})",
            spread(result.bits_per_byte, result.bits_per_byte_interval) + " *" * bool(result.warning),
            " + ".join(f"{nats:.3f}" for nats in result.level_losses),
        )
    return shown


def spread(value: float, interval: tuple[float, float]) -> str:
    """Format a value with half of its interval."""
    return f"{value:.3f} ± {interval[1] - value:.3f}"
