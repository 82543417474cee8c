"""A uniform share of every choice: p = (1 - e) softmax + e / children, so that no child is ever closed off.

The share is that of a mixture, for a flat tree of MDLM's probabilities with uniform ones over the vocabulary. The bound
is exact for the mixture, in training and in measuring.
"""

import math
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.markdown import table
from benchmarks.places import RESULTS
from benchmarks.quality.packed_data import VALIDATION, PackedData
from benchmarks.quality.record import difference, estimate
from benchmarks.quality.training import Protocol, measured_text
from benchmarks.record_schema import Schema, read_record
from modeling_treediff import TreeDiffForDiffusionLM
from modeling_treediff.heads_treediff import mix_uniform
from modeling_treediff.training.memory import lean_blocks

SHARES = (0.0, 0.001, 0.01, 0.05)  # in measuring
ESTIMATE: Schema = {"nats": float, "standard_error": float, "interval": [float]}
SCHEMA: dict[str, Schema] = {
    "protocol": {"steps": int, "batch_size": int, "sequence_length": int},
    "trained_with": {"device": str, "commit": str, "versions": {"torch": str}},
    "runs": [
        {"variant": str, "title": str, "seed": int, "shares": [{"share": float, "texts": {VALIDATION: ESTIMATE}}]}
    ],
}

Record = dict[str, Any]


def sharing(share: float) -> AbstractContextManager[object]:
    """Return the context in which training has this uniform share of every choice, as `nelbo` has it by the config."""
    own = lean_blocks._lean_loss

    def of_mixture(model: TreeDiffForDiffusionLM, *arguments: Any) -> torch.Tensor:
        input_ids, slots = arguments[-2:]
        nats, counted = own(model, *arguments), (slots >= 0) & (input_ids >= model.config.vocab_size)
        log_n = mix_uniform(-nats[counted], input_ids[counted], model.tree, share)
        return nats.masked_scatter(counted, -log_n)

    return patch.object(lean_blocks, "_lean_loss", of_mixture) if share else nullcontext()


def measured_shares(
    model: TreeDiffForDiffusionLM, data: PackedData, protocol: Protocol, shares: Iterable[float]
) -> list[Record]:
    """Return nats per token of every window of each text, for each of the shares."""
    windows = {
        text: data.measured_windows(text, protocol.sequence_length, protocol.measured_windows) for text in data.measured
    }
    rows = []
    for model.config.uniform_share in shares:
        texts = {text: measured_text(model, some, protocol.samples) for text, some in windows.items()}
        rows.append({"share": model.config.uniform_share, "texts": texts})
    return rows


def summarised_shares(record: Record, flat: Record) -> list[Record]:
    """Return a run's shares as the record keeps them: figures in place of windows, with differences to MDLM's."""
    rows = []
    for own, other in zip(record["shares"], flat["shares"], strict=True):
        texts = {
            text: estimate(figures["windows"])
            | {"level_losses": figures["level_losses"], "to_mdlm": difference(figures, other["texts"][text])}
            for text, figures in own["texts"].items()
        }
        rows.append({"share": own["share"], "texts": texts})
    return rows


def read_shares(part: str) -> Record:
    """Return the record of the part "unseen" or "shares"; ValueError if it is missing or lacks anything."""
    return read_record(RESULTS / f"ablations_{part}.json", SCHEMA)


def shares_table(record: Record) -> str:
    """Return a row for each model, seed and share: nats per token of each text, and the perplexity over MDLM's."""
    texts = list(record["runs"][0]["shares"][0]["texts"])
    header = ("model", "seed", "share", *texts)
    rows = [
        [run["title"], f"{run['seed']}", f"{row['share']:g}", *(_cell(run, row["texts"][text]) for text in texts)]
        for run in record["runs"]
        for row in run["shares"]
    ]
    return f"{table(header, rows)}\n{_facts(record)}"


def _cell(run: Record, figures: Record) -> str:
    low, high = figures["to_mdlm"]["interval"]
    ratio = f"; {math.exp(figures['to_mdlm']['nats']):.3f} ({math.exp(low):.3f} to {math.exp(high):.3f})"
    return f"{figures['nats']:.3f}" + ("" if run["variant"].startswith("mdlm") else ratio)


def _facts(record: Record) -> str:
    protocol, made = record["protocol"], record["trained_with"]
    seen = protocol["steps"] * protocol["batch_size"] * protocol["sequence_length"]
    return (
        f"Nats per token; perplexity divided by MDLM's, trained and measured with the same shares (95 % interval over "
        f"blocks of the text, paired). {seen / 1e6:.2f}M tokens. {made['device']}, torch {made['versions']['torch']}, "
        f"commit {made['commit']}.\n"
    )
