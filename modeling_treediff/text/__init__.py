"""Text in: documents from files and datasets, tokens packed into windows, and what tokens read as."""

from .corpus import Corpus
from .documents import iterate_documents, read_documents, split_documents
from .leading_tokens import leading_tokens
from .node_pieces import Piece, decode_nodes, node_pieces
from .token_kinds import KINDS, SPACE, find_tokens, printable, token_kinds, token_names
from .tokenizing import tokenize_documents
from .windows import TokenWindows, pack_windows, unigram_entropy

__all__ = [
    "KINDS",
    "SPACE",
    "Corpus",
    "Piece",
    "TokenWindows",
    "decode_nodes",
    "find_tokens",
    "iterate_documents",
    "leading_tokens",
    "node_pieces",
    "pack_windows",
    "printable",
    "read_documents",
    "split_documents",
    "token_kinds",
    "token_names",
    "tokenize_documents",
    "unigram_entropy",
]
