"""A page to explore a vocabulary tree."""

from .tree_page import render_page

__all__ = ["render_page"]
