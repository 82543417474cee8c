"""Build a vocabulary tree for a tokenizer, and if wanted the tokenizer too.

From a text alone, from the input embeddings of a checkpoint, or from both:

    python examples/build_tree.py --text corpus.txt --train-tokenizer 8192 --output my_tree
    python examples/build_tree.py --text corpus.txt --tokenizer gpt2 --output my_tree
    python examples/build_tree.py --embeddings gpt2 --tokenizer gpt2 --output my_tree
    python examples/build_tree.py --embeddings gpt2 --text corpus.txt --tokenizer gpt2 --depth 3 --output my_tree

For controls, without any similarity, and for tokens that were added to a tokenizer later:

    python examples/build_tree.py --method random --tokenizer gpt2 --output my_tree
    python examples/build_tree.py --extend my_tree --tokenizer my_tokenizer --output my_larger_tree
"""

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from modeling_treediff.building import (
    METHODS,
    PIECE_CHARACTERS,
    TextCounts,
    build_tree,
    count_text,
    encode_documents,
    load_embeddings,
    reduce_embeddings,
    token_embeddings,
    train_tokenizer,
)
from modeling_treediff.building.extension import extend_tree
from modeling_treediff.building.order import tree_from_order
from modeling_treediff.building.tree_builder import smallest_depth
from modeling_treediff.files.atomic_files import update_folder
from modeling_treediff.text import iterate_documents
from modeling_treediff.text.tree_tokenizer import tokenizer_size, write_tokenizer
from modeling_treediff.vocabulary_tree import (
    TREE_CONFIG_NAME,
    TREE_WEIGHTS_NAME,
    VocabularyTree,
    check_feasible,
    smallest_branching,
)

CONTROLS = ("frequency", "random", "flat")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    vocabulary = parser.add_mutually_exclusive_group(required=True)
    vocabulary.add_argument("--tokenizer", help="folder or Hub id of a tokenizer")
    vocabulary.add_argument("--train-tokenizer", type=int, metavar="V", help="learn a tokenizer of V tokens first")
    similarity = parser.add_argument_group("what makes tokens similar")
    similarity.add_argument("--text", nargs="+", default=[], help="UTF-8 texts (.txt, .txt.xz, ...) or datasets")
    similarity.add_argument("--split", default="train", help="split of a dataset (default %(default)s)")
    similarity.add_argument("--configuration", help="configuration (subset) of a Hub dataset that has several")
    similarity.add_argument("--text-column", default="text", help="text column of a dataset (default %(default)s)")
    similarity.add_argument("--embeddings", help="folder or Hub id of a checkpoint, or a .safetensors or .npy matrix")
    similarity.add_argument("--tensor", help="name of the matrix in --embeddings, where it cannot be told")
    similarity.add_argument("--extend", metavar="TREE", help="keep this tree; place only the tokens it does not have")
    similarity.add_argument(
        "--method",
        choices=(*METHODS, *CONTROLS),
        help=f"default: {METHODS[1]} with a text, else {METHODS[0]}; `frequency` without a text goes by token id",
    )
    parser.add_argument("--depth", type=int, help="default: 2, or what --branching needs")
    parser.add_argument("--branching", type=int, help="largest fan-out; default: the depth-th root of V, rounded up")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--license", help="license of the sources, kept with the tree")
    parser.add_argument("--output", type=Path, required=True, help="folder for the tree and its tokenizer")
    args = parser.parse_args()
    if problem := contradiction(args):
        parser.error(problem)
    if args.method is None:
        args.method = METHODS[1] if args.text else METHODS[0]
    return args


def contradiction(args: argparse.Namespace) -> str | None:
    """Return what is wrong with a combination of arguments, before any work."""
    sources = [name for name in ("text", "embeddings") if getattr(args, name)]
    if args.extend is not None:
        others = ("text", "embeddings", "tensor", "method", "depth", "branching", "train_tokenizer")
        given = [f"--{name.replace('_', '-')}" for name in others if getattr(args, name)]
        return f"--extend keeps the tree as it is: leave out {', '.join(given)}" if given else None
    if args.train_tokenizer is not None and not args.text:
        return "--train-tokenizer needs --text"
    if args.train_tokenizer is not None and args.embeddings:
        return "embeddings belong to a tokenizer that exists: give --tokenizer instead of --train-tokenizer"
    if args.tensor is not None and (args.embeddings is None or args.embeddings.endswith(".npy")):
        return "--tensor names a matrix in a checkpoint or .safetensors file given as --embeddings"
    if args.method in CONTROLS:
        if args.embeddings or (args.text and args.method != "frequency" and args.train_tokenizer is None):
            return f"--method {args.method} does not look at --{sources[-1]}"
        if args.method == "flat" and (args.depth is not None or args.branching is not None):
            return "--method flat has depth 1 and all tokens below the root: leave out --depth and --branching"
    elif not sources:
        return f"give --text, --embeddings or --extend, or a control: --method {', '.join(CONTROLS)}"
    elif args.method == METHODS[1] and not args.text:
        return f"--method {METHODS[1]} needs --text"
    return None


def main() -> None:
    """Get a tokenizer, build its tree, save both."""
    args = parse_arguments()
    args.output.mkdir(parents=True, exist_ok=True)
    with stage("tokenizer"):
        tokenizer = load_or_train_tokenizer(args)
    tree = extend(args, tokenizer) if args.extend is not None else make_tree(args, tokenizer)
    with stage("saved"):
        save(tree, tokenizer, args.output)
    print(f"{args.output}: {tree.vocab_size} tokens, fan-out {tree.max_branching}, depth {tree.tree_depth}")


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Print how long a stage took."""
    start = time.perf_counter()
    yield
    print(f"{name:12s}{time.perf_counter() - start:6.1f} s", flush=True)


def read(args: argparse.Namespace) -> Iterator[str]:
    """Stream the documents of all texts."""
    texts = (
        iterate_documents(text, args.split, args.text_column, args.configuration, PIECE_CHARACTERS)
        for text in args.text
    )
    return chain.from_iterable(texts)


def shape(args: argparse.Namespace, vocab_size: int) -> tuple[int, int]:
    """Return fan-out and depth as given, or the smallest that the other one needs."""
    if args.method == "flat":
        return vocab_size, 1
    depth = args.depth
    if depth is None:
        depth = 2 if args.branching is None else smallest_depth(vocab_size, args.branching)
    branching = args.branching if args.branching is not None else smallest_branching(vocab_size, depth)
    if branching > vocab_size:
        raise ValueError(f"A fan-out of {branching} is more than the {vocab_size} tokens.")
    check_feasible(vocab_size, branching, depth)
    return branching, depth


def load_or_train_tokenizer(args: argparse.Namespace) -> PreTrainedTokenizerBase:
    """Return the tokenizer asked for; an impossible tree is refused before any long work."""
    if args.tokenizer is not None:
        return load_tokenizer(args.tokenizer)
    shape(args, args.train_tokenizer)
    return train_tokenizer(tqdm(read(args), desc="words", unit=" texts", leave=False), args.train_tokenizer)


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer; what is wrong with its files is said with its name."""
    try:
        return AutoTokenizer.from_pretrained(name)
    except Exception as error:  # a damaged file fails in many ways
        raise ValueError(f"No tokenizer could be loaded from {name}: {error}") from error


def extend(args: argparse.Namespace, tokenizer: PreTrainedTokenizerBase) -> VocabularyTree:
    """Add the tokens that the tokenizer has and the tree has not."""
    tree, vocab_size = VocabularyTree.from_pretrained(args.extend), tokenizer_size(tokenizer)
    if vocab_size <= tree.vocab_size:
        raise ValueError(f"{args.extend} has {tree.vocab_size} tokens and the tokenizer {vocab_size}: none is new.")
    known = list(range(tree.vocab_size))
    before = load_tokenizer(args.extend).convert_ids_to_tokens(known)
    for token_id, old, new in zip(known, before, tokenizer.convert_ids_to_tokens(known), strict=True):
        if old != new:
            raise ValueError(
                f"The tokenizer is not that of {args.extend} with tokens added: id {token_id} is {new!r}, was {old!r}."
            )
    return extend_tree(tree, vocab_size - tree.vocab_size, describe(args) | {"extended_from": tree.sha256})


def make_tree(args: argparse.Namespace, tokenizer: PreTrainedTokenizerBase) -> VocabularyTree:
    """Build the tree that the arguments describe."""
    vocab_size, metadata = tokenizer_size(tokenizer), describe(args)
    branching, depth = shape(args, vocab_size)
    if args.method == "flat":
        return VocabularyTree.flat(vocab_size, metadata)
    if args.method == "random":
        return VocabularyTree.random(vocab_size, branching, depth, args.seed, metadata)
    embeddings = None
    if args.embeddings:
        with stage("embeddings"):
            embeddings = reduce_embeddings(load_embeddings(args.embeddings, vocab_size, args.tensor))
    counts = count(args, tokenizer, vocab_size) if args.text else None
    if args.method == "frequency":
        order = np.arange(vocab_size) if counts is None else np.argsort(-counts.token_counts, kind="stable")
        return tree_from_order(order, branching, depth, {"method": "frequency"} | metadata)
    token_counts, follows = (counts.token_counts, counts.follows) if counts else (None, None)
    if embeddings is None:
        assert follows is not None
        with stage("embeddings"):
            embeddings = token_embeddings(follows)
    with stage("tree"):
        return build_tree(
            embeddings, branching, depth, args.method, args.seed, token_counts, follows, metadata, progress=True
        )


def count(args: argparse.Namespace, tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> TextCounts:
    """Count the tokens of the texts, and which follows which."""
    with stage("text"):
        documents = tqdm(read(args), desc="text", unit=" texts", leave=False)
        counts = count_text(encode_documents(tokenizer, documents), vocab_size)
    if counts.dropped:
        print(f"text: {counts.dropped} of {counts.token_counts.sum()} neighbours left out, of the rarest kinds")
    return counts


def describe(args: argparse.Namespace) -> dict[str, Any]:
    """Return the tree's provenance; names only, so that it does not depend on where the files lie."""
    sources = [args.embeddings] * (args.embeddings is not None) + args.text * (args.method not in ("random", "flat"))
    facts = {
        "tokenizer": name_of(args.tokenizer) if args.tokenizer is not None else args.output.resolve().name,
        "source": " + ".join(map(name_of, sources)),
        "license": args.license,
    }
    return {name: value for name, value in facts.items() if value}


def name_of(source: str) -> str:
    """Return the name of a local file or folder, or a Hub id as it is."""
    return Path(source).resolve().name if Path(source).exists() else source


def save(tree: VocabularyTree, tokenizer: PreTrainedTokenizerBase, output: Path) -> None:
    """Write both; all slow work is done aside, and no moment leaves a tree beside a tokenizer it is not for."""
    with update_folder(output, written_last=lambda name: name == TREE_WEIGHTS_NAME) as folder:
        write_tokenizer(tokenizer, folder)
        tree.save_pretrained(folder)
        for name in (TREE_CONFIG_NAME, TREE_WEIGHTS_NAME):
            (output / name).unlink(missing_ok=True)


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError, ImportError) as error:
        sys.exit(f"build_tree.py: error: {' '.join(str(error).split())}")
