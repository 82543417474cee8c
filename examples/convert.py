"""Start a tree model from a BERT-, GPT-2- or LLaMA-style checkpoint, to train it on with train.py --from.

    python examples/convert.py CHECKPOINT --output my_model
    python examples/convert.py CHECKPOINT --tree my_tree --output my_model
    accelerate launch --quiet examples/train.py --text corpus.txt --from my_model --window 128 --output my_trained_model

Without --tree, the checkpoint's own embeddings say which tokens are alike. A tree that has seen a text, too, is better:
build_tree.py --tokenizer CHECKPOINT --embeddings CHECKPOINT --text corpus.txt --output my_tree
"""

import argparse
import sys
from pathlib import Path

import torch
from transformers.utils import cached_file

from modeling_treediff import VocabularyTree
from modeling_treediff.building import build_tree, reduce_embeddings
from modeling_treediff.cli.model_options import FAMILY, add_family_options
from modeling_treediff.conversion import Source, check_same_tokens, convert, load_source, load_tokenizer
from modeling_treediff.hub import save_checkpoint
from modeling_treediff.text.tree_tokenizer import tokenizer_size
from modeling_treediff.vocabulary_tree import smallest_branching

DEPTH = 2  # of a tree that is built here


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="folder or Hub id, with weights in safetensors and a tokenizer")
    parser.add_argument("--output", type=Path, required=True, help="folder for the model")
    parser.add_argument("--tree", help="tree folder or Hub repository, or `flat` (MDLM); default: build one")
    parser.add_argument("--layers", type=int, metavar="N", help="take the first N layers (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of what starts at random (default %(default)s)")
    add_family_options(parser.add_argument_group("process and head", "the model keeps them when it is trained"))
    return parser.parse_args()


def find_tree(name: str | None, source: Source) -> VocabularyTree:
    """Return the tree asked for, or one built from the source's embeddings."""
    facts, vocab_size = {"tokenizer": source.name}, tokenizer_size(source.tokenizer)
    if name is None:
        embeddings = reduce_embeddings(source.token_vectors())
        branching, facts["source"] = smallest_branching(vocab_size, DEPTH), source.name
        return build_tree(embeddings, branching, DEPTH, metadata=facts, progress=True)
    if name == "flat":
        return VocabularyTree.flat(vocab_size, facts)
    tree = VocabularyTree.from_pretrained(name)
    if cached_file(name, "tokenizer_config.json", _raise_exceptions_for_missing_entries=False):
        check_same_tokens(source.tokenizer, load_tokenizer(name))
    return tree


def main() -> None:
    """Convert and save."""
    args = parse_arguments()
    source = load_source(args.checkpoint)
    tree = find_tree(args.tree, source)
    torch.manual_seed(args.seed)
    fields = {name: getattr(args, name) for name in FAMILY}
    model, report = convert(source, tree, args.layers, **fields)
    save_checkpoint(model, args.output, source.tokenizer)
    report.save(args.output)
    print(report)
    copied = sum(part.parameters for part in report.copied)
    print(f"{args.output}: {copied:,} of {model.num_parameters():,} parameters start with those of {source.name}")


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError, ImportError) as error:
        sys.exit(f"convert.py: error: {' '.join(str(error).split())}")
