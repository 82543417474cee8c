"""What a vocabulary tree looks like: figures, names, a page to explore it."""

try:
    import scipy  # noqa: F401 -- checked here, so that its absence is explained once
except ImportError as error:
    raise ImportError("Inspecting trees needs scipy: pip install 'modeling-treediff[build]'.") from error

from .report_tables import ReportTable, report_tables
from .token_kinds import KINDS, find_tokens, token_kinds, token_names
from .tree_page import render_page
from .tree_report import TreeReport, leading_tokens, report_tree

__all__ = [
    "KINDS",
    "ReportTable",
    "TreeReport",
    "find_tokens",
    "leading_tokens",
    "render_page",
    "report_tables",
    "report_tree",
    "token_kinds",
    "token_names",
]
