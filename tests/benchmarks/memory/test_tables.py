"""Tables of peak memory, and what they refuse."""

import json

import pytest

from benchmarks.memory import tables

ROW = {
    "contender": "mdlm", "matched": ["budget", "depth"], "variant": "lean", "precision": "bf16",
    "peak_phase": "backward", "layers": 12,
    "parameters": 100, "batch_size": 32, "vocab_size": 50_257, "hidden_size": 768, "peak_bytes": 3 * 2**30,
    "parts_bytes": {"parameters": 2**30, "activations": 2**31},
}  # fmt: skip


def record_of(*rows, **facts):
    return {"commit": "0123", "device": "some GPU", "sequence_length": 512, "measured": False,
            "rows": [ROW | row for row in rows]} | facts  # fmt: skip


def test_tables_show_peaks_and_their_ratio_to_mdlm(tmp_path):
    tree = {"contender": "tdlm-child", "peak_bytes": 3 * 2**29}
    record = record_of({}, tree | {"matched": ["budget"]}, tree | {"matched": ["depth"], "peak_bytes": 2**30},
                       {"variant": "plain", "peak_bytes": 2**33})  # fmt: skip
    assert "| MDLM (flat) | 12 | 3.00 GiB (1.00) |" in tables.peaks_table(record)
    assert "| TDLM, child head | 12 | 1.50 GiB (0.50) |" in tables.peaks_table(record)
    assert "| TDLM, child head, same depth | 0.33 |" in tables.ratios_table(record)
    assert "8.00" not in tables.peaks_table(record)
    tables.draw(record, tmp_path / "figures" / "memory.png")
    assert (tmp_path / "figures" / "memory.png").read_bytes().startswith(b"\x89PNG")


def test_measurements_stand_beside_plans():
    measured = {"allocated_bytes": 2**32, "reserved_bytes": 5 * 2**30, "step_seconds": 0.25}
    shown = tables.measured_table(record_of(measured, {"not_measured": "out of memory"}, measured=True))
    assert "| 3.00 GiB | 4.00 GiB | 5.00 GiB | 0.75 | 250 ms |" in shown and "| 3.00 GiB | out of memory |" in shown
    with pytest.raises(ValueError, match="plans alone"):
        tables.measured_table(record_of({}))
    record = record_of(measured, measured=True)
    gpt2 = {name: value for name, value in record["rows"][0].items() if name != "peak_bytes"} | {"contender": "ar"}
    (line,) = (
        line for line in tables.measured_table(record | {"autoregressive": [gpt2]}).splitlines() if "GPT-2" in line
    )
    assert line.endswith("|  | 4.00 GiB | 5.00 GiB |  | 250 ms |")  # no plan


def test_resident_memory_of_gpt2_stands_below_the_models_that_have_plans():
    record = record_of({"resident_bytes": 3 * 2**30}, measured=True)
    (row,) = record["rows"]
    names = ("precision", "batch_size", "layers", "matched")
    gpt2 = {name: row[name] for name in names} | {"contender": "ar", "resident_bytes": 5 * 2**29}
    before, after = (tables.resident_table(one) for one in (record, record | {"autoregressive": [gpt2]}))
    assert "autoregressive (GPT-2)" not in before
    (line,) = (line for line in after.splitlines() if "autoregressive (GPT-2)" in line)
    assert "2.50" in line and "(" not in line.replace("(GPT-2)", "")


def test_resident_memory_stands_beside_plans():
    fast = {"precision": "fp32", "resident_bytes": 33 * 2**30 // 10}
    rows = ({"resident_bytes": 3 * 2**30}, {"resident_bytes": 2**32, "batch_size": 64}, fast)
    shown = tables.resident_table(record_of(*rows, measured=True))
    assert "| MDLM (flat) | 12 | fp32 | 3.30 (3.00) |  |" in shown and "differ by at most 33.3%" in shown
    assert "| MDLM (flat) | 12 | bf16 | 3.00 (3.00) | 4.00 (3.00) |" in shown
    with pytest.raises(ValueError, match="MDLM .flat., bf16, batch 32 was not measured"):
        tables.resident_table(record_of({}))


def test_a_missing_older_or_damaged_record_is_not_shown(tmp_path):
    file = tmp_path / "memory.json"
    with pytest.raises(ValueError, match="memory.json is missing: the benchmark that writes it has not been run"):
        tables.read_memory(file)
    older = {
        "commit": "0123",
        "device": "CPU",
        "sequence_length": 512,
        "rows": [{"model": "flat"}],
    }
    cases = {
        "memory lacks measured": older,
        r"rows\[0\] lacks contender": older | {"measured": False},
        "rows is empty": record_of(),
        "parts of a row of mdlm do not sum to its peak": record_of({"peak_bytes": 2**30}),
    }
    for message, record in cases.items():
        file.write_text(json.dumps(record))
        with pytest.raises(ValueError, match=message):
            tables.read_memory(file)
