"""Many runs, each in a process and a folder of its own, a few at a time; what is done is not run again."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

DONE_NAME = "run.json"  # what a finished run leaves in its folder
SIGNALS = (signal.SIGTERM, signal.SIGINT)


@dataclass
class RunQueue:
    """Takes runs in their order; asked to stop by SIGTERM or SIGINT, it asks those that run, and waits for them.

    Attributes:
        folder: has a folder for each run, with its log.
        parallel: runs at a time, each with its share of the cores.
        seconds: from now, after which runs are asked by SIGTERM to save and stop, and none is begun; None for no end.

    """

    folder: Path
    parallel: int = 1
    seconds: float | None = None
    started: float = field(default_factory=time.monotonic)
    stopped: bool = False
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def take(self, runs: Mapping[str, Sequence[str]]) -> None:
        """Take those of the runs (name -> command line after `python`) that are not done.

        Raises:
            SystemExit: not all of them are done now.

        """
        before = {number: signal.signal(number, self._stop) for number in SIGNALS}
        try:
            with ThreadPoolExecutor(self.parallel) as pool:
                codes = list(pool.map(self._take_one, runs, runs.values()))
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if any(codes):
            sys.exit("Not all runs are done: the same command goes on with them.")

    def _take_one(self, name: str, arguments: Sequence[str]) -> int:
        target = self.folder / name
        if (target / DONE_NAME).exists():
            return 0
        left = None if self.seconds is None else self.started + self.seconds - time.monotonic()
        if self.stopped or (left is not None and left <= 0):
            return 1
        target.mkdir(parents=True, exist_ok=True)
        threads = max(1, len(os.sched_getaffinity(0)) // self.parallel)
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        begun = time.monotonic()
        with (target / "log.txt").open("a", encoding="utf-8") as log:
            process = subprocess.Popen([sys.executable, *arguments], stdout=log, stderr=log, env=environment)
            self.processes[name] = process
            try:
                code = process.wait(left)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGTERM)
                code = process.wait()
            del self.processes[name]
        outcome = "done" if code == 0 else f"stopped ({code}), see {target / 'log.txt'}"
        print(f"{name}: {outcome}, {time.monotonic() - begun:.0f} s", flush=True)
        return code

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.stopped = True
        for process in list(self.processes.values()):
            process.send_signal(signal.SIGTERM)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes away from a folder.

    Raises:
        BlockingIOError: another process works on it.

    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(f"Another process works on {folder}: wait for it, or end it.") from error
        yield
