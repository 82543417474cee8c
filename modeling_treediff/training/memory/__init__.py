"""Memory of a training step: less of it (`make_lean`), measured, planned, and what to do when it runs out."""

from .lean_blocks import make_lean, undo_lean

__all__ = ["make_lean", "undo_lean"]
