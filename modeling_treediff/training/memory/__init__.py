"""Memory of a training step: saved (`make_lean`), measured, planned, and advice when it runs out."""

from .lean_blocks import make_lean, undo_lean

__all__ = ["make_lean", "undo_lean"]
