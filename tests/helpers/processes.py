"""Scripts of the repository, in this process or in a fresh one."""

import contextlib
import importlib.util
import io
import os
import runpy
import subprocess
import sys
import traceback
from pathlib import Path

import huggingface_hub.constants
import pytest
from accelerate.state import AcceleratorState, GradientState

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


def run_here(script: str | Path, *arguments: str | Path) -> subprocess.CompletedProcess:
    """Run a script of the repository as `run_python` does, without the seconds that a fresh process imports for."""
    stdout, stderr, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(REPOSITORY)
        patch.setattr(sys, "argv", [str(script), *map(str, arguments)])
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        patch.setenv("ACCELERATE_USE_CPU", "true")
        forget_accelerate()
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            try:
                runpy.run_path(str(script), run_name="__main__")
            except SystemExit as stop:
                code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
                print(stop.code if isinstance(stop.code, str) else "", end="", file=stderr)
            except Exception:
                code = 1
                traceback.print_exc()
    return subprocess.CompletedProcess(sys.argv, code, stdout.getvalue(), stderr.getvalue())


def load_example(name: str):
    """Return a script of examples/ as a module, under its name: scripts there may import one another."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, REPOSITORY / "examples" / f"{name}.py")
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]
