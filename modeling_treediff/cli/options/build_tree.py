"""Build a vocabulary tree for a tokenizer, and if wanted the tokenizer too.

From a text alone, from the input embeddings of a checkpoint, or from both; for controls, without any similarity; and
for tokens that were added to a tokenizer later.
"""

from dataclasses import dataclass
from pathlib import Path

from modeling_treediff.building.tree_builder import METHODS

from .fields import REQUIRED, given, option, trust_option
from .text import Dataset

EXAMPLES = """
  treediff build-tree --text corpus.txt --train-tokenizer 8192 --output my_tree
  treediff build-tree --text corpus.txt --tokenizer gpt2 --output my_tree
  treediff build-tree --embeddings gpt2 --tokenizer gpt2 --output my_tree
  treediff build-tree --embeddings gpt2 --text corpus.txt --tokenizer gpt2 --depth 3 --output my_tree
  treediff build-tree --method random --tokenizer gpt2 --output my_tree
  treediff build-tree --extend my_tree --tokenizer my_tokenizer --output my_larger_tree
"""
CONTROLS = ("frequency", "random", "flat")


@dataclass(frozen=True)
class Vocabulary:
    """The tokenizer whose tokens become the leaves."""

    _argument_group_name = "vocabulary (one of the two)"

    tokenizer: str | None = option(None, "folder or Hub id of a tokenizer")
    train_tokenizer: int | None = option(None, "learn a tokenizer first, with this vocabulary size")
    trust_remote_code: bool = trust_option()


@dataclass(frozen=True)
class Similarity:
    """What the clustering goes by: text or embeddings."""

    _argument_group_name = "what makes tokens similar"

    text: list[str] | None = option(None, "UTF-8 texts (.txt, .txt.xz, ...) or datasets")
    embeddings: str | None = option(None, "folder or Hub id of a checkpoint, or a .safetensors or .npy matrix")
    tensor: str | None = option(None, "name of the matrix in --embeddings, where it cannot be told")
    extend: str | None = option(None, "keep this tree; place only the tokens it does not have", metavar="TREE")
    method: str | None = option(
        None,
        f"default: {METHODS[1]} with a text, else {METHODS[0]}; frequency without a text goes by token id",
        choices=(*METHODS, *CONTROLS),
    )


@dataclass(frozen=True, kw_only=True)
class NewTree:
    """The tree's shape and where it goes."""

    _argument_group_name = "tree"

    output: Path = option(REQUIRED, "folder for the tree and its tokenizer")
    depth: int | None = option(None, "levels below the root (default: 2, or what --branching needs)")
    branching: int | None = option(None, "largest fan-out (default: the depth-th root of V, rounded up)")
    seed: int = option(0, "seed of the random draws")
    license: str | None = option(None, "license of the sources, kept with the tree", is_text=True)


OPTIONS = (Vocabulary, Similarity, Dataset, NewTree)


def check(vocabulary: Vocabulary, similarity: Similarity, dataset: Dataset, tree: NewTree) -> None:
    """Raise ValueError for options that contradict each other."""
    if len(names := given(vocabulary, ["tokenizer", "train_tokenizer"])) != 1:
        raise ValueError("give either --tokenizer or --train-tokenizer" + (", not both" if names else ""))
    if similarity.extend is not None:
        shape = given(tree, ["depth", "branching"])
        if clash := [*(flag for flag in given(similarity) if flag != "--extend"), *shape]:
            raise ValueError(f"--extend keeps the tree as it is: leave out {', '.join(clash)}")
        if vocabulary.train_tokenizer is not None:
            raise ValueError("--extend keeps the tree as it is: leave out --train-tokenizer")
        return
    _check_tokenizer(vocabulary, similarity)
    _check_method(vocabulary, similarity, tree)


def _check_tokenizer(vocabulary: Vocabulary, similarity: Similarity) -> None:
    if vocabulary.train_tokenizer is not None and not similarity.text:
        raise ValueError("--train-tokenizer needs --text")
    if vocabulary.train_tokenizer is not None and similarity.embeddings:
        raise ValueError("embeddings belong to a tokenizer that exists: give --tokenizer instead of --train-tokenizer")
    if similarity.tensor is not None and (similarity.embeddings or ".npy").endswith(".npy"):
        raise ValueError("--tensor names a matrix in a checkpoint or .safetensors file given as --embeddings")


def _check_method(vocabulary: Vocabulary, similarity: Similarity, tree: NewTree) -> None:
    sources, method = given(similarity, ["text", "embeddings"]), similarity.method
    if method in CONTROLS:
        for_tokenizer = vocabulary.train_tokenizer is not None
        if similarity.embeddings or (similarity.text and method != "frequency" and not for_tokenizer):
            raise ValueError(f"--method {method} does not look at {sources[-1]}")
        if method == "flat" and given(tree, ["depth", "branching"]):
            raise ValueError(
                "--method flat has depth 1 and all tokens below the root: leave out --depth and --branching"
            )
    elif not sources:
        raise ValueError(f"give --text, --embeddings or --extend, or a control: --method {', '.join(CONTROLS)}")
    elif method == METHODS[1] and not similarity.text:
        raise ValueError(f"--method {METHODS[1]} needs --text")
