import gzip
import json
import lzma

import pytest

from modeling_treediff.corpora import read_documents, split_documents

TEXT = "First one,\nstill the first.\n\n\n  Second – with ünicode.\n \t\nThird"
DOCUMENTS = ["First one,\nstill the first.", "Second – with ünicode.", "Third"]


@pytest.mark.parametrize(("name", "opener"), [("a.txt", open), ("a.txt.xz", lzma.open), ("a.txt.gz", gzip.open)])
def test_blank_lines_separate_documents(tmp_path, name, opener):
    with opener(tmp_path / name, "wb") as stream:
        stream.write(TEXT.encode())
    assert read_documents(tmp_path / name) == DOCUMENTS


def test_datasets_give_one_document_per_row(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = [{"body": text, "other": 1} for text in [*DOCUMENTS, "", None]]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    assert read_documents(tmp_path / "rows.jsonl", text_column="body") == DOCUMENTS
    with pytest.raises(ValueError, match="no column 'text'; it has body, other"):
        read_documents(tmp_path / "rows.jsonl")
    folder = tmp_path / "dataset"
    folder.mkdir()
    (folder / "train.jsonl").write_text((tmp_path / "rows.jsonl").read_text())
    assert read_documents(folder, text_column="body") == DOCUMENTS


@pytest.mark.parametrize("content", [b"", b" \n\n \n"])
def test_empty_text_is_refused(tmp_path, content):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(ValueError, match="holds no text"):
        read_documents(tmp_path / "a.txt")


def test_undecodable_and_damaged_files_are_named(tmp_path):
    (tmp_path / "a.txt").write_bytes("façade".encode("latin-1"))
    with pytest.raises(ValueError, match=r"a.txt is not UTF-8: byte 2 is 0xe7"):
        read_documents(tmp_path / "a.txt")
    (tmp_path / "a.txt.xz").write_bytes(lzma.compress(TEXT.encode())[:-20])
    with pytest.raises(ValueError, match="cannot be decompressed"):
        read_documents(tmp_path / "a.txt.xz")
    with pytest.raises(FileNotFoundError, match="no text file"):
        read_documents(tmp_path / "b.txt")


def test_every_nth_document_is_held_out():
    documents = [str(index) for index in range(10)]
    training, held_out = split_documents(documents, 4)
    assert held_out == ["3", "7"]
    assert sorted(training + held_out, key=int) == documents
    with pytest.raises(ValueError, match="3 documents are too few"):
        split_documents(documents[:3], 4)
    for n in (1, 0, -1):
        with pytest.raises(ValueError, match="take 2 or more"):
            split_documents(documents, n)


def test_unknown_endings_of_files_are_not_looked_up_elsewhere(tmp_path):
    (tmp_path / "notes.log").write_text(TEXT)
    with pytest.raises(ValueError, match="notes.log has an unknown ending; known: .txt"):
        read_documents(tmp_path / "notes.log")
