"""Does memory stay flat? One long training run, its resident memory sampled from outside, and a line through it.

python -m benchmarks.robustness.soak --minutes 30

The run validates, samples, and writes and rotates checkpoints all the time. Memory is that of the process and of all
its children; the first fifth of the time, in which caches fill, is left out of the slope.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks.places import RESULTS, ROOT
from modeling_treediff.files.records import write_record

RESULT = RESULTS / "soak.json"
MEBIBYTE = 2**20
OFTEN = "--max-steps 1000000 --validate-every 100 --save-every 100 --ema-decay 0.99".split()


def main() -> None:
    """Train for the given minutes, fit a line to the memory, and record it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30, help="(default %(default)s)")
    parser.add_argument("--interval", type=float, default=5, help="seconds between samples (default %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("runs/soak"), help="folder (default %(default)s)")
    parser.add_argument("--record", type=Path, default=RESULT, help="(default %(default)s)")
    args = parser.parse_args()
    shutil.rmtree(args.output, ignore_errors=True)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(ROOT / "examples" / "train.py"), *OFTEN, "--output", str(args.output)]
    with args.output.with_suffix(".log").open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
        samples = sample_memory(process, 60 * args.minutes, args.interval)
        os.killpg(process.pid, signal.SIGTERM)
        code = process.wait()
    seconds_n, resident_n = np.array(samples).T
    kept_n = seconds_n >= seconds_n[-1] / 5
    facts = {
        "minutes": round(seconds_n[-1] / 60, 1),
        "steps": len((args.output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()),
        "exit_code": code,
        "resident_mib": [round(value) for value in resident_n],
        **slope(seconds_n[kept_n], resident_n[kept_n]),
    }
    write_record(args.record, facts, seed=0)
    print(json.dumps({name: value for name, value in facts.items() if name != "resident_mib"}))


def sample_memory(process: subprocess.Popen[bytes], seconds: float, interval: float) -> list[tuple[float, float]]:
    """Return (seconds since the first, MiB resident) at every interval; ends early with an error if the run does."""
    samples, start = [], time.monotonic()
    while (now := time.monotonic() - start) < seconds:
        if process.poll() is not None:
            sys.exit(f"The run ended by itself after {now:.0f} s with exit code {process.returncode}; see its log.")
        samples.append((now, resident_bytes(process.pid) / MEBIBYTE))
        time.sleep(interval)
    return samples


def resident_bytes(process: int) -> int:
    """Return the resident memory of a process and all processes below it, in bytes (Linux)."""
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except FileNotFoundError:  # it has just ended
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE") + sum(resident_bytes(int(child)) for child in children)


def slope(seconds: np.ndarray, resident: np.ndarray) -> dict[str, float]:
    """Least squares: MiB per hour, and what that is of the mean per cent."""
    per_second = float(np.polyfit(seconds, resident, 1)[0])
    return {
        "slope_mib_per_hour": round(3600 * per_second, 2),
        "mean_mib": round(float(resident.mean()), 1),
        "first_to_last_tenth_mib": round(
            float(resident[-len(resident) // 10 :].mean() - resident[: len(resident) // 10].mean()), 2
        ),
    }


if __name__ == "__main__":
    main()
