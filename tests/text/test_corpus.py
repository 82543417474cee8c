"""A corpus: the same documents from any number on, and a fingerprint of all that decides on them."""

import gzip
import json
import os

import pytest
from datasets import Dataset
from helpers.documents import DOCUMENTS
from helpers.processes import SAMPLE, run_python

from modeling_treediff.text import Corpus, read_documents, text_files


@pytest.mark.parametrize("kind", ["txt", "jsonl", "csv", "parquet", "folder"])
def test_a_corpus_can_be_read_from_any_document_on(tmp_path, kind):
    texts = [*DOCUMENTS, "", *(f"Document {number}." for number in range(20))]
    file = tmp_path / f"corpus.{kind}"
    if kind == "txt":
        file.write_text("\n\n".join(texts))
    elif kind == "folder":
        file.mkdir()
        Dataset.from_dict({"text": texts}).to_json(file / "train.jsonl")
    else:
        getattr(Dataset.from_dict({"text": texts}), f"to_{kind.replace('jsonl', 'json')}")(file)
    corpus = Corpus(file)
    whole = list(corpus.documents())
    assert [text for _, text in whole] == [text for text in texts if text] == read_documents(file)
    for first in (0, 1, 3, 4, 20, whole[-1][0], whole[-1][0] + 1):
        assert list(corpus.documents(first)) == [document for document in whole if document[0] >= first]
    if kind != "txt":
        assert [row["text"] or "" for row in corpus.rows()] == texts
        assert [texts[number] for number, _ in whole] == [text for _, text in whole]


def test_a_fingerprint_follows_the_content_and_what_is_read_of_it(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "one", "other": "two"}\n')
    before = Corpus(file).fingerprint()
    moved = file.rename(tmp_path / "b.json")
    assert Corpus(moved).fingerprint() == before != Corpus(moved, text_column="other").fingerprint()
    times = moved.stat()
    moved.write_text('{"text": "One", "other": "two"}\n')
    os.utime(moved, ns=(times.st_atime_ns, times.st_mtime_ns))  # as long and as old as before
    assert Corpus(moved).fingerprint() != before
    folder = tmp_path / "folder"
    folder.mkdir()
    inside = moved.rename(folder / "train.jsonl")
    of_folder = Corpus(folder).fingerprint()
    assert Corpus(folder).fingerprint() == of_folder != Corpus(folder, "train[:50%]").fingerprint()
    inside.write_text('{"text": "Two", "other": "two"}\n')
    assert Corpus(folder).fingerprint() != of_folder
    with pytest.raises(FileNotFoundError, match="no text file"):
        Corpus(tmp_path / "none.txt").fingerprint()
    with pytest.raises(ValueError, match="plain text"):
        Corpus(tmp_path / "none.txt").rows()


def test_the_same_bytes_read_in_another_way_have_another_fingerprint(tmp_path):
    """A file of one format saved under the ending of another one is another text."""
    content, fingerprints = b'"text"\n"one"\n', {}
    names = ("a.txt", "a.md", "a.csv", "a.jsonl", "a.json", "a.txt.gz", "a.csv.gz", "a.json.gz")
    for name in names:
        (tmp_path / name).write_bytes(gzip.compress(content, mtime=0) if name.endswith(".gz") else content)
        fingerprints[name] = Corpus(tmp_path / name).fingerprint()
    assert fingerprints["a.txt"] == fingerprints["a.md"] and fingerprints["a.json"] == fingerprints["a.jsonl"]
    assert len(set(fingerprints.values())) == len(fingerprints) - 2
    (tmp_path / "a").write_bytes(content)
    by_option = {name: Corpus(tmp_path / "a", text_format=name).fingerprint() for name in ("text", "json", "csv")}
    assert list(by_option.values()) == [fingerprints[name] for name in ("a.txt", "a.json", "a.csv")]
    folder = tmp_path / "folder"
    folder.mkdir()
    inside = folder / "train.csv"
    inside.write_bytes(b"text\none\n")
    as_csv = Corpus(folder).fingerprint()
    inside.rename(folder / "train.txt")
    assert Corpus(folder).fingerprint() != as_csv


@pytest.mark.parametrize("name", ["a.txt", "a.txt.xz", "a.jsonl", "a.csv", "a.parquet"])
def test_a_split_of_a_file_is_refused(tmp_path, name):
    """It would be ignored, and a model validated on what it is trained on."""
    with pytest.raises(ValueError, match="has no split 'validation': .*--validation-text"):
        Corpus(tmp_path / name, "validation")
    with pytest.raises(ValueError, match="has no split"):
        read_documents(tmp_path / name, "validation")


def test_a_text_file_is_read_and_packed_without_datasets():
    code = (
        "import sys; sys.modules['datasets'] = None\n"
        "from modeling_treediff.text import Corpus, pack_windows, tokenize_documents\n"
        "from transformers import AutoTokenizer\n"
        "corpus = Corpus(sys.argv[1] + '/validation.txt.xz')\n"
        "documents = [text for _, text in corpus.documents()]\n"
        "row = tokenize_documents(documents, AutoTokenizer.from_pretrained(sys.argv[1]))\n"
        "print(len(corpus.fingerprint()), pack_windows(row, 64).shape[1])\n"
        "try: next(Corpus('a-hub-id').documents())\n"
        "except ImportError as error: print(error)\n"
    )
    ran = run_python(SAMPLE, code=code)
    assert ran.stdout.splitlines()[0] == "64 64", ran.stderr
    assert "Reading the dataset a-hub-id needs pip install" in ran.stdout


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.md", "a.jsonl", "a.csv", "folder"])
def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path, name):
    """Before the file, and before the documents of files that were joined; inside a text the character stays."""
    texts, file = ["First – one.", "Second\ufeff one.", "Third."], tmp_path / name
    if name == "folder":
        file.mkdir()
        (file / "train.txt").write_text("\n".join(texts), encoding="utf-8-sig")
    elif name.endswith("l"):
        file.write_text("\n".join(json.dumps({"text": f"\ufeff{text}"}) for text in texts), encoding="utf-8-sig")
    elif name.endswith("v"):
        Dataset.from_dict({"text": texts}).to_csv(file, encoding="utf-8-sig")
    else:
        joined = "\n\n".join(f"\ufeff{text}" for text in texts).encode()
        file.write_bytes(gzip.compress(joined) if name.endswith("gz") else joined)
    assert [text for _, text in Corpus(file).documents()] == texts
    assert "".join(piece for _, piece in Corpus(file).documents(max_characters=5)).count("\ufeff") == 1


def test_a_text_of_nothing_but_marks_is_empty_and_another_encoding_is_named(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf \n\n\xef\xbb\xbf\n")
    with pytest.raises(ValueError, match="holds no text"):
        read_documents(tmp_path / "a.txt")
    for order in ("le", "be"):
        (tmp_path / "a.txt").write_bytes("\ufeffOne".encode(f"utf-16-{order}"))
        with pytest.raises(ValueError, match="not UTF-8: byte 0 is .*iconv -f utf-16"):
            read_documents(tmp_path / "a.txt")


BOUNDED = {
    "blank-lines": ["One\nand two", "three\n four"],
    "lines": ["One", "and two", "three", "four"],
    "whole-file": ["One\nand two\n \nthree\n four"],
}


@pytest.mark.parametrize("bounds", BOUNDED)
@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "folder"])
def test_documents_are_bounded_as_asked(tmp_path, monkeypatch, name, bounds):
    monkeypatch.setattr(text_files, "BLOCK_BYTES", 3)
    text, file = b"One\nand two\n \nthree\n four\n", tmp_path / name
    if name == "folder":
        file.mkdir()
        (file / "train.txt").write_bytes(text.replace(b"\n \n", b"\n\n"))
    else:
        file.write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    corpus = Corpus(file, document_bounds=bounds)
    documents = [document for _, document in corpus.documents()]
    assert [text.replace("\n \n", "\n\n") for text in BOUNDED[bounds]] == [
        text.replace("\n \n", "\n\n") for text in documents
    ]
    for number, _ in corpus.documents():
        assert list(corpus.documents(number)) == [one for one in corpus.documents() if one[0] >= number]


def test_other_bounds_are_another_text_and_rows_have_none(tmp_path):
    (tmp_path / "a.txt").write_text("One\n\ntwo")
    bounds = (None, *BOUNDED)
    fingerprints = [Corpus(tmp_path / "a.txt", document_bounds=one).fingerprint() for one in bounds]
    assert fingerprints[0] == fingerprints[1] and len(set(fingerprints)) == 3
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "train.jsonl").write_text('{"text": "a"}')
    for read in (Corpus.fingerprint, lambda corpus: next(corpus.documents())):
        with pytest.raises(ValueError, match="Each row of .* is a document: leave out --documents"):
            read(Corpus(folder, document_bounds="lines"))
    with pytest.raises(ValueError, match="Each row of .*jsonl is a document: leave out --documents"):
        Corpus(folder / "train.jsonl", document_bounds="lines")
    with pytest.raises(ValueError, match="Unknown bounds of documents 'pages'; known: blank-lines, lines, whole-file"):
        Corpus("a.txt", document_bounds="pages")
