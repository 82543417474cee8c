"""All that a GPU is to measure, the most valuable first; a call goes on where the one before it stopped.

make gpu-evidence                              # again, until it says that all is done
python -m benchmarks.report.gpu_evidence --rehearse   # the same stages at tiny size, on a CPU

The records are those of the stages' own benchmarks, in benchmarks/results; logs are in runs/gpu_evidence. The quality
benchmark takes the texts that its `pack` has put into runs/quality/gpu; by default that is the embedded sample, in
GPT-2's tokens.
"""

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.contenders import AUTOREGRESSIVE
from benchmarks.matched_models import COMPARED
from benchmarks.places import ARTIFACTS, ROOT
from benchmarks.quality.run_queue import DONE_NAME, RunQueue
from modeling_treediff.files.json_files import read_json
from modeling_treediff.files.records import write_record

FOLDER = Path("runs", "gpu_evidence")
SECONDS = 540.0
GPT2 = str(ARTIFACTS / "gpt2")


@dataclass(frozen=True)
class Stage:
    """One thing to measure.

    Attributes:
        minutes: that it takes on a large GPU, about.
        command: what `python` is told.
        resumes: a call that ends before it goes on in the next; others begin only where there is time for them.

    """

    minutes: int
    command: tuple[str, ...]
    resumes: bool = True


def stages() -> dict[str, Stage]:
    """Return what is measured on a GPU, in order."""
    quality = ("-m", "benchmarks.quality.perplexity")
    grid = "--hidden-sizes 768 --vocabularies 50257 --batches 4 32 --resume --contenders".split()
    grid += [*COMPARED, AUTOREGRESSIVE]
    return {
        "memory": Stage(7, ("-m", "benchmarks.memory.peaks", "--measure", "cuda", *grid)),
        "tests": Stage(3, ("-m", "pytest", "-q", "-m", "gpu", str(ROOT / "tests")), resumes=False),
        "speed": Stage(5, ("-m", "benchmarks.speed.throughput", "--device", "cuda", "--sizes", "small"), resumes=False),
        "texts": Stage(2, (*quality, "pack", "--form", "gpu", "--if-missing", "--tokenizer", GPT2)),
        "quality": Stage(30, (*quality, "train", "--form", "gpu")),
        "record": Stage(1, (*quality, "collect", "--form", "gpu")),
    }


def rehearsal(folder: Path) -> dict[str, Stage]:
    """Return the same at tiny size, for a CPU; all that it writes is in a folder."""
    quality, place = ("-m", "benchmarks.quality.perplexity"), ("--form", "tiny", "--folder", str(folder / "data"))
    grid = "--hidden-sizes 768 --vocabularies 50257 --batches 4 --contenders mdlm tree --resume".split()
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
    if not (options.rehearse or torch.cuda.is_available()):  # the stage "tests" would count as passed: they skip
        parser.error("There is no GPU here: --rehearse takes the same stages at tiny size, on a CPU.")
    folder = FOLDER.with_name("gpu_rehearsal") if options.rehearse else FOLDER
    wanted = rehearsal(folder) if options.rehearse else stages()
    left, failed = take(wanted, folder, options.seconds)
    if failed:
        sys.exit(f"Failed: {', '.join(failed)}; the logs are in {folder}. The same command tries again.")
    minutes = sum(wanted[name].minutes for name in left)
    to_do = f"Still to do: {', '.join(left)} (about {minutes} minutes). The same command goes on."
    print(to_do if left else f"All is done: {', '.join(wanted)}.")


def take(wanted: dict[str, Stage], folder: Path, seconds: float) -> tuple[list[str], list[str]]:
    """Take the stages that are not done, within a time; return those that are still to do, and which of them failed.

    One that fails keeps no other from being taken. What is done by another command is not done.

    Raises:
        SystemExit: SIGTERM or SIGINT was received, and passed on to the stage.

    """
    end, failed = time.monotonic() + seconds, []
    for name, stage in wanted.items():
        left = end - time.monotonic()
        if is_done(folder / name, stage) or left < (0 if stage.resumes else min(60.0 * stage.minutes, 0.9 * seconds)):
            continue
        print(f"{name}, about {stage.minutes} minutes: {' '.join(stage.command)}", flush=True)
        (folder / name / DONE_NAME).unlink(missing_ok=True)
        queue = RunQueue(folder, seconds=max(0.0, left))
        try:
            queue.take({name: stage.command})
        except SystemExit:
            if queue.stopped:
                raise
            if time.monotonic() < end:
                failed.append(name)
            continue
        taken = {"stage": name, "of": list(stage.command), "seconds": left - (end - time.monotonic())}
        write_record(folder / name / DONE_NAME, taken, seed=0)
    return [name for name, stage in wanted.items() if not is_done(folder / name, stage)], failed


def is_done(folder: Path, stage: Stage) -> bool:
    """Tell whether a stage's folder says that its command has ended well."""
    file = folder / DONE_NAME
    return file.exists() and read_json(file)["of"] == list(stage.command)


if __name__ == "__main__":
    main()
