"""Writing a generation as a file that plays it."""

from collections.abc import Sequence
from pathlib import Path

from modeling_treediff.files.atomic_files import write_atomically

from .drafts import ShownDraft
from .page import render_animation
from .picture import write_gif

MOST_FRAMES = 40  # of a GIF, which holds each as a picture


def write_animation(file: Path, drafts: Sequence[ShownDraft], title: str) -> None:
    """Write the drafts as an animated .gif, evenly chosen where they are many, or as an .html page with all of them.

    Raises:
        ValueError: another suffix, or no drafts.

    """
    check_suffix(file)
    if file.suffix == ".gif":
        write_atomically(file, lambda path: write_gif(path, choose_evenly(drafts, MOST_FRAMES)))
    else:
        write_atomically(file, lambda path: path.write_text(render_animation(drafts, title), encoding="utf-8"))


def check_suffix(file: Path) -> None:
    """Raise ValueError for a file that cannot be written, before anything is generated."""
    if file.suffix not in (".gif", ".html"):
        raise ValueError(f"An animation is a .gif or an .html file, not {file}.")


def choose_evenly(drafts: Sequence[ShownDraft], most: int) -> list[ShownDraft]:
    """Return at most `most` drafts, evenly spaced, the first and the last included."""
    if len(drafts) <= most:
        return list(drafts)
    last = len(drafts) - 1
    return [drafts[round(last * index / (most - 1))] for index in range(most)]
