"""`treediff inspect-tree`: loads a tree, measures it, and writes and prints the report."""

import json
import sys
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.tree import Tree
from transformers import PreTrainedTokenizerBase

from modeling_treediff.building import (
    ReportTable,
    TextCounts,
    TreeReport,
    load_embeddings,
    report_tables,
    report_tree,
)
from modeling_treediff.files.atomic_files import write_atomically
from modeling_treediff.files.sample import find_tree
from modeling_treediff.files.sources import check_source
from modeling_treediff.text import (
    find_tokens,
    leading_tokens,
    printable,
    token_kinds,
    token_names,
)
from modeling_treediff.text.tree_tokenizer import load_tokenizer
from modeling_treediff.viewing.tree_map import render_page
from modeling_treediff.vocabulary_tree import VocabularyTree

from .build_tree import count_tokens, read
from .options.inspect_tree import InspectedTree, Measured, Shown
from .options.text import Dataset

MATCHES = 3  # tokens shown for one search


def run(inspected: InspectedTree, measured: Measured, dataset: Dataset, shown: Shown) -> None:
    """Load, measure, write, print."""
    source = find_tree(inspected.tree)
    tree = VocabularyTree.from_pretrained(source)
    tokenizer = find_tokenizer(source, inspected, needed=measured.text is not None)
    names = [f"#{token}" for token in range(tree.vocab_size)]
    if tokenizer is not None:
        names = token_names(tokenizer, tree.vocab_size)
    searched = {query: find_tokens(names, query) for query in shown.search or []}
    counts = count(measured.text, dataset, tokenizer, tree.vocab_size)
    token_counts, follows = (counts.token_counts, counts.follows) if counts else (None, None)
    embeddings = None
    if measured.embeddings:
        embeddings = load_embeddings(measured.embeddings, tree.vocab_size, measured.tensor)
    report = report_tree(tree, tokenizer, follows, embeddings, measured.seed, token_counts)
    if shown.json is not None:
        write_text(shown.json, json.dumps(report.to_dict(), indent=2, allow_nan=False) + "\n")
    if shown.html is not None:
        kinds = None if tokenizer is None else token_kinds(tokenizer, tree.vocab_size)
        write_text(shown.html, render_page(tree, names, report, title(source, tree), kinds, token_counts))
    show(tree, names, token_counts, report, searched, shown)
    for file in filter(None, (shown.json, shown.html)):
        print(f"{file}: {file.stat().st_size / 1e6:.2f} MB")


def show(
    tree: VocabularyTree,
    names: list[str],
    token_counts: np.ndarray | None,
    report: TreeReport,
    searched: dict[str, list[int]],
    shown: Shown,
) -> None:
    """Print the report, clusters by name, and where the tokens are that were searched."""
    console = Console(markup=False, highlight=False, emoji=False, width=None if sys.stdout.isatty() else 120)
    for table in report_tables(report):
        console.print(as_rich(table))
    console.print(clusters_table(tree, names, token_counts, shown.clusters, shown.words))
    for query, tokens in searched.items():
        if not tokens:
            console.print(f"No token reads {query!r}.")
        for token in tokens[:MATCHES]:
            console.print(path_of(token, tree, names, token_counts, shown.words))
        if len(tokens) > MATCHES:
            console.print(f"{len(tokens) - MATCHES} more tokens read like {query!r}.")


def write_text(file: Path, text: str) -> None:
    """Write a whole file or nothing."""
    write_atomically(file, lambda path: path.write_text(text, encoding="utf-8"))


def find_tokenizer(tree: str, inspected: InspectedTree, needed: bool) -> PreTrainedTokenizerBase | None:
    """Return the tokenizer asked for, or the one beside the tree; None, with a note, if there is none."""
    folder, name = Path(tree), inspected.tokenizer
    if name is None and folder.is_dir() and not (folder / "tokenizer_config.json").is_file():
        if needed:
            raise ValueError(f"Reading a text needs --tokenizer; there is none in {tree}.")
        print("No tokenizer beside the tree: tokens are shown by id (see --tokenizer).", file=sys.stderr)
        return None
    return load_tokenizer(check_source(name or tree, "tokenizer"), inspected.trust_remote_code)


def count(
    text: str | None, dataset: Dataset, tokenizer: PreTrainedTokenizerBase | None, vocab_size: int
) -> TextCounts | None:
    """Count the tokens of the text, if there is one, and which follows which."""
    if text is None or tokenizer is None:
        return None
    return count_tokens(read([text], dataset), tokenizer, vocab_size)


def title(source: str, tree: VocabularyTree) -> str:
    """Name the tree: by its folder or repository, and how it was made."""
    name = Path(source).resolve().name if Path(source).is_dir() else source
    method = f" ({printable(str(tree.metadata['method']))})" if "method" in tree.metadata else ""
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
