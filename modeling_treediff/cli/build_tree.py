"""`treediff build-tree`: gets a tokenizer, builds its tree, saves both."""

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from modeling_treediff.building import (
    METHODS,
    TextCounts,
    build_tree,
    count_text,
    load_embeddings,
    reduce_embeddings,
    token_embeddings,
    train_tokenizer,
)
from modeling_treediff.building.balanced import (
    checked_branching,
    frequency_tree,
    random_tree,
    smallest_depth,
)
from modeling_treediff.building.extension import extend_tree
from modeling_treediff.building.tree_measures import counts_below
from modeling_treediff.files.atomic_files import update_folder
from modeling_treediff.files.sample import find_tree
from modeling_treediff.files.sources import check_source, public_name
from modeling_treediff.text import encode_documents, token_names
from modeling_treediff.text.tree_tokenizer import load_tokenizer, tokenizer_facts, tokenizer_size, write_tokenizer
from modeling_treediff.text.unknown_tokens import unknown_id, warn_of_unknown
from modeling_treediff.vocabulary_tree import TREE_CONFIG_NAME, TREE_WEIGHTS_NAME, VocabularyTree

from .options.build_tree import NewTree, Similarity, Vocabulary
from .options.text import Dataset


def run(vocabulary: Vocabulary, similarity: Similarity, dataset: Dataset, new: NewTree) -> None:
    """Get a tokenizer, build its tree, save both."""
    job = Job(vocabulary, similarity, dataset, new)
    new.output.mkdir(parents=True, exist_ok=True)
    with stage("tokenizer"):
        tokenizer = load_or_train_tokenizer(job)
    if similarity.extend is not None:
        tree = extend(similarity.extend, tokenizer, job)
    else:
        tree = make_tree(job, tokenizer)
    with stage("saved"):
        save(tree, tokenizer, new.output)
    print(f"{new.output}: {tree.vocab_size} tokens, fan-out {tree.max_branching}, depth {tree.tree_depth}")


@dataclass(frozen=True)
class Job:
    """The parsed command line."""

    vocabulary: Vocabulary
    similarity: Similarity
    dataset: Dataset
    new: NewTree

    @property
    def method(self) -> str:
        """The clustering method asked for, or the default for the given inputs."""
        return self.similarity.method or (METHODS[1] if self.similarity.text else METHODS[0])


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Print how long a stage took."""
    start = time.perf_counter()
    yield
    print(f"{name:12s}{time.perf_counter() - start:6.1f} s", flush=True)


def read(texts: list[str], dataset: Dataset) -> Iterator[str]:
    """Stream the documents of all texts."""
    return (piece for text in texts for piece in dataset.corpus(text).pieces())


def shape(job: Job, vocab_size: int) -> tuple[int, int]:
    """Return fan-out and depth as given, or the smallest that the other one needs."""
    if job.method == "flat":
        return vocab_size, 1
    branching, depth = job.new.branching, job.new.depth
    if depth is None:
        depth = 2 if branching is None else smallest_depth(vocab_size, branching)
    return checked_branching(vocab_size, depth, branching), depth


def load_or_train_tokenizer(job: Job) -> PreTrainedTokenizerBase:
    """Return the tokenizer asked for; an impossible tree is refused before any long work."""
    size = job.vocabulary.train_tokenizer
    if size is None:
        return load_tokenizer(
            check_source(str(job.vocabulary.tokenizer), "tokenizer"), job.vocabulary.trust_remote_code
        )
    shape(job, size)
    return train_tokenizer(
        tqdm(read(job.similarity.text or [], job.dataset), desc="words", unit=" texts", leave=False, disable=None), size
    )


def extend(name: str, tokenizer: PreTrainedTokenizerBase, job: Job) -> VocabularyTree:
    """Add the tokens that the tokenizer has and the tree of this name has not."""
    name = find_tree(name)
    tree, vocab_size = VocabularyTree.from_pretrained(name), tokenizer_size(tokenizer)
    if vocab_size <= tree.vocab_size:
        raise ValueError(f"{name} has {tree.vocab_size} tokens and the tokenizer {vocab_size}: none is new.")
    known = list(range(tree.vocab_size))
    before = load_tokenizer(name, job.vocabulary.trust_remote_code).convert_ids_to_tokens(known)
    for token_id, old, new in zip(known, before, tokenizer.convert_ids_to_tokens(known), strict=True):
        if old != new:
            raise ValueError(
                f"The tokenizer is not that of {name} with tokens added: id {token_id} is {new!r}, was {old!r}."
            )
    return extend_tree(tree, vocab_size - tree.vocab_size, describe(job, tokenizer) | {"extended_from": tree.sha256})


def make_tree(job: Job, tokenizer: PreTrainedTokenizerBase) -> VocabularyTree:
    """Build the tree that the arguments describe."""
    vocab_size, metadata = tokenizer_size(tokenizer), describe(job, tokenizer)
    branching, depth = shape(job, vocab_size)
    if job.method == "flat":
        return VocabularyTree.flat(vocab_size, metadata)
    if job.method == "random":
        return random_tree(vocab_size, branching, depth, job.new.seed, metadata)
    similarity, embeddings = job.similarity, None
    if similarity.embeddings:
        with stage("embeddings"):
            embeddings = reduce_embeddings(load_embeddings(similarity.embeddings, vocab_size, similarity.tensor))
    counts = None
    if similarity.text:
        with stage("text"):
            counts = count_tokens(read(similarity.text, job.dataset), tokenizer, vocab_size)
    if job.method == "frequency":
        seen = np.ones(vocab_size, dtype=np.int64) if counts is None else counts.token_counts
        return warn_of_unseen(frequency_tree(seen, branching, depth, metadata), seen)
    token_counts, follows = (counts.token_counts, counts.follows) if counts else (None, None)
    if embeddings is None:
        assert follows is not None
        with stage("embeddings"):
            embeddings = token_embeddings(follows)
    with stage("tree"):
        tree = build_tree(
            embeddings,
            branching,
            depth,
            job.method,
            job.new.seed,
            token_counts,
            follows,
            metadata,
            progress=sys.stderr.isatty(),
            names=token_names(tokenizer, vocab_size),
        )
    return tree if token_counts is None else warn_of_unseen(tree, token_counts)


def warn_of_unseen(tree: VocabularyTree, token_counts: np.ndarray) -> VocabularyTree:
    """Return the tree; say so if the text has too few tokens for all of its clusters."""
    below_I = counts_below(tree, token_counts)[tree.vocab_size :]
    if unseen := int(np.count_nonzero(below_I == 0)):
        clusters = f"{unseen} of {len(below_I)} clusters hold no token of the text"
        print(f"tree: {clusters}, and a model learns never to choose them: use more text, or fewer levels")
    return tree


def count_tokens(documents: Iterable[str], tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> TextCounts:
    """Count the tokens of documents, and which follows which; say how many rare neighbours did not fit."""
    bar = tqdm(documents, desc="text", unit=" texts", leave=False, disable=None)
    counts = count_text(encode_documents(tokenizer, bar), vocab_size)
    if (unknown := unknown_id(tokenizer)) is not None:
        warn_of_unknown(int(counts.token_counts[unknown]), int(counts.token_counts.sum()), "The text")
    if counts.dropped:
        print(f"text: {counts.dropped} of {counts.token_counts.sum()} neighbours left out, of the rarest kinds")
    return counts


def describe(job: Job, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Return the tree's provenance; names only, so that it does not depend on where the files lie."""
    texts = [] if job.method in ("random", "flat") else job.similarity.text or []
    facts = tokenizer_facts(public_name(job.vocabulary.tokenizer or str(job.new.output)), tokenizer) | {
        "source": " + ".join(public_name(source) for source in (job.similarity.embeddings, *texts) if source),
        "license": job.new.license,
    }
    return {name: value for name, value in facts.items() if value}


def save(tree: VocabularyTree, tokenizer: PreTrainedTokenizerBase, output: Path) -> None:
    """Write tree and tokenizer together: an interruption never leaves a tree beside another tree's tokenizer."""
    with update_folder(output, written_last=lambda name: name == TREE_WEIGHTS_NAME) as folder:
        write_tokenizer(tokenizer, folder)
        tree.save_pretrained(folder)
        for name in (TREE_CONFIG_NAME, TREE_WEIGHTS_NAME):
            (output / name).unlink(missing_ok=True)
