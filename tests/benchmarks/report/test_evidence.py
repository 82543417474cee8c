"""What a GPU has measured, on the page as soon as its record is there."""

import json
import shutil

from benchmarks.places import RESULTS
from benchmarks.report.evidence import gpu_tables


def test_records_of_a_gpu_are_shown_as_far_as_they_are_there(tmp_path):
    assert gpu_tables(tmp_path) == "Nothing here has been measured on a GPU yet.\n"
    memory = json.loads((RESULTS / "memory_cpu.json").read_text(encoding="utf-8"))
    measured = {"allocated_bytes": 2**32, "reserved_bytes": 2**33, "step_seconds": 0.1}
    for row in (*memory["rows"], *memory["autoregressive"]):
        row |= measured
    (tmp_path / "memory_cuda.json").write_text(json.dumps(memory | {"device": "one GPU"}), encoding="utf-8")
    shown = gpu_tables(tmp_path)
    assert "| 4.00 GiB | 8.00 GiB |" in shown and "one GPU" in shown and "yet" not in shown
    shutil.copy(RESULTS / "speed.json", tmp_path / "speed_cuda.json")
    assert gpu_tables(tmp_path).startswith(shown) and "tokens/s" in gpu_tables(tmp_path)
    shutil.copy(RESULTS / "quality_cpu.json", tmp_path / "quality_gpu.json")
    assert "perplexity / MDLM" in gpu_tables(tmp_path) and shown in gpu_tables(tmp_path)
