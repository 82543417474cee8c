"""Rows of a dataset: from any one on, and a file that cannot be read is named."""

import json

import pytest

from modeling_treediff.files.kinds import file_kind
from modeling_treediff.text.dataset_rows import iterate_rows


def test_rows_are_read_from_any_one_on(tmp_path):
    rows = [{"text": str(number), "other": number} for number in range(5)]
    file, folder = tmp_path / "rows.jsonl", tmp_path / "folder"
    file.write_text("\n".join(map(json.dumps, rows)))
    folder.mkdir()
    (folder / "train.jsonl").write_bytes(file.read_bytes())
    for source in (file, folder):
        for first in (0, 3, 5):
            assert list(iterate_rows(source, file_kind(source), first=first)) == rows[first:]
    assert list(iterate_rows(folder, split="train[1:3]")) == rows[1:3]
    file.write_text("")
    assert list(iterate_rows(file, file_kind(file))) == []


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.jsonl", b'{"text": "a"}\n{"text":\n'),
        ("rows.jsonl", b'{"text": "caf\xe9"}\n'),
        ("rows.csv", b"text\ncaf\xe9\n"),
        ("rows.parquet", b"PAR1\x15 and no more"),
        ("rows.json.gz", b"\x1f\x8b\x08 damaged"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} cannot be read as {file_kind(name)}: "):
        list(iterate_rows(tmp_path / name, file_kind(name)))
