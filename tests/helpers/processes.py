"""The command `treediff` and Python, in this process or in a fresh one."""

import contextlib
import io
import os
import subprocess
import sys
import traceback
from itertools import zip_longest
from pathlib import Path

import huggingface_hub.constants
import pytest
from accelerate.state import AcceleratorState, GradientState

from modeling_treediff.cli.main import main

REPOSITORY = Path(__file__).parents[2]
TESTS = REPOSITORY / "tests"
SAMPLE = REPOSITORY / "tree_artifacts" / "sotu-8k"


def forget_accelerate():
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def python_path(*folders: Path) -> str:
    """What PYTHONPATH must say for a process that imports from these folders first."""
    return os.pathsep.join([*map(str, folders), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)


def environment_on_the_cpu(**more: str) -> dict[str, str]:
    """For processes that import the package from this checkout, and the tests' helpers, offline."""
    path = python_path(REPOSITORY, TESTS)
    fixed = {"HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    return {**os.environ, **fixed, **more}


def run_python(*arguments: str | Path, code: str | None = None, timeout: int = 300, **environment: str):
    """Run a fresh Python, offline, outside the repository; `code` runs without the package's folder on the path."""
    command = [sys.executable, *(["-c", code] if code else []), *map(str, arguments)]
    fixed = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": python_path(TESTS)}
    # Remote code is copied there file by file: tests beside one another must not share the folder.
    fixed["HF_MODULES_CACHE"] = os.path.join(environment.get("HF_HOME", os.environ["HF_DATASETS_CACHE"]), "modules")
    return subprocess.run(
        command,
        cwd=environment.pop("cwd", REPOSITORY),
        env={**os.environ, **fixed, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def run_here(*arguments: str | Path | float, output: io.TextIOBase | None = None) -> subprocess.CompletedProcess:
    """Run `treediff` with these arguments in this process, without the seconds that a fresh one imports for.

    What it prints is kept, or goes to `output`.
    """
    words, stdout, stderr, code = [str(word) for word in arguments], io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(REPOSITORY)
        patch.setattr(sys, "argv", ["treediff", *words])
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        patch.setenv("ACCELERATE_USE_CPU", "true")
        forget_accelerate()
        with contextlib.redirect_stdout(output or stdout), contextlib.redirect_stderr(stderr):
            try:
                main(words)
            except SystemExit as stop:
                code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
                print(stop.code if isinstance(stop.code, str) else "", end="", file=stderr)
            except Exception:
                code = 1
                traceback.print_exc()
    return subprocess.CompletedProcess(sys.argv, code, stdout.getvalue(), stderr.getvalue())


def run_treediff(*arguments: str | Path | float, **settings) -> subprocess.CompletedProcess:
    """Run `treediff` with these arguments in a fresh process, as `run_python` does."""
    return run_python("-m", "modeling_treediff.cli.main", *arguments, **settings)


def last_line(ran: subprocess.CompletedProcess) -> str:
    """What a command that failed says in the end; a traceback is none of it."""
    assert ran.returncode and "Traceback" not in ran.stderr, ran.stderr
    return ran.stderr.splitlines()[-1]


def equal_lines(shown: str, printed: str) -> float:
    """Return the share of equal lines, in their order, of what a page shows and what its code has printed.

    On another processor sums are rounded otherwise, which now and then changes a word; other weights change most lines.
    """
    pairs = list(zip_longest(*([line for line in text.splitlines() if line.strip()] for text in (shown, printed))))
    return sum(one == other for one, other in pairs) / len(pairs)
