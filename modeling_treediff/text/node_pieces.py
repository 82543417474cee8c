"""Nodes of the tree as text: tokens as they are, clusters by their most frequent token, open positions as `_`.

Shape legend: B sequences, T positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from transformers import PreTrainedTokenizerBase

from modeling_treediff.vocabulary_tree import VocabularyTree

Kind = Literal["open", "node", "token", "given"]


@dataclass(frozen=True)
class Piece:
    """One position of a draft.

    Attributes:
        text: as it is shown; the texts of a finished draft join to what the tokenizer decodes.
        kind: "open" (any token may follow), "node" (a token of this cluster), "token", or "given" from the start.
        depth: of its node in the tree.
        moved: whether the last forward pass changed it.

    """

    text: str
    kind: Kind
    depth: int
    moved: bool = False


def decode_nodes(
    node_ids: torch.Tensor, tree: VocabularyTree, tokenizer: PreTrainedTokenizerBase, level: int | None = None
) -> str | list[str]:
    """Write nodes (T,) or (B, T) as text: ` _` for the root, an internal node as its most frequent <token>.

    With `level`, nodes deeper than that are shown by their ancestors there: what a text says at that level.

    Raises:
        ValueError: a level that the tree does not have.

    """
    if level is not None and not 0 <= level <= tree.tree_depth:
        raise ValueError(f"The tree has levels 0 (root) to {tree.tree_depth} (tokens), not {level}.")
    if node_ids.ndim == 2:
        return [str(decode_nodes(row, tree, tokenizer, level)) for row in node_ids]
    pieces = node_pieces(node_ids.to(tree.depth.device), tree, tokenizer, level=level)
    return "".join(piece.text for piece in pieces).strip()


def node_pieces(
    node_ids: torch.Tensor,
    tree: VocabularyTree,
    tokenizer: PreTrainedTokenizerBase,
    given: torch.Tensor | None = None,
    moved: torch.Tensor | None = None,
    level: int | None = None,
) -> list[Piece]:
    """Return the pieces of a sequence of nodes.

    Args:
        node_ids: (T,) nodes of the tree.
        tree: the vocabulary tree.
        tokenizer: decodes its leaves.
        given: (T,) True where a token was given; by default nowhere.
        moved: (T,) True where the last pass changed something; by default nowhere.
        level: the finest depth to show: deeper nodes appear as their ancestor of that depth. Given tokens stay.

    """
    nowhere = torch.zeros_like(node_ids, dtype=torch.bool)
    given, moved = nowhere if given is None else given, nowhere if moved is None else moved
    if level is not None:
        node_ids = torch.where(given, node_ids, tree.coarsen(node_ids, level))
    depth, representative = tree.depth[node_ids], tree.representative[node_ids]
    is_token = (depth == tree.tree_depth).tolist()
    texts = _token_texts(tokenizer, representative.tolist(), is_token)
    pieces = []
    for text, at, fixed, new in zip(texts, depth.tolist(), given.tolist(), moved.tolist(), strict=True):
        kind: Kind = "given" if fixed else "open" if at == 0 else "token" if at == tree.tree_depth else "node"
        shown = " _" if kind == "open" else _in_brackets(text) if kind == "node" else text
        pieces.append(Piece(shown, kind, at, new))
    return pieces


def _in_brackets(text: str) -> str:
    """Return a cluster's most frequent token as the name of the cluster."""
    name = text.strip() or ("↵" if "\n" in text else "␣")
    return f"{' ' if text.startswith(' ') else ''}<{name}>"


def _token_texts(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], is_token: Sequence[bool]) -> list[str]:
    """Return what each token adds to the text before it; bytes of one character appear with the last of them.

    Tokens are decoded after their predecessors: many tokenizers write a token differently at the start of a text.
    """
    texts = [""] * len(tokens)
    context = shown = 0  # decoding starts at `context`; tokens before `shown` have their texts
    for end in range(1, len(tokens) + 1):
        text = str(tokenizer.decode(list(tokens[context:end])))
        if text.endswith("\ufffd") and all(is_token[end - 1 : end + 1]) and end < len(tokens):
            continue
        texts[end - 1] = text[len(str(tokenizer.decode(list(tokens[context:shown])))) :]
        context, shown = shown, end
    return texts
