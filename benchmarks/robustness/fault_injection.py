"""Kill a training run with SIGKILL at random moments, resume it each time, and compare it with an uninterrupted run.

python -m benchmarks.robustness.fault_injection --kills 50

Every attempt is a fresh process of `examples/train.py --resume`. In turn it is killed at a random moment of its
training, while it writes a checkpoint, or while it starts. In the end the weights must equal those of a run that nobody
disturbed, bit for bit, and so must the losses of all steps.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from benchmarks.places import RESULTS, ROOT
from modeling_treediff.files.records import write_record

RESULT = RESULTS / "fault_injection.json"
MOMENTS = ("training", "checkpoint", "start")
# A model small enough for hundreds of steps between two starts, with everything that a checkpoint has to keep.
SIZES = "--layers 1 --hidden-size 32 --heads 2 --sequence-length 16 --batch-size 4"
TINY = f"{SIZES} --validate-every 50 --ema-decay 0.9".split()
FAILED = "ended by itself"
PATIENCE = 300  # seconds without what an attempt waits for


def main() -> None:
    """Run undisturbed, run disturbed, compare and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="(default %(default)s)")
    parser.add_argument("--steps", type=int, default=3000, help="optimizer steps of the run (default %(default)s)")
    parser.add_argument("--save-every", type=int, default=5, help="steps (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("runs/faults"), help="folder (default %(default)s)")
    parser.add_argument("--record", type=Path, default=RESULT, help="(default %(default)s)")
    args = parser.parse_args()
    shutil.rmtree(args.output, ignore_errors=True)
    args.output.mkdir(parents=True)
    command = [sys.executable, str(ROOT / "examples" / "train.py"), *TINY, "--max-steps", str(args.steps)]
    command += ["--save-every", str(args.save_every)]
    undisturbed, disturbed = Run(command, args.output / "undisturbed"), Run(command, args.output / "disturbed")
    undisturbed.finish()
    moments = random.Random(args.seed)
    lives = [disturbed.kill(MOMENTS[index % len(MOMENTS)], moments) for index in tqdm(range(args.kills), desc="kill")]
    disturbed.finish()
    facts = {
        "kills": Counter(life for life in lives if life != FAILED),
        "resumed": sum(life != FAILED for life in lives),
        "steps": args.steps,
        "save_every": args.save_every,
        "final_weights_equal": undisturbed.weights() == disturbed.weights(),
        "losses_equal": undisturbed.losses() == disturbed.losses(),
    }
    write_record(args.record, facts, args.seed)
    print(json.dumps(facts))
    if not (facts["resumed"] == args.kills and facts["final_weights_equal"] and facts["losses_equal"]):
        sys.exit("A life ended by itself, or the disturbed run is not the undisturbed one.")


@dataclass
class Run:
    """A training run in a folder of its own, in as many attempts as it takes."""

    command: list[str]
    folder: Path
    seconds_to_start: float = 5.0  # the longest so far from a start to the first step

    def start(self) -> subprocess.Popen[bytes]:
        """Start an attempt, in a process group of its own, so that loader workers die with it."""
        log = (self.folder.parent / f"{self.folder.name}.log").open("ab")
        command = [*self.command, "--output", str(self.folder), "--resume"]
        return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)

    def finish(self) -> None:
        """Run to the end."""
        if code := self.start().wait():
            sys.exit(f"{self.folder} ended with exit code {code}; see its log.")

    def kill(self, moment: str, moments: random.Random) -> str:
        """Start an attempt and kill it with SIGKILL; return what it was doing as far as the disk tells."""
        process, lines, started = self.start(), self.lines_logged(), time.monotonic()
        if moment == "start":
            time.sleep(moments.uniform(0, self.seconds_to_start))
        else:
            self.wait_until(lambda: self.lines_logged() > lines, process)
            self.seconds_to_start = max(self.seconds_to_start, time.monotonic() - started)
            time.sleep(moments.uniform(0, 0.5))
            if moment == "checkpoint":
                self.wait_until(self.is_writing, process)
                time.sleep(moments.uniform(0, 0.1))
        if process.poll() is not None:
            print(f"{self.folder} ended by itself with exit code {process.returncode}; see its log", file=sys.stderr)
            return FAILED
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if self.lines_logged() <= lines:
            return "while starting"
        return "while writing a checkpoint" if self.is_writing() else "while training"

    def wait_until(self, happened: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
        """Look every millisecond whether it happened."""
        end = time.monotonic() + PATIENCE
        while not happened() and process.poll() is None and time.monotonic() < end:
            time.sleep(0.001)

    def is_writing(self) -> bool:
        """Tell whether an unfinished checkpoint lies in the folder."""
        return any(self.folder.glob(".checkpoint-*.partial"))

    def lines_logged(self) -> int:
        """Return the number of steps in the log."""
        metrics = self.folder / "metrics.jsonl"
        return metrics.read_bytes().count(b"\n") if metrics.exists() else 0

    def weights(self) -> bytes:
        """Return the final model's file."""
        return (self.folder / "model.safetensors").read_bytes()

    def losses(self) -> list[float]:
        """Return the loss of every step."""
        lines = (self.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line)["loss"] for line in lines]


if __name__ == "__main__":
    main()
