"""Build a vocabulary tree, and if wanted its tokenizer, from a text.

python examples/build_tree.py --text tree_artifacts/sotu-8k/train.txt.xz --train-tokenizer 8192 --output my_tree
"""

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from modeling_treediff.atomic_files import update_folder
from modeling_treediff.building import build_tree, count_tokens, token_embeddings, train_tokenizer
from modeling_treediff.corpora import read_documents
from modeling_treediff.tree_tables import check_feasible, smallest_branching
from modeling_treediff.vocabulary_tree import TREE_CONFIG_NAME, TREE_WEIGHTS_NAME, VocabularyTree


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", required=True, help="UTF-8 text (.txt, .txt.xz, ...) or a dataset")
    parser.add_argument("--split", default="train", help="split of a dataset (default %(default)s)")
    parser.add_argument("--configuration", help="configuration (subset) of a Hub dataset that has several")
    parser.add_argument("--text-column", default="text", help="text column of a dataset (default %(default)s)")
    vocabulary = parser.add_mutually_exclusive_group(required=True)
    vocabulary.add_argument("--tokenizer", help="folder or Hub id of a tokenizer")
    vocabulary.add_argument("--train-tokenizer", type=int, metavar="V", help="learn a tokenizer of V tokens first")
    parser.add_argument("--depth", type=int, default=2)
    parser.add_argument("--branching", type=int, help="largest fan-out; by default the depth-th root of V, rounded up")
    parser.add_argument("--method", choices=("balanced-kmeans", "random", "flat"), default="balanced-kmeans")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--licence", help="licence of the text, kept with the tree")
    parser.add_argument("--output", type=Path, required=True, help="folder for the tree and its tokenizer")
    return parser.parse_args()


def main() -> None:
    """Read the text, get a tokenizer, build the tree, save both."""
    args = parse_arguments()
    with stage("text"):
        documents = read_documents(args.text, args.split, args.text_column, args.configuration)
    with stage("tokenizer"):
        tokenizer = load_or_train_tokenizer(args, documents)
    with stage("tree"):
        tree = make_tree(args, tokenizer, documents)
    print_clusters(tree, tokenizer)
    with stage("saved"):
        save_tokenizer(tokenizer, args.output)
        tree.save_pretrained(args.output)
    print(f"{args.output}: {tree.vocab_size} tokens, fan-out {tree.max_branching}, depth {tree.tree_depth}")


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Print how long a stage took."""
    start = time.perf_counter()
    yield
    print(f"{name:10s}{time.perf_counter() - start:6.1f} s", flush=True)


def load_or_train_tokenizer(args: argparse.Namespace, documents: list[str]) -> PreTrainedTokenizerBase:
    """Return the tokenizer asked for; an impossible tree is refused before any long work."""
    if args.tokenizer is not None:
        return AutoTokenizer.from_pretrained(args.tokenizer)
    if args.branching is not None and args.method != "flat":
        check_feasible(args.train_tokenizer, args.branching, args.depth)
    return train_tokenizer(documents, args.train_tokenizer)


def make_tree(args: argparse.Namespace, tokenizer: PreTrainedTokenizerBase, documents: list[str]) -> VocabularyTree:
    """Build the tree that the arguments describe."""
    vocab_size = len(tokenizer)
    metadata = describe(args)
    if args.method == "flat":
        return VocabularyTree.flat(vocab_size, metadata)
    branching = args.branching if args.branching is not None else smallest_branching(vocab_size, args.depth)
    check_feasible(vocab_size, branching, args.depth)
    if args.method == "random":
        return VocabularyTree.random(vocab_size, branching, args.depth, args.seed, metadata)
    encoded = tokenizer(documents, add_special_tokens=False, return_attention_mask=False, verbose=False)
    token_ids = [np.asarray(ids, dtype=np.int64) for ids in encoded["input_ids"]]
    embeddings = token_embeddings(token_ids, vocab_size)
    counts = count_tokens(token_ids, vocab_size)
    return build_tree(embeddings, branching, args.depth, args.method, args.seed, counts, metadata)


def describe(args: argparse.Namespace) -> dict[str, Any]:
    """Return the tree's provenance; names only, so that it does not depend on where the files lie."""
    tokenizer = str(args.tokenizer) if args.tokenizer is not None else args.output.resolve().name
    facts = {
        "tokenizer": Path(tokenizer).resolve().name if Path(tokenizer).is_dir() else tokenizer,
        "source": Path(args.text).name if Path(args.text).exists() else args.text,
        "licence": args.licence,
    }
    return {name: value for name, value in facts.items() if value is not None}


def print_clusters(tree: VocabularyTree, tokenizer: PreTrainedTokenizerBase, shown: int = 8, words: int = 12) -> None:
    """Print the first tokens of some nodes of depth 1, from the most frequent node to the rarest."""
    if tree.tree_depth == 1:
        return
    nodes, paths = tree.children[0][tree.children[0] >= 0], tree.paths.tolist()
    for index in np.linspace(0, len(nodes) - 1, min(shown, len(nodes))).astype(int).tolist():
        tokens = (tree.ancestors[:, 1] == nodes[index]).nonzero().flatten()
        by_slot = sorted(tokens.tolist(), key=lambda token: paths[token])
        names = " ".join(repr(tokenizer.decode([token])) for token in by_slot[:words])
        print(f"cluster {index:3d}, {len(tokens)} tokens: {names}")


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, output: Path) -> None:
    """Write the tokenizer; an older tree goes first, so that a kill leaves no tree beside a tokenizer it is not for."""
    with update_folder(output, written_last=lambda name: name == "tokenizer.json") as folder:
        tokenizer.save_pretrained(folder)
        for name in (TREE_CONFIG_NAME, TREE_WEIGHTS_NAME):
            (output / name).unlink(missing_ok=True)


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError, ImportError) as error:
        sys.exit(f"build_tree.py: error: {' '.join(str(error).split())}")
