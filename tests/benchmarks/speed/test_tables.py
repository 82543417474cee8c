"""Tables of speed, and what they refuse."""

import json

import pytest

from benchmarks.speed import tables


def test_a_damaged_record_is_not_shown(measured, tmp_path):
    whole, file = json.loads(measured.read_text()), tmp_path / "speed.json"
    cases = {
        "speed lacks sizes": lambda record: record.pop("sizes"),
        r"training\[1\] lacks peak_share": lambda record: record["sizes"][0]["training"][1].pop("peak_share"),
        "generation is empty": lambda record: record["sizes"][0]["generation"].clear(),
        "turns should be int, is None": lambda record: record["sizes"][0].update(turns=None),
    }
    for message, damage in cases.items():
        record = json.loads(json.dumps(whole))
        damage(record)
        file.write_text(json.dumps(record))
        with pytest.raises(ValueError, match=message):
            tables.read_speed(file)
    with pytest.raises(ValueError, match="none.json is missing"):
        tables.read_speed(tmp_path / "none.json")
