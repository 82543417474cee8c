"""Show where a tree model errs: its bound by kind of token and level of the tree, beside a flat model's.

    python examples/analyze_errors.py TREE_MODEL FLAT_MODEL --text held_out.txt --output errors
    python examples/analyze_errors.py MODEL --text held_out.txt

The folder gets `errors.json`, `errors.md` and `errors.png`. All intervals are 95 %, over windows of the text.
"""

import argparse
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import CONFIG_NAME, cached_file

from modeling_treediff import TreeDiffConfig, TreeDiffForDiffusionLM
from modeling_treediff.evaluation import analyze_errors, check_same_tokens, tokenize_texts
from modeling_treediff.evaluation.error_figure import draw_errors
from modeling_treediff.evaluation.error_tables import ErrorTable, error_markdown, error_tables, summary
from modeling_treediff.files.atomic_files import write_atomically
from modeling_treediff.files.records import write_record
from modeling_treediff.hub import weights_sha256
from modeling_treediff.text import Corpus


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder or Hub repository of a trained model, usually of a tree")
    parser.add_argument("reference", nargs="?", help="a flat model with the same tokenizer, or one of the same tree")
    parser.add_argument("--text", required=True, help="held-out text (.txt, .txt.xz, ...) or a dataset")
    parser.add_argument("--split", default="train", help="split of a dataset (default %(default)s)")
    parser.add_argument("--text-column", default="text", help="text column of a dataset (default %(default)s)")
    parser.add_argument("--limit", type=int, help="documents to read of the text; default: all")
    parser.add_argument(
        "--counts-of", metavar="TEXT", help="text whose counts order tokens by frequency, such as the training text"
    )
    parser.add_argument("--samples", type=int, help="corruptions per window; default: two for each level of the tree")
    parser.add_argument("--batch-size", type=int, default=32, help="windows per forward pass (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the corruptions (default %(default)s)")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="write figures, tables and a picture there")
    return parser.parse_args()


def main() -> None:
    """Load, measure, print, write."""
    options = parse_arguments()
    if options.limit is not None and options.limit < 1:
        raise ValueError(f"--limit must be at least 1, got {options.limit}.")
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
    model, tokenizer = load(options.model)
    texts = read(options.text, options, options.limit)
    reference = None
    if options.reference is not None:
        reference, other = load(options.reference)
        check_same_tokens(tokenizer, other, texts)
    facts = analyze_errors(
        model,
        tokenizer,
        texts,
        reference=reference,
        token_counts=None if options.counts_of is None else count(options, tokenizer, model.config.vocab_size),
        num_samples=options.samples,
        batch_size=options.batch_size,
        seed=options.seed,
        progress=True,
    )
    record = {
        "text": Corpus(options.text, options.split, options.text_column).facts(),
        "limit": options.limit,
        "counts_of": Path(options.counts_of or options.text).name,
        "models": {
            role: describe(source, one)
            for role, source, one in (("model", options.model, model), ("reference", options.reference, reference))
            if one is not None
        },
    } | facts
    show(record)
    if options.output is not None:
        write(options.output, record, options.seed)


def load(source: str) -> tuple[TreeDiffForDiffusionLM, PreTrainedTokenizerBase]:
    """Return a model, on the GPU if there is one, and its tokenizer."""
    kind = AutoConfig.from_pretrained(source).model_type
    if kind != TreeDiffConfig.model_type:
        raise ValueError(f"{source} is a {kind} model, not one of {TreeDiffConfig.model_type}.")
    model = TreeDiffForDiffusionLM.from_pretrained(source).to(PartialState().device).eval()
    return model, AutoTokenizer.from_pretrained(source)


def read(text: str, options: argparse.Namespace, limit: int | None) -> list[str]:
    """Return the documents of a text."""
    corpus = Corpus(text, options.split, options.text_column)
    return [document for _, document in islice(corpus.documents(), limit)]


def count(options: argparse.Namespace, tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> np.ndarray:
    """Return how often each token occurs in the text that says so."""
    token_ids = tokenize_texts(read(options.counts_of, options, None), tokenizer, tokenizer.eos_token_id is not None)
    return np.bincount(token_ids, minlength=vocab_size)


def describe(source: str, model: TreeDiffForDiffusionLM) -> dict[str, Any]:
    """Return what tells a model from others."""
    config = model.config
    shape = f"D={config.tree_depth}, {config.head} head, {config.schedule}"
    title = "flat" if config.tree_depth == 1 else f"tree ({shape})"
    return {
        "title": title,
        "source": Path(source).name if Path(source).exists() else source,
        "weights_sha256": weights_sha256(Path(str(cached_file(source, CONFIG_NAME))).parent),
        "tree_sha256": config.tree_sha256,
        "tree_depth": config.tree_depth,
        "head": config.head,
        "schedule": config.schedule,
        "num_hidden_layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "parameters": sum(config.count_parameters().values()),
    }


def show(record: dict[str, Any]) -> None:
    """Print the tables, and what they say in words."""
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
    print(f"{folder}: errors.json, errors.md, errors.png")


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError, ImportError) as error:
        sys.exit(f"analyze_errors.py: error: {' '.join(str(error).split())}")
