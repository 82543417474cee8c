"""Text files: split at blank lines, whatever the blocks and the compression, and damage named where it is."""

import bz2
import gzip
import json
import lzma
import random
import re
from functools import partial

import pytest
from helpers.documents import DOCUMENTS

from modeling_treediff.text import iterate_documents, read_documents, text_files

TEXT = "First one,\nstill the first.\n\n\n  Second – with ünicode.\n \t\nThird"
FAST_XZ = partial(lzma.open, preset=0)  # the others take 100 MB and 20 ms for a text of any size
FORMATS = [("a.txt", open), ("a.txt.xz", FAST_XZ), ("a.txt.gz", gzip.open), ("a.md.bz2", bz2.open)]


@pytest.mark.parametrize(("name", "opener"), FORMATS)
def test_blank_lines_separate_documents(tmp_path, name, opener):
    with opener(tmp_path / name, "wb") as stream:
        stream.write(TEXT.encode())
    assert read_documents(tmp_path / name) == DOCUMENTS


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
    monkeypatch.setattr(text_files, "BLOCK_BYTES", block_bytes)
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
    monkeypatch.setattr(text_files, "BLOCK_BYTES", block_bytes)
    for text in random_texts():
        with opener(tmp_path / name, "wb") as stream:
            stream.write(text.encode())
        expected = [document.strip() for document in re.split(r"\n\s*\n", text) if document.strip()]
        if expected:
            assert list(iterate_documents(tmp_path / name)) == read_documents(tmp_path / name) == expected
        else:
            with pytest.raises(ValueError, match="holds no text"):
                list(iterate_documents(tmp_path / name))


def test_no_more_is_read_than_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "BLOCK_BYTES", 100)
    content = b"word " * 30 + b"\n\n" + b"x" * 200 + b"\xff"
    (tmp_path / "a.txt").write_bytes(content)
    documents = iterate_documents(tmp_path / "a.txt", max_characters=50)
    assert next(documents) == "word " * 9 + "word"
    assert len(next(documents)) == 49
    with pytest.raises(ValueError, match="byte 352 is 0xff"):
        list(documents)


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
            monkeypatch.setattr(text_files, "BLOCK_BYTES", block_bytes)
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
