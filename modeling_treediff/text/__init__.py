"""Text: documents from files and datasets, tokenisation, packing into windows, names of tokens."""

from .corpus import Corpus, TextSource
from .documents import is_held_out, iterate_documents, read_documents, split_documents
from .leading_tokens import leading_tokens
from .node_pieces import Piece, decode_nodes, node_pieces
from .packing import pack_pieces, pack_windows
from .token_kinds import KINDS, SPACE, find_tokens, printable, token_kinds, token_names
from .tokenizing import PIECE_CHARACTERS, encode_documents, tokenize_documents, tokenize_pieces, tokenizer_fingerprint
from .tree_tokenizer import tokenizer_facts, vocabulary_sha256
from .windows import TokenWindows, unigram_entropy

__all__ = [
    "KINDS",
    "PIECE_CHARACTERS",
    "SPACE",
    "Corpus",
    "Piece",
    "TextSource",
    "TokenWindows",
    "decode_nodes",
    "encode_documents",
    "find_tokens",
    "is_held_out",
    "iterate_documents",
    "leading_tokens",
    "node_pieces",
    "pack_pieces",
    "pack_windows",
    "printable",
    "read_documents",
    "split_documents",
    "token_kinds",
    "token_names",
    "tokenize_documents",
    "tokenize_pieces",
    "tokenizer_facts",
    "tokenizer_fingerprint",
    "unigram_entropy",
    "vocabulary_sha256",
]
