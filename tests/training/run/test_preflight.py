"""Bad runs end before they begin, in one line, and leave nothing behind."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from accelerate import PartialState
from helpers.processes import forget_accelerate
from helpers.tiny_run import LENGTH, tiny_network, tiny_run, tiny_tree
from peft import LoraConfig, get_peft_model

from modeling_treediff import TreeDiffForDiffusionLM
from modeling_treediff.building.balanced import random_tree
from modeling_treediff.hub import save_checkpoint
from modeling_treediff.text import TokenWindows
from modeling_treediff.training import StreamedWindows, TrainingConfig, check_run
from modeling_treediff.training.run import preflight
from modeling_treediff.training.run.preflight import LOCK_NAME, check_workers, hold_folder, make_accelerator
from modeling_treediff.training.run.run_log import METRICS_NAME


@pytest.mark.skipif(torch.cuda.is_available(), reason="the device has it")
def test_what_needs_a_gpu_is_refused_without_one(tmp_path):
    with pytest.raises(ValueError, match="fp16 needs a GPU"):
        tiny_run(tmp_path / "new", mixed_precision="fp16")
    with pytest.raises(ValueError, match="flex_attention has no backward pass on a CPU"):
        tiny_run(tmp_path / "new", attn_implementation="flex_attention")
    assert not (tmp_path / "new").exists()


def test_a_precision_that_only_the_launcher_named_is_checked_as_early(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    with pytest.raises(ValueError, match="fp16 needs a GPU"):
        check_run(TrainingConfig(tmp_path / "new", 1), False)
    monkeypatch.setattr(preflight, "is_bf16_available", lambda: False)
    with pytest.raises(ValueError, match="bf16 is not supported by this device"):
        check_run(TrainingConfig(tmp_path / "new", 1, mixed_precision="bf16"), False)


def test_windows_and_tokenizers_that_do_not_fit_the_model_are_refused(tmp_path):
    long = TokenWindows(np.zeros((4, LENGTH + 1), np.int32))
    with pytest.raises(ValueError, match="9 tokens are longer than the model's 8 positions"):
        tiny_run(tmp_path / "new", windows=long)
    with pytest.raises(ValueError, match="100 leaves but the tokenizer has 64"):
        tiny_run(tmp_path / "new", tree=random_tree(100, 10, 2))
    with pytest.raises(ValueError, match="not a multiple of 4"):
        tiny_run(tmp_path / "new", global_batch_size=6)
    assert not (tmp_path / "new").exists()


def adapted():
    model = tiny_network(tiny_tree())
    model.add_adapter(LoraConfig(r=2, target_modules=["q_proj"]))
    return model


def loaded_with_its_adapter(folder):
    save_checkpoint(tiny_network(tiny_tree()), folder / "base")
    model = TreeDiffForDiffusionLM.from_pretrained(folder / "base")
    get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(folder / "adapter")
    return TreeDiffForDiffusionLM.from_pretrained(folder / "adapter")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: adapted(), "has an adapter, and whole models are trained here: save it merged"),
        (loaded_with_its_adapter, "has an adapter, and whole models are trained here: save it merged"),
        (lambda folder: tiny_network(tiny_tree()).requires_grad_(False), "No parameter of the model is trained"),
    ],
    ids=["with an adapter", "loaded with its adapter", "frozen"],
)
def test_a_model_of_which_nothing_would_be_trained_or_saved_is_refused(tmp_path, make, message):
    with pytest.raises(ValueError, match=message):
        tiny_run(tmp_path / "run", model=make(tmp_path))
    assert not (tmp_path / "run").exists()


def fail(*arguments, **options):
    raise RuntimeError("on purpose")


@pytest.mark.parametrize("place", ["update.Updater.take", "checkpoints.CheckpointStore.best", "loop.check_room"])
def test_a_run_that_took_no_step_leaves_nothing_that_keeps_out_the_next(tmp_path, monkeypatch, place):
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="on purpose"):
        patch.setattr(f"modeling_treediff.training.run.{place}", fail)
        tiny_run(tmp_path)
    tiny_run(tmp_path, max_steps=2)


def test_an_empty_log_of_an_older_version_does_not_keep_out_the_next_run(tmp_path):
    (tmp_path / METRICS_NAME).write_text("")
    tiny_run(tmp_path, max_steps=2)


def test_a_stream_with_several_workers_is_refused():
    stream = StreamedWindows(None, None, LENGTH)
    check_workers(stream, 1)
    with pytest.raises(ValueError, match="at most one data loader worker, not 2: take --workers 1"):
        check_workers(stream, 2)


def test_every_process_reads_a_stream_for_itself(tmp_path):
    assert make_accelerator(TrainingConfig(tmp_path, 1)).dispatch_batches is False


def test_a_folder_that_cannot_be_written_is_reported_first(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot be written .Not a directory.: take another --output"):
        tiny_run(tmp_path / "file" / "run")
    if os.path.isdir("/proc/1"):  # read-only also for root
        with pytest.raises(OSError, match="/proc cannot be written"):
            tiny_run("/proc/run")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_disk_too_small_for_the_checkpoints_is_reported_first(tmp_path, monkeypatch):
    """Weights in fp32, two moments, tables: known beforehand within a few per cent of a real checkpoint's tensors."""
    usage = type("Usage", (), {"free": 2 * 10**5})
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(OSError, match="the model and 3 more checkpoints of .*lower --keep-checkpoints"):
        tiny_run(tmp_path)
    with pytest.raises(OSError, match="the model and 4 more checkpoints"):  # the best is one more
        tiny_run(tmp_path, keep_checkpoints=2, validate_every=1)
    tiny_run(tmp_path, save_every=0)


def test_a_library_that_a_tracker_needs_is_named(tmp_path, monkeypatch):
    from modeling_treediff.training.run import run_log

    monkeypatch.setitem(run_log.AVAILABLE, "trackio", lambda: False)
    with pytest.raises(ImportError, match="Logging to trackio needs its package: pip install trackio"):
        tiny_run(tmp_path / "new", trackers=("tensorboard", "trackio"))
    assert not (tmp_path / "new").exists()


def test_nothing_is_touched_by_a_step_that_is_refused(tmp_path, monkeypatch):
    from modeling_treediff import TreeDiffForDiffusionLM

    forward, passes = TreeDiffForDiffusionLM.forward, []

    def infinite(self, *arguments, **options):
        output = forward(self, *arguments, **options)
        passes.append({name: value.clone() for name, value in self.named_parameters()})
        if len(passes) == 6:
            output.loss, output.level_losses = output.loss * torch.inf, output.level_losses * torch.inf
        return output

    monkeypatch.setattr(TreeDiffForDiffusionLM, "forward", infinite)
    model = tiny_network(tiny_tree())
    with pytest.raises(FloatingPointError, match="Stopped at step 6: loss inf"):
        tiny_run(tmp_path, model=model, max_steps=8)
    assert all(torch.equal(value, passes[-1][name]) for name, value in model.named_parameters())
    monkeypatch.undo()
    tiny_run(tmp_path, resume=True, max_steps=8)  # goes on from step 4


def test_batch_sizes_are_not_tried_on_a_sharded_model(tmp_path, monkeypatch):
    monkeypatch.setattr(preflight, "configure_sharding", lambda accelerator: None)
    monkeypatch.setattr(preflight.Accelerator, "is_fsdp2", True)
    with pytest.raises(ValueError, match="for FSDP2 use treediff plan-memory --fsdp"):
        make_accelerator(TrainingConfig(tmp_path, max_steps=1, find_batch_size=True))


HOLD = """
import sys, time
from pathlib import Path
from accelerate import PartialState
from modeling_treediff.training.run.preflight import hold_folder
PartialState(cpu=True)
with hold_folder(Path(sys.argv[1]), False):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_folder_is_one_runs_until_it_ends_or_is_killed(tmp_path):
    """A second run is refused before it changes a file; afterwards the folder is free, as it is after a kill."""
    with subprocess.Popen([sys.executable, "-c", HOLD, tmp_path / "run"], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        for resume in (False, True):
            with pytest.raises(FileExistsError, match="Another run trains into .*run: wait, or take another --output"):
                tiny_run(tmp_path / "run", resume=resume)
        with pytest.raises(FileExistsError, match="Another run trains into"):
            check_run(TrainingConfig(tmp_path / "run", 1), False)
        assert [file.name for file in (tmp_path / "run").iterdir()] == [LOCK_NAME]
        tiny_run(tmp_path / "elsewhere")
        other.kill()
    tiny_run(tmp_path / "run", max_steps=2, save_every=2)
    tiny_run(tmp_path / "run", resume=True, max_steps=4, save_every=2)
    assert (tmp_path / "run" / "model.safetensors").exists()


def test_a_run_that_fails_lets_its_folder_go(tmp_path):
    with pytest.raises(RuntimeError, match="on purpose"):
        with hold_folder(tmp_path / "run", False):
            raise RuntimeError("on purpose")
    with hold_folder(tmp_path / "run", False):
        pass


def test_links_with_the_names_of_a_runs_own_files_are_not_followed(tmp_path):
    """Lock, probe and unfinished checkpoints: what they point to stays as it is, and the run is whole."""
    (tmp_path / "key").write_text("a key")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "config.json").write_text("theirs")
    (tmp_path / "run").mkdir()
    for name in (LOCK_NAME, ".can-be-written"):
        (tmp_path / "run" / name).symlink_to(tmp_path / "key")
    (tmp_path / "run" / ".checkpoint-0000002.partial").symlink_to(tmp_path / "theirs")
    tiny_run(tmp_path / "run", max_steps=2, save_every=2)
    assert (tmp_path / "key").read_text() == "a key"
    assert [file.read_text() for file in (tmp_path / "theirs").iterdir()] == ["theirs"]
    assert not (tmp_path / "run" / "checkpoint-0000002").is_symlink()


def test_bf16_is_taken_where_a_gpu_has_it_unless_another_is_asked_for(tmp_path, monkeypatch, fresh_accelerate):
    config = TrainingConfig(tmp_path)
    assert preflight.run_precision(config) == "no"  # of a CPU, which has it
    state = PartialState()
    monkeypatch.setattr(preflight, "join_processes", lambda: state)
    monkeypatch.setattr(state, "device", torch.device("cuda"))
    for native, precision in ((True, "bf16"), (False, "no")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, native=native: native)
        assert preflight.run_precision(config) == precision
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    assert preflight.run_precision(config) == "fp16"
    assert preflight.run_precision(TrainingConfig(tmp_path, mixed_precision="no")) == "no"


def test_runs_of_one_process_share_its_precision_and_compile_each_as_asked(tmp_path, monkeypatch, fresh_accelerate):
    monkeypatch.setattr(preflight, "COMPILER", "eager")
    assert make_accelerator(TrainingConfig(tmp_path, mixed_precision="bf16")).mixed_precision == "bf16"
    for compiles in (True, False):
        accelerator = make_accelerator(TrainingConfig(tmp_path, compile=compiles))
        assert accelerator.mixed_precision == "bf16"
        assert hasattr(accelerator.prepare(torch.nn.Linear(2, 2)), "_orig_mod") == compiles


def test_a_compiled_run_is_the_same_run_and_can_be_resumed_with_and_without(tmp_path, monkeypatch, fresh_accelerate):
    """By the compiler's own graph and backward pass, without its code for the machine."""
    constant = {"learning_rate_schedule": "constant"}
    whole, *_ = tiny_run(tmp_path / "whole", max_steps=4, **constant)
    monkeypatch.setattr(preflight, "COMPILER", "aot_eager")
    compiled: list[object] = []
    compile_ = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda model, **options: compiled.append(options) or compile_(model, **options)
    )
    forget_accelerate()
    tiny_run(tmp_path / "run", max_steps=2, compile=True, **constant)
    assert [options["backend"] for options in compiled] == ["aot_eager"]
    for steps, again in ((3, True), (4, False)):
        forget_accelerate()
        resumed, *_ = tiny_run(tmp_path / "run", max_steps=steps, resume=True, compile=again, **constant)
    assert len(compiled) == 2
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, rtol=1e-3, atol=1e-5)
