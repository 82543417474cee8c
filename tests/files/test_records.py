"""Records say what made them, and name no place of a machine."""

import json
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import pytest

from modeling_treediff.files.records import command_line, current_commit, write_record


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


@pytest.mark.parametrize(
    ("typed", "recorded"),
    [
        ("/home/alice/secret/text.txt", "text.txt"),
        ("--text=/home/alice/secret/text.txt", "--text=text.txt"),
        ("~/secret/text.txt", "text.txt"),
        ("../../alice/text.txt", "text.txt"),
        ("file:///home/alice/text.txt", "file:text.txt"),
        ("json:/home/alice/text.json", "json:text.json"),
        ("a.txt,/home/alice/b.txt", "a.txt,b.txt"),
        ("-o/home/alice/x", "-ox"),
        ("@/home/alice/options", "@options"),
        ("C:\\Users\\alice\\text.txt", "C:text.txt"),
        ("https://alice:secret@example.org/text.txt", "https://example.org/text.txt"),
        ("someone/a-model", "someone/a-model"),
        ("runs/model", "runs/model"),
        ("--learning-rate=1e-3", "--learning-rate=1e-3"),
    ],
)
def test_paths_that_lead_out_are_recorded_by_their_last_part(monkeypatch, typed, recorded):
    monkeypatch.setattr(sys, "argv", ["/home/alice/.venv/bin/treediff", "train", typed])
    monkeypatch.setitem(sys.modules, "__main__", ModuleType("__main__"))
    assert command_line() == f"treediff train {recorded}"


@pytest.mark.parametrize(
    "place", ["env/lib/python3.11/site-packages/modeling_treediff/files", "modeling_treediff/files"]
)
def test_a_commit_is_recorded_of_the_packages_own_checkout_alone(tmp_path, monkeypatch, place):
    """Not of the repository that the user's environment lies in, which may be private."""
    folder = tmp_path / place
    folder.mkdir(parents=True)
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "private"], check=True)
    monkeypatch.setattr("modeling_treediff.files.records.__file__", str(folder / "records.py"))
    assert (current_commit() is None) == place.startswith("env")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))  # as in a hook of another repository
    assert (current_commit() is None) == place.startswith("env")


def test_a_record_holds_its_facts_and_what_made_them(tmp_path):
    write_record(tmp_path / "record.json", {"nelbo": 5.5, "steps": 3}, seed=7)
    record = json.loads((tmp_path / "record.json").read_text())
    assert {"nelbo": 5.5, "steps": 3, "seed": 7, "processes": 1}.items() <= record.items()
    assert {"command", "commit", "device", "versions"} <= record.keys() and {"python", "torch"} <= record[
        "versions"
    ].keys()
