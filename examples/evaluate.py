"""Measure the likelihood of texts under a saved model: nats per token, perplexity, bits per byte.

    python examples/evaluate.py MODEL held_out.txt
    python examples/evaluate.py MODEL a.txt b.txt.xz --samples 4 --stride 32 --json result.json

All three are upper bounds (NELBO), with 95 % intervals of the Monte Carlo noise: other seeds, the same text.
"""

import argparse
import sys
from itertools import islice
from pathlib import Path

from accelerate import PartialState
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import CONFIG_NAME, cached_file

from modeling_treediff import TreeDiffConfig, TreeDiffForDiffusionLM
from modeling_treediff.evaluation import LikelihoodResult, WindowProtocol, evaluate_texts
from modeling_treediff.files.records import write_record
from modeling_treediff.hub import weights_sha256, write_card
from modeling_treediff.hub.records import EVALUATION_RECORD
from modeling_treediff.text import Corpus


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder or Hub repository of a trained model")
    parser.add_argument("texts", nargs="+", metavar="text", help="text files (.txt, .txt.xz, ...) or datasets")
    parser.add_argument("--split", default="train", help="split of a dataset (default %(default)s)")
    parser.add_argument("--configuration", help="configuration (subset) of a Hub dataset that has several")
    parser.add_argument("--text-column", default="text", help="text column of a dataset (default %(default)s)")
    parser.add_argument("--limit", type=int, help="documents to read of each text; default: all")
    parser.add_argument("--tokenizer", help="tokenizer folder or Hub id; default: the model's")
    parser.add_argument("--window", type=int, help="tokens the model sees at once; default: the most it can")
    parser.add_argument("--stride", type=int, help="tokens counted per further window; default: --window, no overlap")
    parser.add_argument(
        "--samples", type=int, help="corruptions per window; default: one per level of the tree; short texts need more"
    )
    parser.add_argument("--batch-size", type=int, default=32, help="windows per forward pass (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the corruptions (default %(default)s)")
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help=f"write the figures; as {EVALUATION_RECORD} in the model's folder they go into its card, too",
    )
    return parser.parse_args()


def main() -> None:
    """Load, measure each text, print, write."""
    options = parse_arguments()
    check(options)
    model, tokenizer = load(options)
    protocol = WindowProtocol.for_model(model, tokenizer, options.window, options.stride)
    results = {
        text: evaluate_texts(
            model,
            tokenizer,
            [document for _, document in islice(corpus(text, options).documents(), options.limit)],
            protocol,
            num_samples=options.samples,
            batch_size=options.batch_size,
            seed=options.seed,
            progress=True,
        )
        for text in options.texts
    }
    console = Console(markup=False, highlight=False, emoji=False, width=None if sys.stdout.isatty() else 120)
    source = options.tokenizer or options.model
    console.print(as_table(results, f"tokenizer of {source}; {protocol}"))
    if options.json is not None:
        record(options, model, results)


def record(options: argparse.Namespace, model: TreeDiffForDiffusionLM, results: dict[str, LikelihoodResult]) -> None:
    """Write the figures, and with them the model's card if they lie where it looks for them."""
    folder = Path(str(cached_file(options.model, CONFIG_NAME))).parent
    facts = {
        "model": options.model,
        "tree_sha256": model.config.tree_sha256,
        "weights_sha256": weights_sha256(folder),
        "tokenizer": options.tokenizer or options.model,
        "limit": options.limit,
        "texts": [
            {"text": text, "source": corpus(text, options).facts()} | result.to_dict()
            for text, result in results.items()
        ],
    }
    write_record(options.json, facts, options.seed)
    if options.json.resolve() == folder.resolve() / EVALUATION_RECORD:
        write_card(model, folder)


def check(options: argparse.Namespace) -> None:
    """Refuse what would otherwise fail only after measuring."""
    if options.limit is not None and options.limit < 1:
        raise ValueError(f"--limit must be at least 1, got {options.limit}.")
    if options.json is not None and (options.json.is_dir() or not options.json.parent.is_dir()):
        raise ValueError(f"--json must name a file in an existing folder, got {options.json}.")


def load(options: argparse.Namespace) -> tuple[TreeDiffForDiffusionLM, PreTrainedTokenizerBase]:
    """Return the model, on the GPU if there is one, and its tokenizer."""
    kind = AutoConfig.from_pretrained(options.model).model_type
    if kind != TreeDiffConfig.model_type:
        raise ValueError(f"{options.model} is a {kind} model, not one of {TreeDiffConfig.model_type}.")
    model = TreeDiffForDiffusionLM.from_pretrained(options.model).to(PartialState().device).eval()
    return model, AutoTokenizer.from_pretrained(options.tokenizer or options.model)


def corpus(text: str, options: argparse.Namespace) -> Corpus:
    """Return where a text is read from."""
    return Corpus(text, options.split, options.text_column, options.configuration)


def as_table(results: dict[str, LikelihoodResult], protocol: str) -> Table:
    """Lay out one row per text, and the protocol under them."""
    shown = Table(
        title="Bounds on the likelihood (± and ranges: 95 % Monte Carlo intervals)",
        title_justify="left",
        caption=f"Protocol: {protocol}. Bits per byte count the nats of EOS, and no byte for it.",
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
            spread(result.bits_per_byte, result.bits_per_byte_interval),
            " + ".join(f"{nats:.3f}" for nats in result.level_losses),
        )
    return shown


def spread(value: float, interval: tuple[float, float]) -> str:
    """Write a value and half of its interval."""
    return f"{value:.3f} ± {interval[1] - value:.3f}"


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError, ImportError) as error:
        sys.exit(f"evaluate.py: error: {' '.join(str(error).split())}")
