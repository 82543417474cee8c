"""Drafts of a generation as pieces of text: what stands at every position, how far it is refined, what just moved.

Shape legend: T positions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import PreTrainedTokenizerBase

from modeling_treediff.generation_treediff import GenerationStep

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


@dataclass(frozen=True)
class Draft:
    """A text on its way, after some forward passes.

    Attributes:
        num_forward_passes: spent so far.
        pieces: one per position.
        tree_depth: depth at which nodes are tokens.

    """

    num_forward_passes: int
    pieces: tuple[Piece, ...]
    tree_depth: int

    @property
    def text(self) -> str:
        """Return the pieces joined."""
        return "".join(piece.text for piece in self.pieces)

    @property
    def counts(self) -> list[int]:
        """Return how many positions are at each depth 0..tree_depth, without the given ones."""
        depths = [piece.depth for piece in self.pieces if piece.kind != "given"]
        return [depths.count(depth) for depth in range(self.tree_depth + 1)]

    @property
    def caption(self) -> str:
        """Return the number of passes and the counts per depth as one line."""
        names = (depth_name(depth, self.tree_depth) for depth in range(self.tree_depth + 1))
        counts = (f"{name}: {count}" for name, count in zip(names, self.counts, strict=True))
        return " · ".join([f"pass {self.num_forward_passes}", *counts])


class DraftRecorder:
    """A callback for `generate` that keeps the drafts of one text.

    Args:
        tree: the model's tree.
        tokenizer: the model's tokenizer.
        show: called with every draft as it comes.
        row: the text to follow, of those generated together.

    """

    def __init__(
        self,
        tree: Any,  # noqa: ANN401 -- a VocabularyTree, also of a checkpoint's own code
        tokenizer: PreTrainedTokenizerBase,
        show: Callable[[Draft], object] | None = None,
        row: int = 0,
    ) -> None:
        """Start without drafts."""
        self.tree, self.tokenizer, self.show, self.row = tree, tokenizer, show, row
        self.steps: list[tuple[int, torch.Tensor, torch.Tensor]] = []

    def __call__(self, step: GenerationStep) -> None:
        """Keep a step of `generate`; the first comes before any pass and tells which tokens are given."""
        self.steps.append((step.num_forward_passes, step.node_ids[self.row].clone(), step.moved[self.row].clone()))
        if self.show is not None:
            self.show(self.draft())

    def __len__(self) -> int:
        """Return the number of drafts."""
        return len(self.steps)

    def draft(self, index: int = -1, level: int | None = None) -> Draft:
        """Return a draft, by default the newest; with `level`, nothing is shown finer than that depth."""
        passes, node_ids, moved = self.steps[index]
        given = self.tree.depth[self.steps[0][1]] == self.tree.tree_depth
        finished = bool((self.tree.depth[node_ids] == self.tree.tree_depth).all())
        moved = moved & (not finished)  # what is finished is to be read: nothing is marked
        pieces = draft_pieces(node_ids, self.tree, self.tokenizer, given, moved, level)
        return Draft(passes, tuple(pieces), self.tree.tree_depth)

    @property
    def drafts(self) -> list[Draft]:
        """Return all drafts so far."""
        return [self.draft(index) for index in range(len(self))]


def draft_pieces(
    node_ids: torch.Tensor,
    tree: Any,  # noqa: ANN401 -- a VocabularyTree, also of a checkpoint's own code
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


def depth_name(depth: int, tree_depth: int) -> str:
    """Return what a depth of the tree is called in counts and legends."""
    return "open" if depth == 0 else "tokens" if depth == tree_depth else f"level {depth}"


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
