import bz2
import gzip
import json
import lzma
import random
import re

import pytest

from modeling_treediff.text import documents as reading
from modeling_treediff.text import is_held_out, iterate_documents, read_documents, split_documents

TEXT = "First one,\nstill the first.\n\n\n  Second – with ünicode.\n \t\nThird"
FORMATS = [("a.txt", open), ("a.txt.xz", lzma.open), ("a.txt.gz", gzip.open), ("a.md.bz2", bz2.open)]
DOCUMENTS = ["First one,\nstill the first.", "Second – with ünicode.", "Third"]


@pytest.mark.parametrize(("name", "opener"), FORMATS)
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
    assert read_documents(folder, "train[1:3]", "body") == DOCUMENTS[1:3]


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


@pytest.mark.parametrize("block_bytes", [1, 4, 2**20])
@pytest.mark.parametrize("position", [0, 3, 57])
def test_the_position_of_a_wrong_byte_does_not_depend_on_the_blocks(tmp_path, monkeypatch, block_bytes, position):
    monkeypatch.setattr(reading, "BLOCK_BYTES", block_bytes)
    content = "é漢".encode() * 20
    for wrong, start in [(b"\xff", position), ("漢".encode()[:2], position)]:  # no UTF-8 at all; a character cut off
        (tmp_path / "a.txt").write_bytes(content[:start] + wrong + b" and more")
        with pytest.raises(UnicodeDecodeError) as expected:
            (tmp_path / "a.txt").read_bytes().decode()
        place, value = expected.value.start, expected.value.object[expected.value.start]
        with pytest.raises(ValueError, match=f"not UTF-8: byte {place} is 0x{value:02x}"):
            list(iterate_documents(tmp_path / "a.txt"))
    (tmp_path / "a.txt").write_bytes(content[:-1])
    with pytest.raises(ValueError, match=f"not UTF-8: byte {len(content) - 3} is 0xe6"):
        list(iterate_documents(tmp_path / "a.txt"))


def random_texts(count=300):
    generator = random.Random(0)
    parts = ["a", "bc", "ß", "漢", "🙂", " ", "\n", "\n\n", "\r\n", "\r\n\r\n", "\t", "\u3000", "\x0b"]
    for _ in range(count):
        yield "".join(generator.choices(parts, k=generator.randrange(1, 60)))


@pytest.mark.parametrize(("name", "opener"), FORMATS)
@pytest.mark.parametrize("block_bytes", [1, 3, 10])
def test_streaming_is_splitting_the_whole_text(tmp_path, monkeypatch, name, opener, block_bytes):
    monkeypatch.setattr(reading, "BLOCK_BYTES", block_bytes)
    for text in random_texts():
        with opener(tmp_path / name, "wb") as stream:
            stream.write(text.encode())
        expected = [document.strip() for document in re.split(r"\n\s*\n", text) if document.strip()]
        if expected:
            assert list(iterate_documents(tmp_path / name)) == read_documents(tmp_path / name) == expected
        else:
            with pytest.raises(ValueError, match="holds no text"):
                list(iterate_documents(tmp_path / name))


@pytest.mark.parametrize("max_characters", [1, 2, 5, 20])
def test_long_documents_come_in_the_same_pieces_whatever_the_blocks(tmp_path, monkeypatch, max_characters):
    file, rows = tmp_path / "a.txt", tmp_path / "a.jsonl"
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    everything = []
    for text in random_texts():
        if not text.strip():
            continue
        file.write_bytes(text.encode())
        documents = read_documents(file)
        everything += documents
        results = []
        for block_bytes in (1, 7, 2**20):
            monkeypatch.setattr(reading, "BLOCK_BYTES", block_bytes)
            results.append(list(iterate_documents(file, max_characters=max_characters)))
        assert results[0] == results[1] == results[2]
        assert max(map(len, results[0])) <= max_characters
        assert "".join("".join(results[0]).split()) == "".join("".join(documents).split())  # no letter is lost
        if max(map(len, documents)) <= max_characters:
            assert results[0] == documents
    rows.write_text("\n".join(json.dumps({"text": document}) for document in everything))
    file.write_bytes("\n\n".join(everything).encode())
    expected = list(iterate_documents(file, max_characters=max_characters))
    assert list(iterate_documents(rows, max_characters=max_characters)) == expected


def test_pieces_end_at_white_space_where_there_is_any(tmp_path):
    (tmp_path / "a.txt").write_text("four score and seven years\n\nago ourfathersbrought\tforth")
    pieces = list(iterate_documents(tmp_path / "a.txt", max_characters=10))
    assert pieces == ["four score", "and seven", "years", "ago", "ourfathers", "brought", "forth"]
    with pytest.raises(ValueError, match="max_characters must be at least 1, got 0"):
        list(iterate_documents(tmp_path / "a.txt", max_characters=0))


def test_no_more_is_read_than_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "BLOCK_BYTES", 100)
    content = b"word " * 30 + b"\n\n" + b"x" * 200 + b"\xff"
    (tmp_path / "a.txt").write_bytes(content)
    documents = iterate_documents(tmp_path / "a.txt", max_characters=50)
    assert next(documents) == "word " * 9 + "word"
    assert len(next(documents)) == 49
    with pytest.raises(ValueError, match="byte 352 is 0xff"):
        list(documents)


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
