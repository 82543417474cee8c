"""JSON files come back as they were, without what JSON has no word for."""

import math

import pytest

from modeling_treediff.files.json_files import read_json, without_non_numbers, write_json


def test_what_is_written_is_read(tmp_path):
    content = {"name": "façade", "levels": [1, 2.5], "inside": {"none": None}}
    write_json(tmp_path / "file.json", content)
    assert read_json(tmp_path / "file.json") == content


def test_what_is_no_number_is_null_at_any_depth():
    measured = {"loss": math.nan, "level_losses": (1.0, math.inf), "peak": {"here": [-math.inf, 2]}, "sample": "inf"}
    expected = {"loss": None, "level_losses": [1.0, None], "peak": {"here": [None, 2]}, "sample": "inf"}
    assert without_non_numbers(measured) == expected


@pytest.mark.parametrize("content", ["", "{", "[1]", "\x00", '"text"'])
def test_anything_else_reads_as_nothing(tmp_path, content):
    (tmp_path / "file.json").write_text(content)
    assert read_json(tmp_path / "file.json") == read_json(tmp_path / "missing.json") == {}
