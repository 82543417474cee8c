"""Records say what made them, and name no place of a machine."""

import json
import sys
from types import ModuleType, SimpleNamespace

import pytest

from modeling_treediff.files.records import command_line, write_record


@pytest.mark.parametrize(
    ("module", "typed", "expected"),
    [
        ("benchmarks.memory.peaks", "/home/someone/benchmarks/memory/peaks.py", "python -m benchmarks.memory.peaks"),
        ("package.__main__", "/home/someone/package/__main__.py", "python -m package"),
        (None, "/home/someone/.venv/bin/treediff", "treediff"),
        (None, "examples/train.py", "python examples/train.py"),
    ],
)
def test_a_command_is_recorded_as_it_is_typed(monkeypatch, module, typed, expected):
    main = ModuleType("__main__")
    main.__spec__ = module and SimpleNamespace(name=module)
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.setattr(sys, "argv", [typed, "--text", "a b.txt"])
    assert command_line() == f"{expected} --text 'a b.txt'"


def test_a_record_holds_its_facts_and_what_made_them(tmp_path):
    write_record(tmp_path / "record.json", {"nelbo": 5.5, "steps": 3}, seed=7)
    record = json.loads((tmp_path / "record.json").read_text())
    assert {"nelbo": 5.5, "steps": 3, "seed": 7, "processes": 1}.items() <= record.items()
    assert {"command", "commit", "device", "versions"} <= record.keys() and {"python", "torch"} <= record[
        "versions"
    ].keys()
