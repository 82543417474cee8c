"""`treediff convert`: initialises a tree model from another architecture's checkpoint and saves it."""

import sys

import torch
from transformers.utils.hub import cached_file

from modeling_treediff import VocabularyTree
from modeling_treediff.building import build_tree, reduce_embeddings
from modeling_treediff.building.balanced import smallest_branching
from modeling_treediff.conversion import Source, check_same_vocabulary, convert, load_source, load_tokenizer
from modeling_treediff.files.sample import FLAT, find_tree
from modeling_treediff.files.sources import check_source
from modeling_treediff.hub import save_checkpoint
from modeling_treediff.text.tree_tokenizer import tokenizer_facts, tokenizer_size

from .options.convert import Conversion
from .options.model import Process

DEPTH = 2  # of a tree that is built here


def run(conversion: Conversion, process: Process) -> None:
    """Convert and save."""
    source = load_source(check_source(conversion.checkpoint, "checkpoint"), conversion.trust_remote_code)
    tree = get_tree(conversion.tree, source, conversion.trust_remote_code)
    torch.manual_seed(conversion.seed)
    model, report = convert(source, tree, conversion.layers, **vars(process))
    save_checkpoint(model, conversion.output, source.tokenizer)
    report.save(conversion.output)
    print(report)
    copied = sum(part.parameters for part in report.copied)
    print(f"{conversion.output}: {copied:,} of {model.num_parameters():,} parameters start with those of {source.name}")


def get_tree(name: str | None, source: Source, trust_remote_code: bool = False) -> VocabularyTree:
    """Return the tree asked for, or one built from the source's embeddings."""
    facts, vocab_size = tokenizer_facts(source.name, source.tokenizer), tokenizer_size(source.tokenizer)
    if name is None:
        embeddings = reduce_embeddings(source.token_vectors())
        branching, facts["source"] = smallest_branching(vocab_size, DEPTH), source.name
        return build_tree(embeddings, branching, DEPTH, metadata=facts, progress=sys.stderr.isatty())
    if name == FLAT:
        return VocabularyTree.flat(vocab_size, facts)
    name = find_tree(name)
    tree = VocabularyTree.from_pretrained(name)
    if cached_file(name, "tokenizer_config.json", _raise_exceptions_for_missing_entries=False):
        check_same_vocabulary(source.tokenizer, load_tokenizer(name, trust_remote_code))
    return tree
