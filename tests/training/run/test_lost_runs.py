"""No kill loses a run: SIGKILL at random moments, writing of checkpoints included, changes nothing in the end."""

import subprocess
import sys

from helpers.processes import REPOSITORY, environment_on_the_cpu
from helpers.tiny_run import losses

from modeling_treediff.training.run.preflight import LOCK_NAME

# One process imports everything once; each life of the run is a fork of it, which begins in milliseconds.
MANY_LIVES = """
import os, random, signal, sys, time
from pathlib import Path
from helpers.tiny_run import tiny_run
folder, kills, moments = Path(sys.argv[1]), int(sys.argv[2]), random.Random(0)
settings = {"max_steps": 60, "save_every": 2, "validate_every": 5, "ema_decay": 0.9, "batch_size": 2}

def live(where, resume):
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        os.dup2(2, 1)
        try:
            tiny_run(where, resume, **settings)
        except BaseException:
            os._exit(1)
        os._exit(0)
    return child

assert os.waitpid(live(folder / "whole", False), 0)[1] == 0
killed, seen = 0, set()
while True:
    begun = (folder / "killed").exists()
    child, before = live(folder / "killed", begun), set(folder.glob("killed/*checkpoint-*"))
    if killed < kills:
        for _ in range(2000):  # until this life has written, or is writing, a checkpoint of its own
            if set(folder.glob("killed/*checkpoint-*")) - before:
                break
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.12))
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        killed += 1
        seen |= {path.suffix for path in folder.glob("killed/.checkpoint-*")}
    else:
        assert os.WEXITSTATUS(status) == 0, "a resumed run failed"
        break
print(killed, *sorted(seen))
"""


def test_killed_runs_end_as_the_uninterrupted_one(tmp_path):
    ran = subprocess.run(
        [sys.executable, "-c", MANY_LIVES, tmp_path, "6"],
        capture_output=True, text=True, timeout=300, env=environment_on_the_cpu(), cwd=REPOSITORY,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    killed, *caught = ran.stdout.split()
    assert int(killed) >= 3 and ".partial" in caught  # some of them while a checkpoint was being written
    whole, again = tmp_path / "whole", tmp_path / "killed"
    assert losses(whole) == losses(again) and len(losses(whole)) == 60
    for name in ("model.safetensors", "checkpoint-0000060/optimizer.bin", "checkpoint-0000060/random_states_0.pkl"):
        assert (whole / name).read_bytes() == (again / name).read_bytes(), name
    assert sorted(path.name for path in whole.glob("*checkpoint*")) == sorted(
        path.name for path in again.glob("*checkpoint*")
    )
    assert {file.name for file in again.glob(".*")} <= {LOCK_NAME}
