"""`treediff analyze-errors`: measures loss by kind of token and level of the tree; writes and prints tables."""

import sys
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedTokenizerBase

from modeling_treediff import TreeDiffForDiffusionLM
from modeling_treediff.building.budget import count_parameters
from modeling_treediff.evaluation import analyze_errors, check_same_tokens, tokenize_texts
from modeling_treediff.evaluation.error_figure import draw_errors
from modeling_treediff.evaluation.error_tables import ErrorTable, error_markdown, error_tables, summary
from modeling_treediff.files.atomic_files import write_atomically
from modeling_treediff.files.records import write_record
from modeling_treediff.hub import weights_sha256
from modeling_treediff.text import Corpus

from .evaluate import model_folder
from .options.analyze_errors import Analysis, AnalyzedText, ComparedModels
from .options.text import Dataset
from .saved_model import load_model


def run(models: ComparedModels, text: AnalyzedText, dataset: Dataset, analysis: Analysis) -> None:
    """Load, measure, write, print."""
    if analysis.output is not None:
        analysis.output.mkdir(parents=True, exist_ok=True)
    load = partial(load_model, trust_remote_code=models.trust_remote_code, device=PartialState().device)
    model, tokenizer = load(models.model)
    texts = [document for _, document in islice(dataset.corpus(text.text).documents(), text.limit)]
    reference = None
    if models.reference is not None:
        reference, other = load(models.reference)
        check_same_tokens(tokenizer, other, texts)
    facts = analyze_errors(
        model,
        tokenizer,
        texts,
        reference=reference,
        token_counts=None
        if text.counts_of is None
        else count(dataset.corpus(text.counts_of), tokenizer, model.config.vocab_size),
        num_samples=analysis.samples,
        batch_size=analysis.batch_size,
        seed=analysis.seed,
        progress=sys.stderr.isatty(),
    )
    compared = {"model": describe(models.model, model)}
    if models.reference is not None and reference is not None:
        compared["reference"] = describe(models.reference, reference)
    record = {
        "text": dataset.corpus(text.text).facts(),
        "limit": text.limit,
        "counts_of": Path(text.counts_of or text.text).name,
        "models": compared,
    } | facts
    if analysis.output is not None:
        write(analysis.output, record, analysis.seed)
    show(record)
    if analysis.output is not None:
        print(f"{analysis.output}: errors.json, errors.md, errors.png")


def count(corpus: Corpus, tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> np.ndarray:
    """Count the tokens of the text that defines their frequencies."""
    documents = [document for _, document in corpus.documents()]
    return np.bincount(tokenize_texts(documents, tokenizer, tokenizer.eos_token_id is not None), minlength=vocab_size)


def describe(source: str, model: TreeDiffForDiffusionLM) -> dict[str, Any]:
    """Return what describes a model in a record."""
    config = model.config
    shape = f"D={config.tree_depth}, {config.head} head, {config.schedule}"
    title = "flat" if config.tree_depth == 1 else f"tree ({shape})"
    return {
        "title": title,
        "source": Path(source).name if Path(source).exists() else source,
        "weights_sha256": weights_sha256(model_folder(source)),
        "tree_sha256": config.tree_sha256,
        "tree_depth": config.tree_depth,
        "head": config.head,
        "schedule": config.schedule,
        "num_hidden_layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "parameters": sum(count_parameters(config).values()),
    }


def show(record: dict[str, Any]) -> None:
    """Print the tables and their summary."""
    console = Console(markup=False, highlight=False, emoji=False, width=None if sys.stdout.isatty() else 160)
    for table in error_tables(record):
        console.print(as_rich(table))
    for sentence in summary(record):
        console.print(f"- {sentence}")


def as_rich(table: ErrorTable) -> Table:
    """Lay a table out for the terminal."""
    shown = Table(title=table.title, title_justify="left", caption=table.note, caption_justify="left")
    for index, column in enumerate(table.header):
        shown.add_column(column, justify="left" if index < table.texts else "right", overflow="fold")
    for row in table.rows:
        shown.add_row(*row)
    return shown


def write(folder: Path, record: dict[str, Any], seed: int) -> None:
    """Write the record, its tables and its picture."""
    write_record(folder / "errors.json", record, seed)
    text = error_markdown(record)
    write_atomically(folder / "errors.md", lambda path: path.write_text(text, encoding="utf-8"))
    draw_errors(record, folder / "errors.png")
