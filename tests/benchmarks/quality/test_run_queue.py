"""A queue of runs: what is done is not repeated, what is stopped is saved."""

import os
import signal
import subprocess
import threading
import time

import pytest

from benchmarks.quality import run_queue

WRITE = "import sys, pathlib; pathlib.Path(sys.argv[1], 'run.json').write_text(sys.argv[2])"


def test_what_is_done_is_not_run_again(tmp_path):
    queue = run_queue.RunQueue(tmp_path, parallel=2)
    for text in ("first", "second"):
        queue.take({name: ["-c", WRITE, str(tmp_path / name), text] for name in ("a", "b", "c")})
    assert [(tmp_path / name / "run.json").read_text() for name in ("a", "b", "c")] == ["first"] * 3


def test_a_failed_run_is_said_and_left_for_another_try(tmp_path, capfd):
    queue = run_queue.RunQueue(tmp_path)
    with pytest.raises(SystemExit, match="Not all runs are done"):
        queue.take({"bad": ["-c", "raise SystemExit(3)"], "good": ["-c", WRITE, str(tmp_path / "good"), "x"]})
    assert "bad: stopped (3), see" in capfd.readouterr().out
    assert (tmp_path / "good" / "run.json").exists()


WAIT = """
import pathlib, signal, sys, time
def stop(*_):
    pathlib.Path(sys.argv[1], "saved").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
pathlib.Path(sys.argv[1], "begun").touch()
time.sleep(60)
"""


def ask_once_begun(folder, ask):
    """Ask to stop, as soon as the run in the folder listens."""

    def watch():
        while not (folder / "begun").exists():
            time.sleep(0.05)
        ask()

    threading.Thread(target=watch, daemon=True).start()


def test_at_the_deadline_runs_are_asked_to_save(tmp_path, monkeypatch):
    queue = run_queue.RunQueue(tmp_path, seconds=1000.0)
    wait = subprocess.Popen.wait

    def until_begun(process, timeout=None):
        while timeout is not None and not (tmp_path / "long" / "begun").exists():
            time.sleep(0.05)
        queue.seconds = 0.0
        return wait(process, timeout and 0.01)

    monkeypatch.setattr(subprocess.Popen, "wait", until_begun)
    with pytest.raises(SystemExit, match="goes on with them"):
        queue.take({name: ["-c", WAIT, str(tmp_path / name)] for name in ("long", "never-begun")})
    assert (tmp_path / "long" / "saved").exists()
    assert not (tmp_path / "never-begun").exists()


def test_a_queue_asked_to_stop_leaves_no_process_behind(tmp_path):
    queue = run_queue.RunQueue(tmp_path)
    ask_once_begun(tmp_path / "long", lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit, match="goes on with them"):
        queue.take({name: ["-c", WAIT, str(tmp_path / name)] for name in ("long", "never-begun")})
    assert (tmp_path / "long" / "saved").exists() and not queue.processes
    assert not (tmp_path / "never-begun").exists()


def test_two_processes_do_not_work_on_one_run(tmp_path):
    with (
        run_queue.locked(tmp_path),
        pytest.raises(BlockingIOError, match="Another process works on"),
        run_queue.locked(tmp_path),
    ):
        pass
    with run_queue.locked(tmp_path):
        pass
