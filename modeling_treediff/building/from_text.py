"""A vocabulary tree from a text in one call."""

import os

import numpy as np
from transformers import PreTrainedTokenizerBase

from modeling_treediff.files.sources import public_name
from modeling_treediff.text import Corpus, encode_documents, token_names
from modeling_treediff.text.tree_tokenizer import load_tokenizer, tokenizer_facts, tokenizer_size
from modeling_treediff.vocabulary_tree import VocabularyTree

from .balanced import checked_branching
from .corpus_embeddings import token_embeddings
from .text_counts import count_text
from .tokenizer import train_tokenizer
from .tree_builder import build_tree


def build_tree_from_text(
    text: str | os.PathLike[str] | Corpus,
    tokenizer: PreTrainedTokenizerBase | str | os.PathLike[str] | int,
    depth: int = 2,
    branching: int | None = None,
    seed: int = 0,
    license: str | None = None,
) -> tuple[VocabularyTree, PreTrainedTokenizerBase]:
    """Build the tree that `treediff build-tree --text` builds: siblings have similar neighbours in the text.

    Args:
        text: name of a text file or dataset, or a `Corpus`.
        tokenizer: a tokenizer, the folder or Hub id of one, or the number of tokens of one to learn from the text.
        depth: D, levels below the root.
        branching: K, the largest fan-out; by default the D-th root of the number of tokens, rounded up.
        seed: of the clustering.
        license: of the text, kept with the tree.

    Returns:
        The tree, and the tokenizer whose tokens are its leaves.

    Raises:
        OSError: there is no such text or tokenizer.
        ValueError: the text is too small for the tokenizer to be learned, or the tokens do not fit the tree.

    """
    corpus = text if isinstance(text, Corpus) else Corpus(text)
    source = public_name(os.fspath(corpus.source))
    if isinstance(tokenizer, int | np.integer):
        checked_branching(int(tokenizer), depth, branching)  # before any long work
        name, tokenizer = source, train_tokenizer(corpus.pieces(), int(tokenizer))
    elif isinstance(tokenizer, str | os.PathLike):
        name, tokenizer = public_name(os.fspath(tokenizer)), load_tokenizer(os.fspath(tokenizer))
    else:
        name = public_name(tokenizer.name_or_path)
    vocab_size = tokenizer_size(tokenizer)
    branching = checked_branching(vocab_size, depth, branching)
    counts = count_text(encode_documents(tokenizer, corpus.pieces()), vocab_size)
    facts = tokenizer_facts(name, tokenizer) | {"source": source}
    tree = build_tree(
        token_embeddings(counts.follows),
        branching,
        depth,
        "class-bigrams",
        seed,
        counts.token_counts,
        counts.follows,
        facts | ({"license": license} if license else {}),
        names=token_names(tokenizer, vocab_size),
    )
    return tree, tokenizer
