"""Documents from text files and datasets, and the rule by which some are held out."""

import json

import pytest
from helpers.documents import DOCUMENTS

from modeling_treediff.text import is_held_out, read_documents, split_documents

TEXT = "First one,\nstill the first.\n\n\n  Second – with ünicode.\n \t\nThird"


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
    assert read_documents(folder, "train[1:3]", "body") == DOCUMENTS[1:3]


@pytest.mark.parametrize("content", [b"", b" \n\n \n"])
def test_empty_text_is_refused(tmp_path, content):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(ValueError, match="holds no text"):
        read_documents(tmp_path / "a.txt")


def test_an_empty_dataset_holds_no_text(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    for content in ("", '{"text": null}\n{"text": " "}\n'):
        (tmp_path / "rows.jsonl").write_text(content)
        with pytest.raises(ValueError, match="holds no text"):
            read_documents(tmp_path / "rows.jsonl")


def test_every_nth_document_is_held_out():
    documents = [str(index) for index in range(10)]
    training, held_out = split_documents(documents, 4)
    assert held_out == ["3", "7"]
    assert sorted(training + held_out, key=int) == documents
    assert [text for text in documents if is_held_out(int(text), 4)] == held_out and not is_held_out(3, None)
    with pytest.raises(ValueError, match="3 documents are too few"):
        split_documents(documents[:3], 4)
    for n in (1, 0, -1):
        with pytest.raises(ValueError, match="take 2 or more"):
            split_documents(documents, n)


def test_unknown_endings_of_files_are_not_looked_up_elsewhere(tmp_path):
    (tmp_path / "notes.log").write_text(TEXT)
    with pytest.raises(ValueError, match="notes.log has an unknown ending; known: .txt"):
        read_documents(tmp_path / "notes.log")


@pytest.mark.parametrize(("row", "kind"), [('{"text": 5}', "int"), ('{"text": ["a"]}', "list")])
def test_a_column_of_something_else_is_named(tmp_path, row, kind):
    file = tmp_path / "rows.jsonl"
    file.write_text(row + "\n")
    with pytest.raises(ValueError, match=f"'text' of .*rows.jsonl holds {kind}, not text"):
        read_documents(file)
