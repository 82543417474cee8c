"""Report on a vocabulary tree: its shape, its clusters by name, what it tells about a text.

    python examples/inspect_tree.py tree_artifacts/sotu-8k --text tree_artifacts/sotu-8k/validation.txt.xz
    python examples/inspect_tree.py tree_artifacts/sotu-8k --search " government" war
    python examples/inspect_tree.py tree_artifacts/sotu-8k --html tree.html

Give a text that the tree was not built from: on its own text every tree looks better than it is.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from modeling_treediff.viewing.drafts.tree_map import ReportTable, render_page, report_tables, report_tree
from rich.console import Console
from rich.table import Table
from rich.tree import Tree
from tqdm import tqdm
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from modeling_treediff.building import PIECE_CHARACTERS, TextCounts, count_text, encode_documents, load_embeddings
from modeling_treediff.files.atomic_files import write_atomically
from modeling_treediff.text import find_tokens, iterate_documents, leading_tokens, token_kinds, token_names
from modeling_treediff.vocabulary_tree import VocabularyTree

MATCHES = 3  # tokens shown for one search


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tree", help="folder or Hub repository of a tree")
    parser.add_argument("--tokenizer", help="folder or Hub id of its tokenizer; by default it lies beside the tree")
    parser.add_argument("--text", help="UTF-8 text (.txt, .txt.xz, ...) or a dataset, best one held out")
    parser.add_argument("--split", default="train", help="split of a dataset (default %(default)s)")
    parser.add_argument("--configuration", help="configuration (subset) of a Hub dataset that has several")
    parser.add_argument("--text-column", default="text", help="text column of a dataset (default %(default)s)")
    parser.add_argument("--embeddings", help="(V, E) token embeddings: .npy, .safetensors, or a checkpoint")
    parser.add_argument("--tensor", help="name of the matrix in --embeddings, where it cannot be told")
    parser.add_argument("--search", nargs="+", default=[], metavar="TOKEN", help="show where tokens are; #7 is id 7")
    parser.add_argument("--clusters", type=int, default=12, help="nodes of depth 1 to name (default %(default)s)")
    parser.add_argument("--words", type=int, default=12, help="tokens that name a node (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the random trees to compare with (default %(default)s)")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with a zoomable picture")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    return parser.parse_args()


def main() -> None:
    """Load, measure, print, write."""
    args = parse_arguments()
    if min(args.clusters, args.words) < 0:
        raise ValueError("--clusters and --words must not be negative.")
    tree = VocabularyTree.from_pretrained(args.tree)
    tokenizer = load_tokenizer(args)
    names = [f"#{token}" for token in range(tree.vocab_size)]
    if tokenizer is not None:
        names = token_names(tokenizer, tree.vocab_size)
    searched = {query: find_tokens(names, query) for query in args.search}
    counts = count(args, tokenizer, tree.vocab_size)
    token_counts, follows = (counts.token_counts, counts.follows) if counts else (None, None)
    embeddings = load_embeddings(args.embeddings, tree.vocab_size, args.tensor) if args.embeddings else None
    report = report_tree(tree, tokenizer, follows, embeddings, args.seed, token_counts)

    console = Console(markup=False, highlight=False, emoji=False, width=None if sys.stdout.isatty() else 120)
    for table in report_tables(report):
        console.print(as_rich(table))
    console.print(clusters_table(tree, names, token_counts, args.clusters, args.words))
    for query, tokens in searched.items():
        if not tokens:
            console.print(f"No token reads {query!r}.")
        for token in tokens[:MATCHES]:
            console.print(path_of(token, tree, names, token_counts, args.words))
        if len(tokens) > MATCHES:
            console.print(f"{len(tokens) - MATCHES} more tokens read like {query!r}.")
    if args.json is not None:
        write_text(args.json, json.dumps(report.to_dict(), indent=2, allow_nan=False) + "\n")
    if args.html is not None:
        kinds = None if tokenizer is None else token_kinds(tokenizer, tree.vocab_size)
        write_text(args.html, render_page(tree, names, report, title(args, tree), kinds, token_counts))


def write_text(file: Path, text: str) -> None:
    """Write a whole file or nothing, and say so."""
    write_atomically(file, lambda path: path.write_text(text, encoding="utf-8"))
    print(f"{file}: {file.stat().st_size / 1e6:.2f} MB")


def load_tokenizer(args: argparse.Namespace) -> PreTrainedTokenizerBase | None:
    """Return the tokenizer asked for, or the one beside the tree; None, with a note, if there is none."""
    folder = Path(args.tree)
    if args.tokenizer is None and folder.is_dir() and not (folder / "tokenizer_config.json").is_file():
        if args.text is not None:
            raise ValueError(f"Reading a text needs --tokenizer; there is none in {args.tree}.")
        print(
            "inspect_tree.py: no tokenizer beside the tree: tokens are shown by id (see --tokenizer)", file=sys.stderr
        )
        return None
    name = args.tokenizer if args.tokenizer is not None else args.tree
    try:
        return AutoTokenizer.from_pretrained(name)
    except Exception as error:  # a damaged file fails in many ways
        raise ValueError(f"No tokenizer could be loaded from {name} (see --tokenizer): {error}") from error


def count(args: argparse.Namespace, tokenizer: PreTrainedTokenizerBase | None, vocab_size: int) -> TextCounts | None:
    """Count the tokens of the text, if there is one, and which follows which."""
    if args.text is None or tokenizer is None:
        return None
    documents = iterate_documents(args.text, args.split, args.text_column, args.configuration, PIECE_CHARACTERS)
    bar = tqdm(documents, desc="text", unit=" texts", leave=False)
    counts = count_text(encode_documents(tokenizer, bar), vocab_size)
    if counts.dropped:
        print(f"text: {counts.dropped} of {counts.token_counts.sum()} neighbours left out, of the rarest kinds")
    return counts


def title(args: argparse.Namespace, tree: VocabularyTree) -> str:
    """Name the tree: by its folder or repository, and how it was made."""
    name = Path(args.tree).resolve().name if Path(args.tree).is_dir() else args.tree
    method = f" ({tree.metadata['method']})" if "method" in tree.metadata else ""
    return f"Vocabulary tree {name}{method}"


def as_rich(table: ReportTable) -> Table:
    """Lay a table out for the terminal."""
    shown = Table(title=table.title, title_justify="left", caption=table.note or None, caption_justify="left")
    for index, column in enumerate(table.header):
        shown.add_column(column, justify="right" if index and table.numeric else "left", overflow="fold")
    for row in table.rows:
        shown.add_row(*row)
    return shown


def clusters_table(
    tree: VocabularyTree, names: list[str], token_counts: np.ndarray | None, clusters: int, words: int
) -> Table:
    """Name nodes of depth 1, spread evenly from the first slot to the last, by their most frequent tokens."""
    children = tree.children[0][tree.children[0] >= 0].tolist()
    shown = Table(title=f"Clusters ({min(clusters, len(children))} of {len(children)})", title_justify="left")
    shown.add_column("slot", justify="right")
    shown.add_column("tokens", justify="right")
    shown.add_column("most frequent", overflow="fold")
    for index in np.linspace(0, len(children) - 1, min(clusters, len(children))).astype(int).tolist():
        node = children[index]
        tokens = leading_tokens(tree, node, token_counts)
        shown.add_row(str(int(tree.child_slot[node])), f"{len(tokens):,}", spell(tokens[:words], names))
    return shown


def path_of(token: int, tree: VocabularyTree, names: list[str], token_counts: np.ndarray | None, words: int) -> Tree:
    """Show the nodes from the root to a token, each with its representative and its most frequent tokens."""
    slots = tree.paths[token].tolist()
    times = "" if token_counts is None else f", {token_counts[token]:,} in the text"
    shown = branch = Tree(f"{names[token]}   id {token}, path {' › '.join(map(str, slots))}{times}")
    for depth, node in enumerate(tree.ancestors[token, :-1].tolist()):
        tokens = leading_tokens(tree, node, token_counts)
        place = f"slot {slots[depth - 1]}" if depth else "root"
        representative = names[int(tree.representative[node])]
        branch = branch.add(
            f"{place}: {len(tokens):,} tokens, shown as {representative}; most frequent: {spell(tokens[:words], names)}"
        )
    siblings = [child for child in tree.children[node - tree.vocab_size].tolist() if child >= 0 and child != token]
    near = sorted(siblings, key=lambda other: abs(int(tree.child_slot[other]) - slots[-1]))[:words]
    branch.add(f"slot {slots[-1]}: {names[token]}, beside {spell(sorted(near, key=siblings.index), names)}")
    return shown


def spell(tokens: list[int] | np.ndarray, names: list[str]) -> str:
    """Write tokens in one line."""
    return "  ".join(names[token] for token in tokens)


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError, ImportError) as error:
        sys.exit(f"inspect_tree.py: error: {' '.join(str(error).split())}")
