"""Tokens per second by the length of the text."""

import json
import sys

import pytest

from benchmarks.generation import lengths


def test_every_way_writes_and_is_timed_in_turns(tmp_path, monkeypatch, capsys):
    command = "lengths --lengths 8 32 --batches 1 2 --turns 2 --vocabulary 100 --hidden-size 64 --layers 1"
    monkeypatch.setattr(sys, "argv", [*command.split(), "--record", str(tmp_path / "record.json")])
    lengths.main()
    cells = json.loads((tmp_path / "record.json").read_text("utf-8"))["cells"]
    assert len(cells) == 4 * (len(lengths.HOWS) + 1)
    assert all(cell["ratio"] == 1 for cell in cells if cell["how"] == lengths.ONCE)
    shown = capsys.readouterr().out
    assert all(f"{cell['tokens_per_second']:,.3g} ({cell['ratio']:.3g}x)" in shown for cell in cells)


def test_times_of_a_part_of_the_passes_stand_for_all_of_them():
    """One second for 16 of 64 passes of a text, 1 for 2 of 16 of a block, and 1 for all of the others."""
    cells = lengths.summary(2, 64, [[1.0, 1.0]] * 6)
    assert [cell["tokens_per_second"] for cell in cells] == pytest.approx([32, 16, 128, 128, 128, 128])
    assert [cell["ratio"] for cell in cells] == pytest.approx([1, 0.5, 4, 4, 4, 4])
