"""Text in: files and Hub datasets as documents, one by one or as lists."""

from .documents import iterate_documents, read_documents, split_documents

__all__ = ["iterate_documents", "read_documents", "split_documents"]
