"""Drafts of a generation as pieces of text, with each position's depth and what changed last.

Shape legend: T positions.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from modeling_treediff.generation_treediff import GenerationStep
from modeling_treediff.text.node_pieces import Piece, node_pieces
from modeling_treediff.vocabulary_tree import VocabularyTree


@dataclass(frozen=True)
class ShownDraft:
    """A text during generation, after some forward passes.

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
        tree: VocabularyTree,
        tokenizer: PreTrainedTokenizerBase,
        show: Callable[[ShownDraft], object] | None = None,
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

    def draft(self, index: int = -1, level: int | None = None) -> ShownDraft:
        """Return a draft, by default the newest; with `level`, nothing is shown finer than that depth."""
        passes, node_ids, moved = self.steps[index]
        given = self.tree.depth[self.steps[0][1]] == self.tree.tree_depth
        finished = bool((self.tree.depth[node_ids] == self.tree.tree_depth).all())
        moved = moved & (not finished)  # what is finished is to be read: nothing is marked
        pieces = node_pieces(node_ids, self.tree, self.tokenizer, given, moved, level)
        return ShownDraft(passes, tuple(pieces), self.tree.tree_depth)

    @property
    def drafts(self) -> list[ShownDraft]:
        """Return all drafts so far."""
        return [self.draft(index) for index in range(len(self))]


def depth_name(depth: int, tree_depth: int) -> str:
    """Return what a depth of the tree is called in counts and legends."""
    return "open" if depth == 0 else "tokens" if depth == tree_depth else f"level {depth}"
