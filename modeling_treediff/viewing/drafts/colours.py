"""The colours of the tree's levels, from coarse to fine; tokens have the colour of text."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Colour:
    """One colour where it is used: a terminal's own, and #rrggbb on a light and on a dark ground."""

    terminal: str
    light: str
    dark: str


OPEN = Colour("bright_black", "#6b7480", "#8b96a3")
TOKEN = Colour("", "#16191d", "#eceff2")
LEVELS = (
    Colour("magenta", "#a11d86", "#f09adf"),
    Colour("blue", "#2458c5", "#8fb8ff"),
    Colour("cyan", "#0b6e78", "#5fd3df"),
    Colour("green", "#2c7a2c", "#86d986"),
    Colour("yellow", "#8a5a00", "#f0c35a"),
)


def depth_colour(depth: int, tree_depth: int) -> Colour:
    """Return the colour of nodes of a depth; in trees deeper than there are colours, neighbouring levels share one."""
    if depth in (0, tree_depth):
        return OPEN if depth == 0 else TOKEN
    internal = max(tree_depth - 1, len(LEVELS))
    return LEVELS[(depth - 1) * len(LEVELS) // internal]
