"""Constraints on generated texts: an object for `generate(constraints=...)`."""

from .bad_words import BadWords
from .token_constraints import TokenConstraints

__all__ = ["BadWords", "TokenConstraints"]
