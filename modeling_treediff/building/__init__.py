"""From text or embeddings to a vocabulary tree, before any training."""

try:
    import scipy  # noqa: F401 -- checked here, so that its absence is explained once
except ImportError as error:
    raise ImportError("Building trees needs scipy: pip install 'modeling-treediff[build]'.") from error

from .corpus_embeddings import count_tokens, token_embeddings
from .tokenizer import train_tokenizer
from .tree_builder import build_tree

__all__ = ["build_tree", "count_tokens", "token_embeddings", "train_tokenizer"]
