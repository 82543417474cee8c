"""What blocks cost in training."""

import sys

from benchmarks.record_schema import read_record
from benchmarks.speed import block_steps


def test_every_model_is_timed_beside_itself_without_blocks(tmp_path, monkeypatch, capsys):
    command = "block_steps --vocabulary 100 --hidden-size 32 --layers 1 --length 16 --batch 2 --turns 2"
    monkeypatch.setattr(sys, "argv", [*command.split(), "--output", str(tmp_path / "record.json")])
    block_steps.main()
    rows = read_record(tmp_path / "record.json", block_steps.SCHEMA)["models"]
    assert [row["title"] for row in rows] == [
        f"{name}, {what}" for name in ("tree", "flat") for what in ("no blocks", "S = 4", "S = 16")
    ]
    shown = capsys.readouterr().out
    for row in rows:
        assert (row["ratio"] == 1) == (row["memory_ratio"] == 1) == ("no blocks" in row["title"])
        assert f"| {row['memory_ratio']:.2f} |" in shown
