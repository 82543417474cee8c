"""What a GPU is to measure: commands that their benchmarks take, in order, until all is done."""

import importlib
import json
import sys
from pathlib import Path

import pytest

from benchmarks.report import gpu_evidence
from benchmarks.report.gpu_evidence import Stage, rehearsal, stages, take


@pytest.mark.parametrize("found", [stages(), rehearsal(Path("folder"))], ids=["device", "rehearsal"])
def test_the_stages_benchmarks_take_their_commands(found, monkeypatch):
    """And the two are the same stages of the same programs."""
    assert [(name, stage.command[:2]) for name, stage in found.items()] == [
        (name, stage.command[:2]) for name, stage in stages().items()
    ]
    for name, stage in found.items():
        _, module, *arguments = stage.command
        if name != "tests":
            monkeypatch.setattr(sys, "argv", [module, *arguments])
            options = importlib.import_module(module).parse_arguments()
            if "cuda" not in arguments and "gpu" not in arguments:  # a rehearsal overwrites no record
                places = [getattr(options, place) for place in ("folder", "output") if hasattr(options, place)]
                assert all(place is None or place.parts[0] == "folder" for place in places) and any(places)


def test_without_a_gpu_nothing_is_taken(monkeypatch, capsys):
    """The tests would skip, and count as passed."""
    monkeypatch.setattr(gpu_evidence.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu_evidence, "take", lambda *_: pytest.fail("taken"))
    monkeypatch.setattr(sys, "argv", ["gpu_evidence"])
    with pytest.raises(SystemExit):
        gpu_evidence.main()
    assert "There is no GPU here: --rehearse" in capsys.readouterr().err


def test_a_call_goes_on_where_the_one_before_it_stopped(tmp_path, capfd, monkeypatch):
    """The second stage fails at first: the third is taken in spite of it, and what is done is not taken again."""
    note = "open('taken', 'a').write(sys.argv[1])"
    twice = "seen = pathlib.Path('seen'); again = seen.exists(); seen.touch(); sys.exit(not again)"
    commands = {"first": "", "second": twice, "third": ""}
    wanted = {
        name: Stage(1, ("-c", f"import pathlib, sys; {note}; {more}", name[0])) for name, more in commands.items()
    }
    monkeypatch.chdir(tmp_path)
    assert take(wanted, Path("runs"), seconds=0) == (list(wanted), [])
    assert take(wanted, Path("runs"), seconds=600) == (["second"], ["second"]) and Path("taken").read_text() == "fst"
    assert take(wanted, Path("runs"), seconds=600) == ([], []) and Path("taken").read_text() == "fsts"
    changed = wanted | {"third": Stage(1, (*wanted["third"].command, "other"))}
    assert take(changed, Path("runs"), seconds=600) == ([], []) and Path("taken").read_text() == "fstst"
    slow = {"slow": Stage(600, ("-c", "raise SystemExit(1)"), resumes=False), "last": wanted["first"]}
    assert take(slow, Path("others"), seconds=-1) == (["slow", "last"], [])
    facts = json.loads(Path("runs", "third", "run.json").read_text())
    assert facts["stage"] == "third" and facts["of"] == list(changed["third"].command)
    assert "second: stopped (1)" in capfd.readouterr().out
