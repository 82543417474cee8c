"""Many runs, each in a process and a folder of its own, a few at a time; what is done is not run again."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

DONE_NAME = "run.json"  # what a finished run leaves in its folder


@dataclass
class RunQueue:
    """Takes runs in their order.

    Attributes:
        folder: has a folder for each run, with its log.
        parallel: runs at a time, each with its share of the cores.
        seconds: from now, after which runs are asked by SIGTERM to save and stop, and none is begun; None for no end.

    """

    folder: Path
    parallel: int = 1
    seconds: float | None = None
    started: float = field(default_factory=time.monotonic)

    def take(self, runs: Mapping[str, Sequence[str]]) -> None:
        """Take those of the runs (name -> command line after `python`) that are not done.

        Raises:
            SystemExit: not all of them are done now.

        """
        with ThreadPoolExecutor(self.parallel) as pool:
            codes = list(pool.map(self._take_one, runs, runs.values()))
        if any(codes):
            sys.exit("Not all runs are done: the same command goes on with them.")

    def _take_one(self, name: str, arguments: Sequence[str]) -> int:
        target = self.folder / name
        if (target / DONE_NAME).exists():
            return 0
        if (left := self._seconds_left()) is not None and left <= 0:
            return 1
        target.mkdir(parents=True, exist_ok=True)
        threads = max(1, (os.cpu_count() or 1) // self.parallel)
        begun = time.monotonic()
        with (target / "log.txt").open("a", encoding="utf-8") as log:
            process = subprocess.Popen(
                [sys.executable, *arguments],
                stdout=log,
                stderr=log,
                env=os.environ | {"OMP_NUM_THREADS": str(threads)},
            )
            try:
                code = process.wait(left)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGTERM)
                code = process.wait()
        outcome = "done" if code == 0 else f"stopped ({code}), see {target / 'log.txt'}"
        print(f"{name}: {outcome}, {time.monotonic() - begun:.0f} s", flush=True)
        return code

    def _seconds_left(self) -> float | None:
        return None if self.seconds is None else self.started + self.seconds - time.monotonic()
