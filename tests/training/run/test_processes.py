"""Two processes on one machine train the same model as one; what befalls one of them ends both alike."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from unittest import mock

import numpy as np
import pytest
from helpers import tiny_run
from helpers.launching import environment_of
from helpers.processes import REPOSITORY, environment_on_the_cpu
from helpers.tiny_run import logged, losses
from safetensors.torch import load_file

from modeling_treediff.text import Corpus
from modeling_treediff.training import StreamedWindows, train

RUN = REPOSITORY / "tests" / "helpers" / "tiny_run.py"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def command(launcher, folder, *options, **settings):
    return [*launcher, str(RUN), str(folder), json.dumps(settings), *options]


def launch(launcher, folder, *options, **settings):
    return subprocess.run(
        command(launcher, folder, *options, **settings),
        capture_output=True, text=True, timeout=300, env=environment_on_the_cpu(), cwd=REPOSITORY,
    )  # fmt: skip


SETTINGS = {"max_steps": 8, "ema_decay": 0.6, "validate_every": 4, "save_every": 4, "learning_rate": 1e-2}


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The run of two processes, 2 windows each per step. On CPUs `accelerate launch` would need MPI for that."""
    folder = tmp_path_factory.mktemp("two") / "run"
    ran = launch(TORCHRUN, folder, batch_size=2, **SETTINGS)
    assert ran.returncode == 0, ran.stderr
    return folder


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one") / "run"
    tiny_run.tiny_run(folder, batch_size=4, **SETTINGS)
    return folder


def assert_same_run(first, second):
    np.testing.assert_allclose(losses(first), losses(second), rtol=1e-5)
    bounds = [[line["nelbo"] for line in logged(folder) if "nelbo" in line] for folder in (first, second)]
    np.testing.assert_allclose(*bounds, rtol=1e-4)
    ours, theirs = load_file(first / "model.safetensors"), load_file(second / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        np.testing.assert_allclose(value, theirs[name], rtol=1e-3, atol=1e-5, err_msg=name)


def test_two_processes_train_the_model_of_one_with_the_same_global_batch(one, two):
    """Windows have 1 to 8 labels: only the exact weights of passes and processes give the same losses."""
    assert_same_run(one, two)
    assert [line["step"] for line in logged(two)] == list(range(1, 9))


def test_another_number_of_processes_goes_on_with_the_run(one, two, tmp_path):
    """From step 4 on, two processes instead of one, and one with accumulation instead of two."""
    for name, source in (("more", one), ("fewer", two)):
        shutil.copytree(source, tmp_path / name, symlinks=True)
        shutil.rmtree(tmp_path / name / "checkpoint-0000008")
    ran = launch(TORCHRUN, tmp_path / "more", "--resume", batch_size=1, global_batch_size=4, **SETTINGS)
    assert ran.returncode == 0, ran.stderr
    tiny_run.tiny_run(tmp_path / "fewer", resume=True, batch_size=2, gradient_accumulation_steps=2, **SETTINGS)
    for name in ("more", "fewer"):
        assert_same_run(one, tmp_path / name)


def wait_for_step(folder, step, process):
    file = folder / "metrics.jsonl"
    for _ in range(3000):
        if file.exists() and file.read_text().count("\n") >= step:
            return
        assert process.poll() is None, "ended early"
        time.sleep(0.02)
    raise AssertionError("the run did not get that far")


def start(folder, launcher, **settings):
    """Begin an endless run in a process group of its own, and wait for its third step."""
    process = subprocess.Popen(
        command(launcher, folder, **({"max_steps": 100000, "save_every": 0, "batch_size": 2} | settings)),
        env=environment_on_the_cpu(), cwd=REPOSITORY, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    wait_for_step(folder, 3, process)
    return process


SIGNALLED_LATE = """
import os, sys
from helpers.tiny_run import tiny_run
from modeling_treediff import TreeDiffForDiffusionLM
nelbo = TreeDiffForDiffusionLM.nelbo
def late(*arguments, **options):
    os.kill(os.getpid(), {number})
    return nelbo(*arguments, **options)
TreeDiffForDiffusionLM.nelbo = late
tiny_run(sys.argv[1], max_steps=7, save_every={save_every})
"""


@pytest.mark.parametrize(("number", "code", "workers"), [(signal.SIGTERM, 143, 2), (signal.SIGINT, 130, 0)])
def test_a_signal_saves_and_ends_with_the_code_that_launchers_expect(tmp_path, number, code, workers):
    """Sent to the whole group, as clusters and terminals do: also to the processes that load the data."""
    process = start(tmp_path, [sys.executable], workers=workers)
    os.killpg(process.pid, number)
    error = process.communicate(timeout=120)[1]
    assert process.returncode == code, error
    done = len(logged(tmp_path))
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == [f"checkpoint-{done:07d}"]
    assert f"Stopped by a signal at step {done}, checkpoint saved" in error and "Traceback" not in error


@pytest.mark.parametrize(("number", "code", "save_every"), [(signal.SIGTERM, 143, 5), (signal.SIGINT, 130, 0)])
def test_a_signal_during_the_last_estimate_ends_it_and_loses_no_step(tmp_path, number, code, save_every):
    script = tmp_path / "script.py"
    script.write_text(SIGNALLED_LATE.format(number=int(number), save_every=save_every))
    ran = subprocess.run(
        [sys.executable, script, tmp_path / "run"],
        capture_output=True, text=True, timeout=120, env=environment_on_the_cpu(), cwd=REPOSITORY,
    )  # fmt: skip
    assert ran.returncode == code, ran.stderr
    assert len(logged(tmp_path / "run")) == 7 and (tmp_path / "run" / "model.safetensors").exists()
    said = f"Stopped by a signal during the last estimate, finished model saved in {tmp_path / 'run'}"
    assert said + ("; --resume repeats it." if save_every else ".") in ran.stderr and "Traceback" not in ran.stderr
    saved = sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*"))
    assert saved == (["checkpoint-0000005", "checkpoint-0000007"] if save_every else [])


def test_a_signal_to_the_launcher_stops_all_processes_at_the_same_step(tmp_path):
    """torchrun passes the signal on to its workers."""
    process = start(tmp_path, TORCHRUN)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode != 0
    done = len(logged(tmp_path))
    facts = json.loads((tmp_path / f"checkpoint-{done:07d}" / "run.json").read_text())
    assert {"random_states_0.pkl", "random_states_1.pkl"} <= facts["files"].keys()


def test_a_run_whose_launcher_is_gone_saves_and_ends(tmp_path):
    """`accelerate launch` of one process passes no signal on: it ends, and its child would train on unseen."""
    launcher = "accelerate.commands.launch --quiet --cpu --num_machines 1 --num_processes 1"
    process = start(tmp_path, [sys.executable, "-m", *launcher.split()])
    process.send_signal(signal.SIGTERM)
    error = process.communicate(timeout=120)[1]  # open until the child has ended, too
    done = len(logged(tmp_path))
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == [f"checkpoint-{done:07d}"]
    assert f"Stopped by a signal at step {done}, checkpoint saved" in error


ONE_FAILS = """
import atexit, os, sys
from helpers.tiny_run import tiny_run
from modeling_treediff import TreeDiffForDiffusionLM
from modeling_treediff.training.run import checkpoints
from modeling_treediff.training.run.distributed import end_processes
forward, commit, passes = TreeDiffForDiffusionLM.forward, checkpoints.commit_folder, 0
def broken_forward(self, *args, **kwargs):
    global passes
    output = forward(self, *args, **kwargs)
    passes += 1
    if os.environ["RANK"] == "1" and passes == 6:
        output.loss, output.level_losses = output.loss * float("nan"), output.level_losses * float("nan")
    return output
def broken_commit(partial, final):
    if final.name == "checkpoint-0000004":
        raise OSError(28, "No space left on device")
    commit(partial, final)
for fault in ("forward", "commit"):
    TreeDiffForDiffusionLM.forward = broken_forward if fault == "forward" else forward
    checkpoints.commit_folder = broken_commit if fault == "commit" else commit
    try:
        tiny_run(os.path.join(sys.argv[1], fault), batch_size=2, gradient_accumulation_steps=2)
    except (FloatingPointError, OSError) as error:
        print(f"rank {os.environ['RANK']}: {error}", flush=True)
atexit.register(print, "Python shuts down", flush=True)
end_processes()
"""


def test_what_befalls_one_process_ends_both(tmp_path):
    """A loss that is no number on the second, a disk that is full for the first; neither waits for the other."""
    script = tmp_path / "script.py"
    script.write_text(ONE_FAILS)
    ran = subprocess.run(
        [*TORCHRUN, script, tmp_path],
        capture_output=True, text=True, timeout=300, env=environment_on_the_cpu(), cwd=REPOSITORY,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    for rank in "01":
        assert f"rank {rank}: Stopped at step 3: loss nan, gradient norm nan" in ran.stdout
        assert f"rank {rank}: Could not save the checkpoint of step 4 ([Errno 28] No space left" in ran.stdout
    assert "Python shuts down" not in ran.stdout  # while threads of Gloo may still let go of tensors
    report = json.loads((tmp_path / "forward" / "divergence.json").read_text())
    assert report["first_window"] == 16 and report["last_window"] == 23
    assert report["last_good_checkpoint"].endswith("checkpoint-0000002") and report["loss"] == "nan"
    assert not (tmp_path / "forward" / "model.safetensors").exists()
    assert [path.name for path in (tmp_path / "commit").glob("*checkpoint*")] == ["checkpoint-0000002"]


def test_processes_that_do_not_know_one_another_are_refused(tmp_path):
    """Without ACCELERATE_USE_CPU accelerate makes one process each of what torchrun starts on a machine of CPUs."""
    environment = environment_on_the_cpu() | {"ACCELERATE_USE_CPU": "false", "CUDA_VISIBLE_DEVICES": ""}
    ran = subprocess.run(
        command(TORCHRUN, tmp_path / "run"),
        capture_output=True, text=True, timeout=300, env=environment, cwd=REPOSITORY,
    )  # fmt: skip
    assert ran.returncode != 0 and "2 processes were launched, but accelerate sees 1" in ran.stderr
    assert not (tmp_path / "run").exists()


STREAM = """
import sys
from helpers import tiny_run
from modeling_treediff.text import Corpus
from modeling_treediff.training import StreamedWindows, train
from modeling_treediff.training.run.distributed import end_processes
stream = StreamedWindows(Corpus({text!r}), tiny_run.tiny_tokenizer(), tiny_run.LENGTH, shuffled_windows=8)
tiny_run.train = lambda model, tokenizer, _, *rest: train(model, tokenizer, stream, *rest)
if __name__ == "__main__":
    for folder, resume in zip(sys.argv[1:], (False, True), strict=True):
        tiny_run.tiny_run(folder, resume, max_steps=8, save_every=4, batch_size=2, workers=1)
    end_processes()
"""


def test_two_processes_stream_what_one_does_and_go_on_with_its_run(tmp_path):
    text, script = tmp_path / "text.txt", tmp_path / "script.py"
    documents = (" ".join(f"w{(7 * row + word) % 63 + 1}" for word in range(11)) for row in range(40))
    text.write_text("\n\n".join(documents))
    script.write_text(STREAM.format(text=str(text)))
    one, two, resumed = (tmp_path / name for name in ("one", "two", "resumed"))
    windows = StreamedWindows(Corpus(str(text)), tiny_run.tiny_tokenizer(), tiny_run.LENGTH, shuffled_windows=8)
    with mock.patch.object(
        tiny_run, "train", lambda model, tokenizer, _, *rest: train(model, tokenizer, windows, *rest)
    ):
        tiny_run.tiny_run(one, max_steps=8, save_every=4, batch_size=4, workers=1)
    shutil.copytree(one, resumed, symlinks=True)
    shutil.rmtree(resumed / "checkpoint-0000008")
    ran = subprocess.run(
        [*TORCHRUN, script, two, resumed],
        capture_output=True, text=True, timeout=300, env=environment_on_the_cpu(), cwd=REPOSITORY,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert_same_run(one, two)
    assert_same_run(one, resumed)


WORKER_FAILS = """
import sys
import numpy as np
from helpers.tiny_run import tiny_run
from modeling_treediff.text.windows import ShuffledWindows
get = ShuffledWindows.__getitem__
def broken(self, index):
    if index == {first}:
        raise ValueError("This window is broken.")
    return get(self, index)
ShuffledWindows.__getitem__ = broken
if __name__ == "__main__":
    try:
        tiny_run(sys.argv[1], workers=2)
    except ValueError as error:
        sys.exit(f"tiny: {{error}}")
"""


@pytest.mark.parametrize("first", [0, 13])
def test_an_error_in_a_worker_ends_the_run_in_one_line(tmp_path, first):
    """Workers ignore signals: whoever waits for them at exit would wait for ever."""
    script = tmp_path / "script.py"
    script.write_text(WORKER_FAILS.format(first=first))
    ran = subprocess.run(
        [sys.executable, script, tmp_path / "run"],
        capture_output=True, text=True, timeout=60, env=environment_on_the_cpu(), cwd=REPOSITORY,
    )  # fmt: skip
    assert ran.returncode == 1 and ran.stderr.endswith("tiny: This window is broken.\n"), ran.stderr
    assert "Traceback" not in ran.stderr


# ---- sharded (FSDP2) ------------------------------------------------------------------------------------------------


def launch_sharded(processes, folder, *options, **settings):
    ran = subprocess.run(
        [*TORCHRUN[:-1], str(processes), str(RUN.with_name("sharded_tiny_run.py")), str(folder), json.dumps(settings)]
        + list(options),
        capture_output=True, text=True, timeout=300, cwd=REPOSITORY,
        env=environment_on_the_cpu(**environment_of("fsdp2.yaml"), CUDA_VISIBLE_DEVICES=""),
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharded") / "run"
    launch_sharded(2, folder, batch_size=1, gradient_accumulation_steps=2, **SETTINGS)
    return folder


def test_processes_that_share_the_weights_train_the_model_of_one(one, sharded):
    assert (sharded / "checkpoint-0000008" / "optimizer_0" / "__1_0.distcp").exists()  # each has saved its part
    assert_same_run(one, sharded)


def test_another_number_of_processes_goes_on_with_a_sharded_run(sharded, tmp_path):
    shutil.copytree(sharded, tmp_path / "run", symlinks=True)
    shutil.rmtree(tmp_path / "run" / "checkpoint-0000008")
    launch_sharded(1, tmp_path / "run", "--resume", batch_size=4, **SETTINGS)
    assert_same_run(sharded, tmp_path / "run")


def test_a_sharded_run_does_not_go_on_unsharded(sharded, tmp_path):
    shutil.copytree(sharded, tmp_path / "run", symlinks=True)
    with pytest.raises(ValueError, match="is of another run: sharded was True, is False. Restore these to resume it"):
        tiny_run.tiny_run(tmp_path / "run", resume=True, batch_size=4, **SETTINGS)
