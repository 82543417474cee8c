"""Values of a model card by their names in the template: Markdown that is safe in a cell of a table.

What no record backs and what nobody said is "": the template leaves out its row, and a section without rows.
"""

import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from modeling_treediff.building.budget import count_parameters
from modeling_treediff.configuration_treediff import TreeDiffConfig
from modeling_treediff.modeling_treediff import TreeDiffLanguageModel
from modeling_treediff.text.token_kinds import printable
from modeling_treediff.vocabulary_tree import VocabularyTree

from .records import is_number, number
from .tree_sketch import sketch_tree

PIPE = "\\|"
SAMPLE_WIDTH = 100  # characters of a line
GIBIBYTE = 2**30
# Of a generation config: no settings of sampling.
OTHER_SETTINGS = {
    "bos_token_id", "eos_token_id", "pad_token_id", "transformers_version", "output_history", "return_dict_in_generate",
    "num_return_sequences",
}  # fmt: skip


def values_of_the_model(model: TreeDiffLanguageModel) -> dict[str, str]:
    """Return sizes, parameters by part and sampling settings."""
    config, parts = model.config, count_parameters(model.config)
    sizes = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "max_position_embeddings")
    settings = model.generation_config.to_dict() if model.can_generate() else {}
    shown = {
        name: value
        for name, value in settings.items()
        if value is not None and name not in OTHER_SETTINGS and not name.startswith("_")
    }
    return {
        **{name: f"{getattr(config, name):,}" for name in sizes},
        **{name: getattr(config, name) for name in ("head", "schedule")},
        "node_embedding": _embedding(config),
        "block_size": "" if config.block_size is None else f"{config.block_size:,} positions",
        "perturbation": f"{config.perturbation:g}" if config.perturbation else "",
        "lookahead": f"{config.lookahead:g}" if config.lookahead else "",
        **{f"parameters_{part}": f"{count:,}" for part, count in parts.items()},
        "parameters_all": f"{sum(parts.values()):,}",
        "parameters_rounded": _rounded(sum(parts.values())),
        "sampling_rows": "\n".join(f"| `{name}` | {_code(value)} |" for name, value in shown.items()),
        "is_flat": "yes" if model.tree.tree_depth == 1 else "",
    }


def _embedding(config: TreeDiffConfig) -> str:
    if config.embedding_rank is None:
        return f"`{config.node_embedding}`"
    shared = ", which are also the head's vectors" if config.tie_word_embeddings else ""
    return f"`{config.node_embedding}`, {config.embedding_rank} numbers per node{shared}"


def values_of_the_tree(tree: VocabularyTree, tokenizer_file: Path) -> dict[str, str]:
    """Return shape, provenance and a sketch, in words if there is a tokenizer.json."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer_file)) if tokenizer_file.exists() else None
    by_level = [int((tree.depth == level).sum()) for level in range(tree.tree_depth + 1)]
    named = ("method", "source", "license", "tokenizer", "seed")
    return {
        "tree_shape": f"depth {tree.tree_depth}, at most {tree.max_branching:,} children per node; nodes by level: "
        + " → ".join(f"{count:,}" for count in by_level),
        "tree_sha256": tree.sha256,
        "tree_sketch": sketch_tree(tree, (lambda token: str(tokenizer.decode([token]))) if tokenizer else None),
        **{f"tree_{name}": _stated(tree.metadata.get(name)) for name in named},
    }


def values_of_training(record: Mapping[str, Any]) -> dict[str, str]:
    """Return what the record of `treediff train` says; it may be empty."""
    nats, error = number(record, "nelbo"), number(record, "nelbo_standard_error")
    perplexity = None if nats is None else float(np.exp(np.float64(nats)))
    tokens, seconds = number(record, "tokens_seen"), number(record, "training_seconds")
    speed = f"{tokens / seconds:,.0f} tokens per second, {seconds:,.1f} s in all" if tokens and seconds else ""
    return {
        "is_recorded": "yes" if record else "",
        "license": _stated(record.get("license")),
        "base_model": _source(record.get("base_model"), otherwise="random weights" if record else ""),
        "training_text": _source(record.get("text")),
        "text_description": _stated(record.get("text_description")),
        "validation_text": _held_out(record),
        "steps": _count(record, "steps"),
        "tokens_seen": _count(record, "tokens_seen"),
        "nelbo": _with_error(nats, error, " nats per token"),
        "level_losses": " + ".join(_figure(nats) for nats in record.get("level_losses", [])),
        "perplexity_rounded": _in_short(perplexity),
        "perplexity": _bound(perplexity, None if perplexity is None or error is None else perplexity * error),
        "validation_tokens": _count(record, "validation_tokens") + _unknown(record),
        "unigram_entropy": _with_error(number(record, "unigram_entropy"), None, " nats per token"),
        "training_speed": speed,
        "peak_memory": _memory(record),
        "samples": "\n\n".join(map(_sample, record.get("samples", []))),
        "sample_seeds": ", ".join(as_cell(str(sample["seed"])) for sample in record.get("samples", [])),
        **_run_values("training", record),
    }


def values_of_evaluation(record: Mapping[str, Any]) -> dict[str, str]:
    """Return what the record of `treediff evaluate` says; it may be empty."""
    rows = record.get("texts", [])
    protocol = rows[0]["protocol"]["description"] if rows else ""
    samples = f"; {rows[0]['num_samples']} corruptions per window" if rows else ""
    share = f"; {share:.2g} of each choice shared evenly" if (share := number(record, "uniform_share")) else ""
    return {
        "evaluation_rows": "\n".join(_evaluation_row(row, record.get("limit")) for row in rows),
        "evaluation_protocol": as_cell(protocol + samples + share),
        **_run_values("evaluation", record),
    }


def _evaluation_row(row: Mapping[str, Any], limit: int | None) -> str:
    figures = (("nelbo", "confidence_interval"), ("perplexity", "perplexity_interval"))
    bounds = [_in_interval(number(row, name), row.get(interval)) for name, interval in figures]
    bits = _in_interval(number(row, "bits_per_byte"), row.get("bits_per_byte_interval"))
    text = _source(row["source"]) + (f", first {limit:,} documents" if limit else "")
    if unknown := _unknown(row):
        bits += ", not comparable with other tokenizers'"
    return f"| {text} | {_count(row, 'num_tokens')}{unknown} | {bounds[0]} | {bounds[1]} | {bits} |"


def _run_values(kind: str, record: Mapping[str, Any]) -> dict[str, str]:
    """Return a record's command, seed, commit and versions, under names that begin with `kind`."""
    named = {"seed": "seed ", "commit": "commit ", "device": "", "processes": "processes: "}
    run = [f"{words}{_stated(record[name])}" for name, words in named.items() if record.get(name) is not None]
    versions = ", ".join(f"{name} {version}" for name, version in record.get("versions", {}).items())
    return {
        f"{kind}_command": _code(record["command"]) if "command" in record else "",
        f"{kind}_run": ", ".join(run),
        f"{kind}_versions": _stated(versions),
    }


# ---- formats --------------------------------------------------------------------------------------------------


def _figure(value: object) -> str:
    """Write a measured figure: three decimals for nats and bits, four digits for what is large."""
    if not is_number(value):
        return ""
    return f"{value:.3f}" if abs(value) < 100 else f"{value:,.0f}"


def _with_error(value: float | None, error: float | None, unit: str = "") -> str:
    if value is None:
        return ""
    spread = "" if error is None else f" ± {error:.3f}" if abs(value) < 100 else f" ± {error:,.0f}"
    return _figure(value) + spread + unit


def _bound(value: float | None, error: float | None) -> str:
    return "" if value is None or math.isinf(value) else f"≤ {_with_error(value, error)}"


def _in_short(value: float | None) -> str:
    if value is None or math.isinf(value):
        return ""
    return f"{value:.3g}" if value < 100 else f"{value:,.0f}"


def _in_interval(value: float | None, interval: Sequence[object] | None) -> str:
    if value is None:
        return ""
    ends = " to ".join("∞" if end is None else _figure(end) for end in interval or [])
    return f"≤ {_figure(value)}" + (f" ({ends})" if ends else "")


def _count(record: Mapping[str, Any], name: str) -> str:
    value = number(record, name)
    return "" if value is None else f"{value:,}"


def _unknown(record: Mapping[str, Any]) -> str:
    unknown = number(record, "num_unknown")
    return f", of which {unknown:,} unknown to the tokenizer" if unknown else ""


def _rounded(count: int) -> str:
    """Write a number of parameters shortly: 3.43M."""
    for unit, size in (("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if count >= size:
            return f"{count / size:.2f}{unit}"
    return str(count)


def _memory(record: Mapping[str, Any]) -> str:
    """Write the peak of the first process: on the accelerator, or resident on the host."""
    allocated, reserved, resident = (
        number(record, "peak_memory_bytes", name) for name in ("allocated", "reserved", "resident")
    )
    if allocated is not None and reserved is not None:
        return f"{allocated / GIBIBYTE:.2f} GiB allocated on the device, {reserved / GIBIBYTE:.2f} GiB reserved"
    return "" if resident is None else f"{resident / GIBIBYTE:.2f} GiB resident, the whole process"


def _source(source: Mapping[str, Any] | None, otherwise: str = "") -> str:
    """Write where a text or a model came from."""
    if not source:
        return otherwise
    named = {name: source[name] for name in ("configuration", "split", "revision") if source.get(name)}
    details = "".join(f", {name} {value}" for name, value in named.items())
    return f"{_code(source['name'])}{as_cell(details)}{', on the Hub' if source['on_hub'] else ''}"


def _held_out(record: Mapping[str, Any]) -> str:
    every = record.get("hold_out_every")
    return _source(record.get("validation_text"), f"one document in {_stated(every)} of the text" if every else "")


def _stated(value: object) -> str:
    return "" if value is None else as_cell(str(value))


def _sample(sample: Mapping[str, Any]) -> str:
    """Write a text as an indented block, in which nothing is active."""
    lines = textwrap.wrap(_line(sample["text"]), SAMPLE_WIDTH, break_long_words=True)
    return "\n".join(f"    {line}" for line in lines or ["(no text)"])


def _code(value: object) -> str:
    """Write a value as code, in which nothing is active but the end of a cell; not if it has backticks of its own."""
    text = _line(str(value))
    return as_cell(text) if "`" in text else f"`{text.replace('|', PIPE)}`"


def as_cell(text: str) -> str:
    """Escape what ends a cell or begins a tag, a link, an image or code; addresses, too, are links."""
    return re.sub(r"[\\`*\[\]<>&|@]|:(?=//)|(?<=www)\.", lambda found: f"&#{ord(found[0])};", _line(text))


def _line(text: str) -> str:
    """Put a text into one line, of characters that have a glyph."""
    return printable(" ".join(text.split()))
