"""Drafts as HTML: one draft as a fragment, a whole generation as a self-contained page that plays it.

The page loads nothing, and no token can become markup.
"""

from collections.abc import Sequence
from html import escape
from importlib.resources import files
from typing import Any

from modeling_treediff.text.token_kinds import LINES, printable
from modeling_treediff.viewing.web_page import fill, render_web_page

from .colours import depth_colour
from .drafts import Piece, ShownDraft, depth_name


def draft_html(draft: ShownDraft) -> str:
    """Return a draft as a paragraph of spans, a bar of counts and a caption; `draft_style` gives their looks."""
    spans = "".join(map(_piece_html, draft.pieces))
    return (
        f'<div class="draft"><p class="draft-text">{spans}</p>{_bar(draft.counts)}'
        f'<p class="draft-caption">{escape(draft.caption)}</p></div>'
    )


def draft_style(tree_depth: int) -> str:
    """Return the CSS of drafts, with a colour for each depth, light and dark."""
    colours = [
        f":is(.draft, .draft-legend) .depth-{depth} {{ --depth: light-dark({colour.light}, {colour.dark}); }}"
        for depth, colour in ((depth, depth_colour(depth, tree_depth)) for depth in range(tree_depth + 1))
    ]
    return "\n".join([*colours, _asset("draft.css")])


def legend_html(tree_depth: int) -> str:
    """Return what the colours mean, as a list."""
    shown = {"open": "_"} | {f"level {depth}": f"<{depth}>" for depth in range(1, tree_depth)} | {"tokens": "word"}
    entries = [
        f'<li><span class="depth-{depth} {"open" if depth == 0 else "node" if depth < tree_depth else "token"}">'
        f"{escape(shown[name])}</span> {escape(_meaning(name))}</li>"
        for depth, name in ((depth, depth_name(depth, tree_depth)) for depth in range(tree_depth + 1))
    ]
    given = '<li><span class="given">word</span> given</li>'
    return f'<ul class="draft-legend" aria-label="Legend">{"".join(entries)}{given}</ul>'


def render_animation(drafts: Sequence[ShownDraft], title: str) -> str:
    """Return the page as HTML; write it as UTF-8.

    Args:
        drafts: of one generation, in order; all have as many positions.
        title: the page's title.

    Raises:
        ValueError: there are no drafts.

    """
    if not drafts:
        raise ValueError("There is no draft to show.")
    tree_depth = drafts[0].tree_depth
    body = {
        "title": escape(title),
        "legend": legend_html(tree_depth),
        "draft": draft_html(drafts[-1]),
        "last": str(len(drafts) - 1),
    }
    return render_web_page(
        title,
        style=draft_style(tree_depth) + "\n" + _asset("animation.css"),
        body=fill(_asset("animation.html"), body),
        data=animation_data(drafts),
        script=_asset("animation.js"),
    )


def animation_data(drafts: Sequence[ShownDraft]) -> list[dict[str, Any]]:
    """Return the drafts JSON-ready: captions, counts, and the pieces [position, HTML] that changed."""
    frames: list[dict[str, Any]] = []
    before = [""] * len(drafts[0].pieces)
    for draft in drafts:
        now = [_piece_html(piece) for piece in draft.pieces]
        changes = [[place, piece] for place, (piece, old) in enumerate(zip(now, before, strict=True)) if piece != old]
        frames.append({"caption": draft.caption, "counts": draft.counts, "changes": changes})
        before = now
    return frames


def _piece_html(piece: Piece) -> str:
    """Return a span; a leading space stands before it, so that a mark covers the word alone."""
    word = piece.text.removeprefix(" ")
    moved = " moved" if piece.moved else ""
    space = " " * (len(piece.text) - len(word))
    return f'{space}<span class="{piece.kind} depth-{piece.depth}{moved}">{escape(printable(word, keep=LINES))}</span>'


def _bar(counts: Sequence[int]) -> str:
    parts = "".join(f'<i class="depth-{depth}" style="flex-grow:{count}"></i>' for depth, count in enumerate(counts))
    return f'<div class="draft-bar" aria-hidden="true">{parts}</div>'


def _meaning(name: str) -> str:
    return {"open": "open", "tokens": "token"}.get(name, f"{name}: a cluster, by its most frequent token")


def _asset(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")
