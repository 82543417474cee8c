"""Drafts in a terminal: redrawn in place, or one line each where there is no terminal."""

import time
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.padding import Padding
from rich.text import Text

from modeling_treediff.text.token_kinds import LINES, printable

from .colours import depth_colour
from .drafts import Piece, ShownDraft

SECONDS_PER_DRAFT = 0.06  # at least: small models are faster than the eye


class TerminalView:
    """A context in which `show` displays drafts, each in place of the one before."""

    def __init__(self, console: Console | None = None) -> None:
        """Draw on a console, by default the process's standard output."""
        self.console = console or Console(highlight=False, markup=False, emoji=False)
        self.live = Live(console=self.console, auto_refresh=False, vertical_overflow="crop")

    def __enter__(self) -> "TerminalView":
        """Take the terminal over."""
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the last draft standing."""
        self.live.stop()

    def show(self, draft: ShownDraft) -> None:
        """Display a draft."""
        if not self.console.is_terminal:
            print(f"{draft.caption}: {printable(draft.text.strip(), keep=LINES)}", flush=True)
            return
        self.live.update(as_renderable(draft), refresh=True)
        time.sleep(SECONDS_PER_DRAFT)


def as_renderable(draft: ShownDraft) -> Group:
    """Return a draft for rich: the text, and a line of counts in the colours of the levels."""
    text = Text()
    for piece in draft.pieces:
        word = piece.text.removeprefix(" ")
        text.append(" " * (len(piece.text) - len(word))).append(
            printable(word, keep=LINES), style=_style(piece, draft.tree_depth)
        )
    return Group(Padding(text, (1, 2)), Padding(_caption(draft), (0, 2)))


def _caption(draft: ShownDraft) -> Text:
    first, *counts = draft.caption.split(" · ")
    caption = Text().append(first, style="bold")
    for depth, count in enumerate(counts):
        caption.append(" · ", style="dim").append(count, style=depth_colour(depth, draft.tree_depth).terminal)
    return caption


def _style(piece: Piece, tree_depth: int) -> str:
    styles = {"open": "dim", "given": "bold"}.get(piece.kind, depth_colour(piece.depth, tree_depth).terminal)
    return f"{styles} reverse" if piece.moved else styles
