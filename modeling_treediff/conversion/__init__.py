"""Conversion of a BERT-, GPT-2- or LLaMA-style checkpoint into a tree model with its weights."""

from .converted_model import convert, size_fields
from .families import FAMILIES
from .report import REPORT_NAME, ConversionReport
from .sources import Source, check_same_vocabulary, load_source, load_tokenizer

__all__ = [
    "FAMILIES",
    "REPORT_NAME",
    "ConversionReport",
    "Source",
    "check_same_vocabulary",
    "convert",
    "load_source",
    "load_tokenizer",
    "size_fields",
]
