"""Where the text of a dataset is: a `Corpus` with the same defaults."""

from dataclasses import fields

from helpers.options import parse

from modeling_treediff.cli.options.text import Dataset
from modeling_treediff.text import Corpus


def test_the_options_are_the_fields_of_a_corpus():
    assert {one.name for one in fields(Dataset)} == {one.name for one in fields(Corpus)} - {"source"}
    assert Dataset().corpus("text.jsonl") == Corpus("text.jsonl")
    assert Dataset("validation", "small", "body").corpus("a/b") == Corpus("a/b", "validation", "body", "small")
    read = parse("evaluate", "model", "a.dat", "--text-format", "text", "--documents", "lines")[2]
    assert read.corpus("a.dat") == Corpus("a.dat", text_format="text", document_bounds="lines")
