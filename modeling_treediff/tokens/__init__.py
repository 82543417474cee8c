"""What the tokens of a vocabulary read as, what kinds there are, and which of them stand for a node."""

from .leading_tokens import leading_tokens
from .token_kinds import KINDS, SPACE, find_tokens, printable, token_kinds, token_names

__all__ = ["KINDS", "SPACE", "find_tokens", "leading_tokens", "printable", "token_kinds", "token_names"]
