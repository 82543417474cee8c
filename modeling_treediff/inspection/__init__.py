"""What a vocabulary tree looks like: figures, a page to explore it."""

try:
    import scipy  # noqa: F401 -- checked here, so that its absence is explained once
except ImportError as error:
    raise ImportError("Inspecting trees needs scipy: pip install 'modeling-treediff[build]'.") from error

from .report_tables import ReportTable, report_tables
from .tree_page import render_page
from .tree_report import TreeReport, report_tree

__all__ = [
    "ReportTable",
    "TreeReport",
    "render_page",
    "report_tables",
    "report_tree",
]
