"""Checkpoints of a run: resuming, rotation, the best one, damage, kills at the worst moments, full disks."""

import errno
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from helpers.processes import run_python
from helpers.tiny_run import equal, logged, losses, tiny_run

from modeling_treediff import TreeDiffForDiffusionLM
from modeling_treediff.files.fingerprints import file_sha256
from modeling_treediff.training.run.checkpoints import CheckpointStore, checkpoint_steps, find_damage
from modeling_treediff.training.run.preflight import LOCK_NAME


def names(folder):
    return sorted(path.name for path in folder.glob("*checkpoint*"))


SETTINGS = [
    {},
    {"batch_size": 2, "gradient_accumulation_steps": 2},
    {"ema_decay": 0.8, "learning_rate_schedule": "wsd", "decay_steps": 3, "validate_every": 3, "workers": 1},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=["plain", "accumulation", "average"])
def test_resuming_is_bit_identical_to_not_stopping(tmp_path, settings):
    """Stop after 4 of 6 steps by deleting all that came later, checkpoint and log; then resume."""
    whole, whole_losses, before = tiny_run(tmp_path / "whole", **settings)
    shutil.copytree(tmp_path / "whole", tmp_path / "stopped", symlinks=True)
    shutil.rmtree(tmp_path / "stopped" / "checkpoint-0000006")
    for name in (".checkpoint-0000006.partial", ".1x2y3z.partial"):  # what a kill while saving either leaves
        (tmp_path / "stopped" / name).mkdir()
    resumed, resumed_losses, after = tiny_run(tmp_path / "stopped", resume=True, **settings)
    assert equal(whole, resumed) and whole_losses == resumed_losses and before.validation == after.validation
    assert not list((tmp_path / "stopped").glob(".*.partial"))
    last = [
        {path.name: path.read_bytes() for path in (tmp_path / run / "checkpoint-0000006").iterdir()}
        for run in ("whole", "stopped")
    ]
    assert last[0] == last[1]  # parameters, their average, optimizer, learning rate, all random states


def test_a_stop_right_after_a_checkpoint_loses_no_logged_step(tmp_path, monkeypatch):
    save = CheckpointStore.save

    def save_and_stop(store, step, nelbo):
        save(store, step, nelbo)
        if step == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(CheckpointStore, "save", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        tiny_run(tmp_path)
    monkeypatch.undo()
    tiny_run(tmp_path, resume=True)
    assert [line["step"] for line in logged(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_a_longer_run_goes_on(tmp_path):
    """What WSD is for: the same constant part, whatever the end."""
    wsd = {"learning_rate_schedule": "wsd", "decay_steps": 2, "save_every": 2}
    tiny_run(tmp_path / "a", max_steps=6, **wsd)
    shutil.rmtree(tmp_path / "a" / "checkpoint-0000006")
    longer, *_ = tiny_run(tmp_path / "a", resume=True, max_steps=8, **wsd)
    straight, *_ = tiny_run(tmp_path / "b", max_steps=8, **wsd)
    assert equal(longer, straight)


def test_the_newest_and_the_best_stay_and_each_is_a_model(tmp_path, monkeypatch):
    bounds = iter([float("nan"), 3.0, 4.0, 3.5, 3.2, 3.1])
    from modeling_treediff.training.run.validation import Validator

    estimate = Validator.estimate

    def planned(validator, *count):
        measured = estimate(validator, *count)
        return type(measured)(next(bounds), 0.1, (1.0, 2.0), measured.token_losses, 1) if count else measured

    monkeypatch.setattr(Validator, "estimate", planned)
    final, _, result = tiny_run(tmp_path, validate_every=1, save_every=3)
    # Saved at 2 for its bound, at 3 and 6 since it was time; no number is not the best there is.
    assert names(tmp_path) == ["checkpoint-0000002", "checkpoint-0000003", "checkpoint-0000006", "checkpoint-best"]
    assert result.best == (2, 3.0) and os.readlink(tmp_path / "checkpoint-best") == "checkpoint-0000002"
    assert equal(final, TreeDiffForDiffusionLM.from_pretrained(tmp_path / "checkpoint-0000006").state_dict())
    best = TreeDiffForDiffusionLM.from_pretrained(tmp_path / "checkpoint-best").state_dict()
    assert not equal(final, best)


def with_facts(**changed):
    """Damage that leaves JSON: other values, None for a fact that is gone."""

    def damage(folder):
        facts = json.loads((folder / "run.json").read_text()) | changed
        (folder / "run.json").write_text(json.dumps({name: value for name, value in facts.items() if value != "gone"}))

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        with_facts(identity="gone"),
        with_facts(identity={}),
        with_facts(identity={"seed": 0}),
        with_facts(files=["model.safetensors"], nelbo=[1]),
        lambda folder: (folder / "optimizer.bin").unlink(),
        lambda folder: (folder / "run.json").write_text("{"),
        lambda folder: (folder / "run.json").unlink(),
        lambda folder: (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-1]),
        lambda folder: (folder / "optimizer.bin").write_bytes(bytes((folder / "optimizer.bin").stat().st_size)),
    ],
    ids=[
        "no identity",
        "empty identity",
        "part of it",
        "files a list",
        "missing file",
        "broken facts",
        "no facts",
        "shorter",
        "other content",
    ],
)
def test_a_damaged_checkpoint_is_not_chosen(tmp_path, damage, capfd):
    whole, *_ = tiny_run(tmp_path)
    damage(tmp_path / "checkpoint-0000006")
    resumed, *_ = tiny_run(tmp_path, resume=True)
    assert "checkpoint-0000006 is damaged (" in (said := capfd.readouterr().err)
    assert "going on from checkpoint-0000004" in said
    assert equal(whole, resumed)
    assert names(tmp_path) == ["checkpoint-0000004", "checkpoint-0000006", "damaged-checkpoint-0000006"]


@pytest.mark.parametrize(
    "facts",
    [{}, {"files": {}}, {"identity": {}}, {"identity": [], "files": {}}, {"identity": {}, "files": None},
     {"identity": {}, "files": ["a"]}, {"identity": {}, "files": {"a": None}}, {"identity": {}, "files": {"a": [1]}}],
)  # fmt: skip
def test_facts_of_another_shape_are_damage(tmp_path, facts):
    (tmp_path / "a").write_text("1")
    assert "run.json" in find_damage(tmp_path, facts)
    assert not find_damage(tmp_path, {"identity": {}, "files": {"a": [1, file_sha256(tmp_path / "a")]}})


@pytest.mark.parametrize("nelbo", ["low", [1.0], True, float("nan"), None])
def test_the_best_is_found_among_facts_that_are_whole(tmp_path, nelbo):
    for step, bound in ((2, 3.0), (4, nelbo), (6, 2.5), (8, 2.7)):
        (tmp_path / f"checkpoint-000000{step}").mkdir()
        (tmp_path / f"checkpoint-000000{step}" / "run.json").write_text(json.dumps({"nelbo": bound}))
    assert CheckpointStore(Accelerator(cpu=True), None, tmp_path, 2, {}).best() == (6, 2.5)


def test_a_best_checkpoint_that_is_no_link_is_set_aside(tmp_path):
    """As copies of a run by tools that follow links have it."""
    tiny_run(tmp_path, max_steps=2, validate_every=2)
    (tmp_path / "checkpoint-best").unlink()
    shutil.copytree(tmp_path / "checkpoint-0000002", tmp_path / "checkpoint-best")
    tiny_run(tmp_path, resume=True, validate_every=2)
    assert (tmp_path / "checkpoint-best").is_symlink() and (tmp_path / "damaged-checkpoint-best").is_dir()


def test_no_whole_checkpoint_is_an_error_and_not_a_new_start(tmp_path):
    tiny_run(tmp_path)
    for step in (4, 6):
        (tmp_path / f"checkpoint-000000{step}" / "optimizer.bin").unlink()
    for _ in range(2):  # nor the second time
        with pytest.raises(ValueError, match="No checkpoint in .* is whole .*optimizer.bin is missing"):
            tiny_run(tmp_path, resume=True)


class Killed(BaseException):
    """As sudden as a kill for the code below it: nothing catches it."""


@pytest.mark.parametrize("place", ["commit", "between", "link", "rename", "removal"])
def test_a_kill_around_commit_and_rotation_is_harmless(tmp_path, monkeypatch, place):
    """At step 6: before the commit, after it, around the link to the best, between the steps of the rotation."""
    settings = {"validate_every": 2, "max_steps": 8, "keep_checkpoints": 1, "learning_rate": 1e-2}
    whole, *_ = tiny_run(tmp_path / "whole", **settings)
    module, target = {
        "commit": ("modeling_treediff.training.run.checkpoints", "commit_folder"),
        "between": ("modeling_treediff.training.run.checkpoints.CheckpointStore", "prune"),
        "link": ("modeling_treediff.training.run.checkpoints", "write_atomically"),
        "rename": ("modeling_treediff.training.run.checkpoints.os", "rename"),
        "removal": ("modeling_treediff.training.run.checkpoints.shutil", "rmtree"),
    }[place]

    def kill(*arguments, **options):
        if place == "removal" and not isinstance(arguments[0], Path):  # tempfile's own
            return original(*arguments, **options)
        if checkpoint_steps(tmp_path / "killed")[-1:] >= ([6] if place != "commit" else [4]):
            if place == "removal":  # in the middle of it
                next(arguments[0].iterdir()).unlink()
            raise Killed
        return original(*arguments, **options)

    import importlib

    parts = module.rsplit(".", 1)
    holder = importlib.import_module(module) if place in ("commit", "link") else getattr(
        importlib.import_module(parts[0]), parts[1]
    )  # fmt: skip
    original = getattr(holder, target)
    monkeypatch.setattr(holder, target, kill)
    with pytest.raises(Killed):
        tiny_run(tmp_path / "killed", **settings)
    monkeypatch.undo()
    for step in checkpoint_steps(tmp_path / "killed"):
        checkpoint = tmp_path / "killed" / f"checkpoint-{step:07d}"
        assert not find_damage(checkpoint, json.loads((checkpoint / "run.json").read_text()))
    resumed, *_ = tiny_run(tmp_path / "killed", resume=True, **settings)
    assert equal(whole, resumed) and losses(tmp_path / "killed") == losses(tmp_path / "whole")
    assert names(tmp_path / "killed") == names(tmp_path / "whole")
    assert {file.name for file in (tmp_path / "killed").glob(".*")} <= {LOCK_NAME}


@pytest.mark.parametrize("save_every", [0, 2])
def test_an_earlier_run_is_not_overwritten(tmp_path, save_every):
    before, *_ = tiny_run(tmp_path, save_every=save_every)
    with pytest.raises(FileExistsError, match="--resume"):
        tiny_run(tmp_path, save_every=save_every, seed=5)
    if not save_every:
        with pytest.raises(FileExistsError, match="no checkpoint to resume"):
            tiny_run(tmp_path, save_every=0, resume=True)
    assert equal(before, TreeDiffForDiffusionLM.from_pretrained(tmp_path).state_dict())


@pytest.mark.parametrize(("save_every", "checkpoints"), [(4, ["0000004", "0000006"]), (0, [])])
def test_a_kill_during_the_last_estimate_loses_no_step(tmp_path, monkeypatch, save_every, checkpoints):
    whole, whole_losses, expected = tiny_run(tmp_path / "whole", save_every=save_every)

    def kill(*arguments):
        raise Killed

    with pytest.raises(Killed), monkeypatch.context() as patch:
        patch.setattr("modeling_treediff.training.run.validation.Validator.estimate", kill)
        tiny_run(tmp_path / "run", save_every=save_every)
    assert equal(whole, TreeDiffForDiffusionLM.from_pretrained(tmp_path / "run").state_dict())
    assert names(tmp_path / "run") == [f"checkpoint-{step}" for step in checkpoints]
    if save_every:  # what is left is the estimate, without a step
        monkeypatch.setattr("modeling_treediff.training.run.update.Updater.take", kill)
        resumed, resumed_losses, result = tiny_run(tmp_path / "run", resume=True, save_every=save_every)
        assert equal(whole, resumed) and whole_losses == resumed_losses and result.validation == expected.validation
        assert names(tmp_path / "run") == [f"checkpoint-{step}" for step in checkpoints]
    else:
        with pytest.raises(FileExistsError, match="no checkpoint to resume"):
            tiny_run(tmp_path / "run", resume=True, save_every=0)


LIMITED = """
import os, resource, sys
from helpers.tiny_run import tiny_run
from modeling_treediff.training.run.checkpoints import CheckpointStore
save = CheckpointStore.save
def limited(store, step, nelbo):
    if step == 4:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), resource.RLIM_INFINITY))
    save(store, step, nelbo)
CheckpointStore.save = limited
for limit in sys.argv[2:]:
    try:
        tiny_run(os.path.join(sys.argv[1], limit))
    except OSError as error:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on file sizes")
def test_files_that_cannot_be_written_whole_leave_the_last_checkpoint(tmp_path):
    """The kernel refuses to write on: in the code, in the weights, in torch's archive of the optimizer."""
    whole, *_ = tiny_run(tmp_path / "whole")
    limits = ("5000", "20000", "45000")
    ran = run_python(tmp_path, *limits, code=LIMITED, ACCELERATE_USE_CPU="true")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("Could not save the checkpoint of step 4 (") == len(limits)
    assert ran.stdout.count("checkpoint-0000002 is whole: go on from there with --resume") == len(limits)
    for limit in limits:
        assert names(tmp_path / limit) == ["checkpoint-0000002"]
        resumed, *_ = tiny_run(tmp_path / limit, resume=True)
        assert equal(whole, resumed)


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(folder)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)  # weights mapped into memory may still hold it


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path, small_disk):
    whole, *_ = tiny_run(tmp_path / "whole", max_steps=8)
    ballast = small_disk / "ballast"

    def fill(store, step, nelbo):
        if step == 6:
            try:
                with ballast.open("wb") as stream:
                    while True:
                        stream.write(bytes(4096))
            except OSError as error:
                assert error.errno == errno.ENOSPC
        return save(store, step, nelbo)

    save = CheckpointStore.save
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CheckpointStore, "save", fill)
        with pytest.raises(OSError, match="Could not save the checkpoint of step 6 .*checkpoint-0000004 is whole"):
            tiny_run(small_disk / "run", max_steps=8)
    with pytest.raises(OSError, match="cannot be written .No space left on device"):
        tiny_run(small_disk / "run", resume=True, max_steps=8)
    with ballast.open("r+b") as stream:
        stream.truncate(ballast.stat().st_size - 2**17)
    with pytest.raises(OSError, match="GiB free, the run needs up to"):
        tiny_run(small_disk / "run", resume=True, max_steps=8)
    ballast.unlink()
    resumed, *_ = tiny_run(small_disk / "run", resume=True, max_steps=8)
    assert equal(whole, resumed)


def test_run_json_says_what_the_run_was(tmp_path):
    tiny_run(tmp_path, validate_every=3)
    facts = json.loads((tmp_path / "checkpoint-0000006" / "run.json").read_text())
    assert facts["step"] == 6 and facts["nelbo"] == logged(tmp_path)[-1]["nelbo"]
    assert facts["identity"]["windows per step"] == 4 and "model.safetensors" in facts["files"]


class Executed:
    """A pickle of it makes a file when it is loaded."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return open, (str(self.file), "w")


@pytest.mark.parametrize("name", ["custom_checkpoint_0.pkl", "custom_checkpoint_1.pkl", "optimizer.bin"])
def test_a_run_of_others_runs_no_code_when_it_is_resumed(tmp_path, name):
    """Also where the file's hash in run.json is right, as a run's maker can make it."""
    tiny_run(tmp_path, max_steps=2, save_every=2)
    checkpoint = tmp_path / "checkpoint-0000002"
    assert (checkpoint / name).exists()
    torch.save(Executed(tmp_path / "executed"), checkpoint / name)
    facts = json.loads((checkpoint / "run.json").read_text())
    facts["files"][name] = (checkpoint / name).stat().st_size, file_sha256(checkpoint / name)
    (checkpoint / "run.json").write_text(json.dumps(facts))
    with pytest.raises((ValueError, pickle.UnpicklingError)):
        tiny_run(tmp_path, resume=True, max_steps=4, save_every=2)
    assert not (tmp_path / "executed").exists()
