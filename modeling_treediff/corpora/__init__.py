"""Text in: files and Hub datasets as lists of documents."""

from .documents import read_documents, split_documents

__all__ = ["read_documents", "split_documents"]
