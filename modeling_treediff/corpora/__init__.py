"""Text in: files and Hub datasets as documents, one by one or as lists."""

from .corpus import Corpus
from .documents import iterate_documents, read_documents, split_documents

__all__ = ["Corpus", "iterate_documents", "read_documents", "split_documents"]
