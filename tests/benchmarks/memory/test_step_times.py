"""Processor time of a step: a figure for each variant, in a record of its own."""

import json
import sys

from benchmarks import matched_models
from benchmarks.memory import step_times


def test_every_variant_is_timed_and_recorded(tmp_path, monkeypatch):
    size = matched_models.Size(500, 32, layers=2, heads=2, sequence_length=16)
    monkeypatch.setattr(step_times, "REFERENCE_POINT", size)
    monkeypatch.setattr(step_times, "RECORD", tmp_path / "times.json")
    monkeypatch.setattr(sys, "argv", ["step_times", "--steps", "1"])
    step_times.main()
    record = json.loads((tmp_path / "times.json").read_text(encoding="utf-8"))
    assert set(record["cpu_step_seconds"]) == {"plain", "lean", "recompute"}
    assert all(seconds > 0 for seconds in record["cpu_step_seconds"].values()) and record["sequence_length"] == 16
