"""Drafts of a generation: in a terminal, as GIF and as HTML."""

try:
    import PIL  # noqa: F401 -- both checked here, so that their absence is explained once
    import rich  # noqa: F401
except ImportError as error:
    raise ImportError("Watching a generation needs rich and pillow: pip install 'modeling-treediff[demo]'.") from error

from .animation import check_suffix, write_animation
from .background import iterate_newest
from .drafts import DraftRecorder, ShownDraft, depth_name
from .page import draft_html, draft_style, legend_html, render_animation
from .terminal import TerminalView

__all__ = [
    "ShownDraft",
    "DraftRecorder",
    "TerminalView",
    "check_suffix",
    "depth_name",
    "draft_html",
    "draft_style",
    "iterate_newest",
    "legend_html",
    "render_animation",
    "write_animation",
]
