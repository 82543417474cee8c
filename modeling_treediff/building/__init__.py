"""From text or embeddings to a vocabulary tree, before any training."""

try:
    import scipy  # noqa: F401 -- checked here, so that its absence is explained once
except ImportError as error:
    raise ImportError("Building trees needs scipy: pip install 'modeling-treediff[build]'.") from error

from .ancestors import tree_from_ancestors
from .balanced import random_tree, tree_from_order
from .budget import budget_config, count_parameters
from .checkpoint_embeddings import load_embeddings
from .corpus_embeddings import token_embeddings
from .embedding_matrix import reduce_embeddings
from .extension import extend_tree
from .from_text import build_tree_from_text
from .report_tables import ReportTable, report_tables
from .text_counts import TextCounts, count_text
from .tokenizer import train_tokenizer
from .tree_builder import METHODS, build_tree
from .tree_report import TreeReport, report_tree

__all__ = [
    "METHODS",
    "ReportTable",
    "TextCounts",
    "TreeReport",
    "budget_config",
    "build_tree",
    "build_tree_from_text",
    "count_parameters",
    "count_text",
    "extend_tree",
    "load_embeddings",
    "random_tree",
    "reduce_embeddings",
    "report_tables",
    "report_tree",
    "token_embeddings",
    "train_tokenizer",
    "tree_from_ancestors",
    "tree_from_order",
]
