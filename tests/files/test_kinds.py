"""The kind of a file: compression by the last ending, format by the one before, and both as the first bytes show."""

import bz2
import gzip
import io
import json
import lzma

import pyarrow
import pyarrow.parquet
import pytest

from modeling_treediff.files.kinds import FORMAT_OF_ENDING, OPENERS, FileKind, check_file, file_kind
from modeling_treediff.text import Corpus, read_documents

DOCUMENTS = ["one", "two, and more"]
COMPRESS = {".xz": lzma.compress, ".gz": gzip.compress, ".bz2": bz2.compress, "": bytes}


def content(kind):
    """The documents as a file of a format."""
    if kind == "parquet":
        stream = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.table({"text": DOCUMENTS}), stream)
        return stream.getvalue()
    return {
        "text": "\n\n".join(DOCUMENTS),
        "json": "\n".join(json.dumps({"text": text}) for text in DOCUMENTS),
        "csv": "text\n" + "\n".join(f'"{text}"' for text in DOCUMENTS) + "\n",
    }[kind].encode()


@pytest.mark.parametrize(
    "name",
    [
        "c4-train.00000-of-01024.json.gz", "talks.jsonl.xz", "notes.v2.txt", "notes.2024-01.md.bz2", "t.csv.gz",
        "t.txt.json", "t.json.txt", "T.TXT.XZ", "T.JSON.GZ", "a.parquet", "a.txt.parquet", "a.b.c.text",
    ],
)  # fmt: skip
def test_the_last_endings_say_how_a_file_is_read(tmp_path, name):
    *_, before, last = ["", *name.lower().split(".")]
    compression = f".{last}" if f".{last}" in OPENERS else ""
    kind = FORMAT_OF_ENDING[f".{before if compression else last}"]
    assert file_kind(name) == FileKind(kind, compression)
    (tmp_path / name).write_bytes(COMPRESS[compression](content(kind)))
    assert read_documents(tmp_path / name) == DOCUMENTS


@pytest.mark.parametrize(
    ("name", "kind"), [("corpus", "text"), ("c.dat", "json"), ("c.log.gz", "text"), ("c.gz", "json"), ("c.x", "csv")]
)
def test_where_they_do_not_the_format_is_asked_for(tmp_path, name, kind):
    file = tmp_path / name
    file.write_bytes(COMPRESS[file.suffix if file.suffix in COMPRESS else ""](content(kind)))
    with pytest.raises(ValueError, match=f"{name} has an unknown ending; known: .txt.* --text-format .text, json"):
        Corpus(file)
    assert read_documents(file, text_format=kind) == DOCUMENTS
    named = file.rename(tmp_path / f"named.{kind}{file.suffix if file.suffix in OPENERS else ''}")
    ending = Corpus(named)
    assert ending.fingerprint() == Corpus(named, text_format=kind).fingerprint()
    if kind != "text":
        with pytest.raises(ValueError, match=f"named.* is {kind} by its ending, not text: rename it, or leave out"):
            Corpus(named, text_format="text")


@pytest.mark.parametrize(
    ("name", "held", "message"),
    [
        ("a.txt.zst", b"\x28\xb5\x2f\xfd\x04\x00", ".zst data, which is not read: decompress it"),
        ("a.txt", b"\x28\xb5\x2f\xfd\x04\x00", ".zst data, which is not read: decompress it"),
        ("a.txt", gzip.compress(b"one"), "holds .gz data: let its name end in .gz"),
        ("a.jsonl", lzma.compress(b"{}"), "holds .xz data: let its name end in .xz"),
        ("a.csv.gz", bz2.compress(b"one"), "holds .bz2 data: let its name end in .bz2"),
        ("a.txt", bz2.compress(b""), "holds .bz2 data: let its name end in .bz2"),
        ("a.txt", content("parquet"), "holds .parquet data: let its name end in .parquet"),
        ("a.json", content("parquet"), "holds .parquet data: let its name end in .parquet"),
        ("a.txt.xz", b"plain", "holds no .xz data, whatever its name says: rename it"),
        ("a.jsonl.gz", b"{}", "holds no .gz data, whatever its name says: rename it"),
        ("a.parquet", b"{}", "holds no .parquet data, whatever its name says: rename it"),
        ("a.parquet.gz", gzip.compress(content("parquet")), "compressed, as Parquet files are inside already"),
        ("a.txt.zip", b"PK\x03\x04 and more", ".zip data, which is not read: decompress it"),
    ],
    ids=lambda value: "bytes" if isinstance(value, bytes) else None,  # some hold the time, but names are to stay
)
def test_a_name_that_its_bytes_contradict_is_refused_wherever_it_is_read(tmp_path, name, held, message):
    """Also where the same bytes under another name have been read before."""
    (tmp_path / name).write_bytes(held)
    for read in (Corpus.fingerprint, lambda corpus: list(corpus.documents())):
        with pytest.raises(ValueError, match=message):
            read(Corpus(tmp_path / name))


def test_a_text_that_only_looks_like_an_archive_is_text(tmp_path):
    for text in ("BZh is no archive", "PAR1 is a station", "PK 3", "7z"):
        (tmp_path / "a.txt").write_text(text)
        assert read_documents(tmp_path / "a.txt") == [text]


def test_folders_and_names_of_the_hub_have_no_kind(tmp_path):
    (tmp_path / "corpus.txt").mkdir()
    assert file_kind(tmp_path / "corpus.txt") is None and file_kind("someone/corpus-v1.5") is None
    with pytest.raises(ValueError, match="is a folder, and --text-format is for a single file"):
        file_kind(tmp_path, "json")
    with pytest.raises(ValueError, match="Unknown text format 'xml'; known: text, json, csv, parquet"):
        file_kind("a.txt", "xml")
    for name, said in (("none.txt", "text"), ("none.jsonl.gz", "json")):
        with pytest.raises(FileNotFoundError, match=f"There is no {said} file .*{name}"):
            check_file(tmp_path / name, file_kind(name))
