"""All that a GPU is to measure, the most valuable first; a call goes on where the one before it stopped.

make gpu-evidence                              # again, until it says that all is done
python -m benchmarks.gpu_evidence --rehearse   # the same stages at tiny size, on a CPU

The records are those of the stages' own benchmarks, in benchmarks/results; logs are in runs/gpu_evidence. The quality
benchmark takes the texts that its `pack` has put into runs/quality/gpu, by default the embedded sample.
"""

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.places import ROOT
from benchmarks.quality.run_queue import DONE_NAME, RunQueue
from modeling_treediff.files.records import write_record

FOLDER = Path("runs", "gpu_evidence")
SECONDS = 540.0


@dataclass(frozen=True)
class Stage:
    """One thing to measure: what `python` is told, and about how many minutes it takes on a large GPU."""

    minutes: int
    command: tuple[str, ...]


def stages() -> dict[str, Stage]:
    """Return what is measured on a GPU, in order."""
    quality = ("-m", "benchmarks.quality.perplexity")
    grid = "--hidden-sizes 768 --vocabularies 50257 --batches 4 32 --resume".split()
    return {
        "memory": Stage(6, ("-m", "benchmarks.memory.peaks", "--measure", "cuda", *grid)),
        "tests": Stage(3, ("-m", "pytest", "-q", "-m", "gpu", str(ROOT / "tests"))),
        "speed": Stage(5, ("-m", "benchmarks.speed.throughput", "--device", "cuda", "--sizes", "small")),
        "texts": Stage(2, (*quality, "pack", "--form", "gpu", "--if-missing")),
        "quality": Stage(60, (*quality, "train", "--form", "gpu")),
        "record": Stage(1, (*quality, "collect", "--form", "gpu")),
    }


def rehearsal(folder: Path) -> dict[str, Stage]:
    """Return the same at tiny size, for a CPU; all that it writes is in a folder."""
    quality, place = ("-m", "benchmarks.quality.perplexity"), ("--form", "tiny", "--folder", str(folder / "data"))
    grid = "--hidden-sizes 768 --vocabularies 50257 --batches 4 --contenders mdlm tree-binomial --resume".split()
    tiny = "--sizes toy --vocabularies 510 --turns 2 --calls 1 --output".split()
    tests = str(ROOT / "tests" / "training" / "memory" / "test_fused_loss.py")
    return {
        "memory": Stage(1, ("-m", "benchmarks.memory.peaks", *grid, "--output", str(folder / "memory.json"))),
        "tests": Stage(1, ("-m", "pytest", "-q", "-m", "gpu", tests)),
        "speed": Stage(1, ("-m", "benchmarks.speed.throughput", *tiny, str(folder / "speed.json"))),
        "texts": Stage(1, (*quality, "pack", *place, "--if-missing")),
        "quality": Stage(5, (*quality, "train", *place)),
        "record": Stage(1, (*quality, "collect", *place, "--output", str(folder / "quality.json"))),
    }


def main() -> None:
    """Take the stages that are not done, as long as there is time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rehearse", action="store_true", help="at tiny size, on a CPU")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="time of this call (default %(default)g)")
    options = parser.parse_args()
    folder = FOLDER.with_name("gpu_rehearsal") if options.rehearse else FOLDER
    wanted = rehearsal(folder) if options.rehearse else stages()
    if left := take(wanted, folder, options.seconds):
        minutes = sum(wanted[name].minutes for name in left)
        sys.exit(f"Not done: {', '.join(left)} (about {minutes} minutes). The same command goes on.")
    print(f"All is done: {', '.join(wanted)}.")


def take(wanted: dict[str, Stage], folder: Path, seconds: float) -> list[str]:
    """Take the stages that are not done, within a time; return those that are still to do.

    One that fails keeps no other from being taken; it comes first the next time.

    Raises:
        SystemExit: SIGTERM or SIGINT was received, and passed on to the stage.

    """
    end = time.monotonic() + seconds
    for name, stage in wanted.items():
        if (folder / name / DONE_NAME).exists():
            continue
        print(f"{name}, about {stage.minutes} minutes: {' '.join(stage.command)}", flush=True)
        started = time.monotonic()
        queue = RunQueue(folder, seconds=max(0.0, end - started))
        try:
            queue.take({name: stage.command})
        except SystemExit:
            if queue.stopped:
                raise
            continue
        taken = {"stage": name, "of": list(stage.command), "seconds": time.monotonic() - started}
        write_record(folder / name / DONE_NAME, taken, seed=0)
    return [name for name in wanted if not (folder / name / DONE_NAME).exists()]


if __name__ == "__main__":
    main()
